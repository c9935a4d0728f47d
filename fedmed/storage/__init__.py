"""What lies on the disk: run folder, checkpoints, a site's state, tensor files, audit log, history.

Nothing here knows the network.
"""

"""ERoHPRF's bags of convolutions: the module, its fast forms, and how they get into a network.

Merging is in :mod:`fedmed.reparameterization`.
"""

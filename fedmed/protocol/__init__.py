"""What crosses the network: kinds of message, requests, reports, tensors, quantised updates.

Nothing here opens a connection.
"""

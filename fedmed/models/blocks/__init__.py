"""Shared parts of the networks; a whole network is a file of :mod:`fedmed.models`."""

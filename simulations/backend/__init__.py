"""Flower's Grid over Ray: workers that serve many sites each."""

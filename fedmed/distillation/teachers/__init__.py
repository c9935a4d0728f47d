"""Frozen teachers: where their weights come from, what they look like, what is kept of their features."""

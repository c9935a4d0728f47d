"""Figures of groups and of gaps between them, as numbers.

Whether they are more than chance is in :mod:`fedmed.fairness.chance`.
"""

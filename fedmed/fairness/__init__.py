"""How sure the figures of a run are, and how they differ between sites and groups of patients."""

from fedmed.fairness.intervals import add_intervals, wilson_interval

__all__ = ["add_intervals", "wilson_interval"]

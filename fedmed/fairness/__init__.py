"""How sure the figures of a run are, and how they differ between sites and groups of patients."""

from fedmed.fairness.alarms import find_alarms
from fedmed.fairness.benefit import Difference, compare_paired
from fedmed.fairness.disparity import GapFigure, compare_groups, compute_gaps
from fedmed.fairness.flags import flag_attributes
from fedmed.fairness.intervals import add_intervals, wilson_interval

__all__ = [
    "Difference",
    "GapFigure",
    "add_intervals",
    "compare_groups",
    "compare_paired",
    "compute_gaps",
    "find_alarms",
    "flag_attributes",
    "wilson_interval",
]

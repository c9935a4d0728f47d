"""How sure the figures of a run are, and how they differ between sites and groups of patients."""

from fedmed.fairness.chance.alarms import find_alarms
from fedmed.fairness.chance.compare_groups import GapFigure, compare_groups, compute_gaps
from fedmed.fairness.chance.flags import flag_attributes
from fedmed.fairness.chance.intervals import add_intervals
from fedmed.fairness.chance.paired import Difference, compare_paired
from fedmed.fairness.chance.proportions import wilson_interval

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

"""Net benefit over thresholds.

Letters: J bins, T thresholds.
"""

import math
from dataclasses import dataclass

import numpy as np

from fedmed.clinical.scores import EDGES, HIGHEST, NUM_BINS, WITH, WITHOUT
from fedmed.metrics.values import Array

THRESHOLDS = np.round(np.arange(1, 100) / 100, 2)
"""Probabilities at which net benefit is shown, float64 (T,)."""


def to_probability(log_odds: float) -> float:
    """Return ``1 / (1 + exp(-log_odds))``."""
    return 1 / (1 + math.exp(-log_odds))


@dataclass(frozen=True, eq=False)
class DecisionCurve:
    """Net benefit over thresholds of the probability, each float64 (T,)."""

    value: Array
    low: Array
    """Worst case of what merged bins leave open; equal to the value where none is merged and edges are met."""
    high: Array
    all: Array
    """Net benefit of an alert for every image."""


def net_benefit(true_alerts: Array | float, false_alerts: Array | float, n: float, threshold: Array | float) -> Array:
    """Return ``true / n - false / n * t / (1 - t)`` at thresholds t of the probability.

    Source: Vickers and Elkin, Decision curve analysis, Medical Decision Making 26, 2006.
    """
    odds = np.asarray(threshold) / (1 - np.asarray(threshold))
    result: Array = (np.asarray(true_alerts) - np.asarray(false_alerts) * odds) / n
    return result


def draw_curve(decisions: list[Array], *, is_merged: bool) -> DecisionCurve | None:
    """Return the decision curve of the images of some sites together.

    Parameters
    ----------
    decisions : list of ndarray, each int64 of shape (2,J)
        Of each site: images with and without an alert class by bins of the alert score.
    is_merged : bool
        Whether an empty bin may belong to the one before it.

    Returns
    -------
    DecisionCurve or None
        None where some site tells no scores of either kind. Within a bin scores are taken to lie evenly.
    """
    if not decisions or any((own.sum(axis=1) == 0).any() for own in decisions):
        return None
    at = np.log(THRESHOLDS / (1 - THRESHOLDS))
    rows = [np.sum([_count_from(own[row], at, is_merged) for own in decisions], axis=0) for row in (WITH, WITHOUT)]
    n_with, n_without = (int(sum(own[row].sum() for own in decisions)) for row in (WITH, WITHOUT))
    n = n_with + n_without
    (true, true_low, true_high), (false, false_low, false_high) = rows
    return DecisionCurve(
        net_benefit(true, false, n, THRESHOLDS),
        net_benefit(true_low, false_high, n, THRESHOLDS),
        net_benefit(true_high, false_low, n, THRESHOLDS),
        net_benefit(float(n_with), float(n_without), n, THRESHOLDS),
    )


def _count_from(counts_J: Array, at_T: Array, is_merged: bool) -> Array:
    """Return how many images lie at or above scores: about, at least and at most, float64 (3,T)."""
    places = np.flatnonzero(counts_J)
    uppers = np.append(EDGES, HIGHEST)
    starts, ends = EDGES[places], uppers[np.append(places[1:], NUM_BINS) if is_merged else places + 1]
    share_TB = np.clip((ends - at_T[:, None]) / (ends - starts), 0, 1)
    numbers_B = counts_J[places]
    whole_TB = starts >= at_T[:, None] - 1e-9
    some_TB = ends > at_T[:, None] + 1e-9
    return np.stack([share_TB @ numbers_B, whole_TB @ numbers_B, some_TB @ numbers_B])

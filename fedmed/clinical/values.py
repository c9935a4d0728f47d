"""Net benefit over thresholds.

Letters: J bins, T thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmed.clinical.scores import EDGES, HIGHEST, NUM_BINS, WITH, WITHOUT
from fedmed.metrics.values import Array

THRESHOLDS = np.round(np.arange(1, 100) / 100, 2)
"""Probabilities at which net benefit is shown, float64 (T,)."""
_TOLERANCE = 1e-9


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


@dataclass(frozen=True, eq=False)
class KnownPoint:
    """Of how many images of a site an alert is known to be raised from one alert score on."""

    score: float
    n: Array
    """Images with and without an alert class of which it is known, int64 (2,)."""
    raised: Array
    """Those of them with an alert, int64 (2,)."""


@dataclass(frozen=True, eq=False)
class SiteScores:
    """What is known of the alert scores of a site's images."""

    decision: Array
    """Images with and without an alert class by bins of the alert score, int64 (2,J)."""
    known: KnownPoint | None = None
    """Used for rows of which both tell the same number of images."""


def draw_curve(
    sites: Sequence[SiteScores], *, is_merged: bool, thresholds_T: Array = THRESHOLDS
) -> DecisionCurve | None:
    """Return the decision curve of the images of some sites together.

    Parameters
    ----------
    sites : sequence of SiteScores
        Of each site.
    is_merged : bool
        Whether an empty bin may belong to the one before it.
    thresholds_T : ndarray of float64, shape (T,)
        Probabilities.

    Returns
    -------
    DecisionCurve or None
        None where no site tells scores of either kind. Between edges of bins, and scores at which the number of alerts
        is known, scores are taken to lie evenly.
    """
    n_with, n_without = (int(sum(own.decision[row].sum() for own in sites)) for row in (WITH, WITHOUT))
    if not n_with or not n_without:
        return None
    at = np.log(thresholds_T / (1 - thresholds_T))
    rows = [np.sum([_count_from(own, row, at, is_merged) for own in sites], axis=0) for row in (WITH, WITHOUT)]
    n = n_with + n_without
    (true, true_low, true_high), (false, false_low, false_high) = rows
    return DecisionCurve(
        net_benefit(true, false, n, thresholds_T),
        net_benefit(true_low, false_high, n, thresholds_T),
        net_benefit(true_high, false_low, n, thresholds_T),
        net_benefit(float(n_with), float(n_without), n, thresholds_T),
    )


def _count_from(site: SiteScores, row: int, at_T: Array, is_merged: bool) -> Array:
    """Return how many images lie at or above scores: about, at least and at most, float64 (3,T)."""
    counts_J, known = site.decision[row], site.known
    places = np.flatnonzero(counts_J) if is_merged else np.arange(NUM_BINS)
    numbers = counts_J[places]
    scores_P = np.append(EDGES[places], HIGHEST)
    from_P = np.append(np.cumsum(numbers[::-1])[::-1], 0)
    if known is not None and known.n[row] == counts_J.sum():
        apart_P = np.abs(scores_P - known.score) > _TOLERANCE
        scores_P, from_P = np.append(scores_P[apart_P], known.score), np.append(from_P[apart_P], known.raised[row])
        order = np.argsort(scores_P)
        scores_P, from_P = scores_P[order], from_P[order]
    below_T = np.searchsorted(scores_P, at_T + _TOLERANCE, side="right") - 1
    above_T = np.searchsorted(scores_P, at_T - _TOLERANCE, side="left")
    most_T = np.where(below_T < 0, counts_J.sum(), from_P[np.maximum(below_T, 0)])
    least_T = np.where(above_T >= len(from_P), 0, from_P[np.minimum(above_T, len(from_P) - 1)])
    return np.stack([np.interp(at_T, scores_P, from_P, left=counts_J.sum(), right=0), least_T, most_T])

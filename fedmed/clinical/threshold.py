"""One threshold for all sites, from the counts of alert scores that they have told of their validation images.

With merged bins it is not known how many images lie below a threshold, only how many at most. The operating point is
chosen by that worst case, so that the stated sensitivity is reached on these images whatever lies within the bins.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedmed.clinical.scores import EDGES, HIGHEST, NUM_BINS, NUMBER, WITH, WITHOUT
from fedmed.config import OperatingPlan
from fedmed.metrics.rounding import ROUNDING
from fedmed.metrics.values import Array

FEWEST_IMAGES = 10
"""With an alert class, and without; of fewer no threshold is chosen."""
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """What a site has told."""

    counts: Array
    """float64 (2,J,2), see :func:`fedmed.clinical.scores.count_scores`."""
    is_merged: bool
    """Whether bins were merged, so that an empty one may belong to the one before it."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it reaches on validation images."""

    threshold: float | None
    """Alert score (log-odds) from which on an image raises an alert; None where none could be chosen."""
    n_with: int
    """Validation images of an alert class."""
    n_without: int
    """The others."""
    most_missed: int | None = None
    """Images of an alert class below it, at most; exact where nothing was merged."""
    most_false_alarms: int | None = None
    """Other images from it on, at most."""
    note: str | None = None
    """Why there is none."""

    @property
    def sensitivity(self) -> float | None:
        """What is reached on these images at least."""
        return None if self.most_missed is None else 1 - self.most_missed / self.n_with

    @property
    def specificity(self) -> float | None:
        """Likewise."""
        return None if self.most_false_alarms is None else 1 - self.most_false_alarms / self.n_without


def choose_threshold(sites: Iterable[ScoreCounts], wanted: OperatingPlan) -> OperatingPoint:
    """Choose the operating point.

    Parameters
    ----------
    sites : iterable of ScoreCounts
        Of each site.
    wanted : OperatingPlan
        A sensitivity: then it is the largest threshold that reaches it. Or a cost ratio R: then it is the one with the
        smallest expected cost ``R * prevalence * (1 - sensitivity) + (1 - prevalence) * (1 - specificity)``, with the
        stated prevalence or that of these images, and the lower one of equal ones.

    Returns
    -------
    OperatingPoint
        Without a threshold, and with a note, for fewer than :data:`FEWEST_IMAGES` images of either kind, or where only
        a threshold at which every image raises an alert would do.
    """
    told = list(sites)
    n_with, n_without = (int(sum(of_site.counts[row, :, NUMBER].sum() for of_site in told)) for row in (WITH, WITHOUT))
    if min(n_with, n_without) < FEWEST_IMAGES:
        note = (
            f"{n_with} validation images of an alert class and {n_without} others are told; from {FEWEST_IMAGES} "
            "of each on a threshold is chosen"
        )
        return OperatingPoint(None, n_with, n_without, note=note)
    missed_J = np.sum([count_below(of_site.counts[WITH], is_merged=of_site.is_merged) for of_site in told], axis=0)
    alarms_J = np.sum([count_from(of_site.counts[WITHOUT], is_merged=of_site.is_merged) for of_site in told], axis=0)
    if wanted.cost_ratio is None:
        reaching = np.flatnonzero(missed_J <= n_with * (1 - (wanted.sensitivity or 0)) + _TOLERANCE)
        place = int(reaching[-1])  # below the first bin nothing is missed
    else:
        prevalence = wanted.prevalence or n_with / (n_with + n_without)
        cost_J = wanted.cost_ratio * prevalence * missed_J / n_with + (1 - prevalence) * alarms_J / n_without
        place = int(np.argmin(np.round(cost_J, 12)))
    if place == 0:
        goal = "the lowest cost" if wanted.sensitivity is None else f"a sensitivity of {wanted.sensitivity:g}"
        return OperatingPoint(None, n_with, n_without, note=f"{goal} is reached only where every image raises an alert")
    return OperatingPoint(float(EDGES[place]), n_with, n_without, int(missed_J[place]), int(alarms_J[place]))


def count_below(counts_J2: Array, *, is_merged: bool) -> Array:
    """Return how many images lie below each edge at most, float64 (J,).

    Parameters
    ----------
    counts_J2 : ndarray of float64, shape (J,2)
        One row of a site: number of images and sum of scores by bin.
    is_merged : bool
        Whether empty bins may belong to the one before them.
    """
    below_J, edges_J = np.zeros(NUM_BINS), EDGES
    for start, end, n, low, _ in _list_bins(counts_J2, is_merged):
        inside_J = (edges_J > start + _TOLERANCE) & (edges_J < end - _TOLERANCE)
        below_J[edges_J >= end - _TOLERANCE] += n
        below_J[inside_J] += np.minimum(n, np.floor(n * (end - low) / (end - edges_J[inside_J]) + _TOLERANCE))
    return below_J


def count_from(counts_J2: Array, *, is_merged: bool) -> Array:
    """Return how many images lie at each edge or above at most, float64 (J,); see :func:`count_below`."""
    from_J, edges_J = np.zeros(NUM_BINS), EDGES
    for start, end, n, _, high in _list_bins(counts_J2, is_merged):
        inside_J = (edges_J > start + _TOLERANCE) & (edges_J < end - _TOLERANCE)
        from_J[edges_J <= start + _TOLERANCE] += n
        from_J[inside_J] += np.minimum(n, np.floor(n * (high - start) / (edges_J[inside_J] - start) + _TOLERANCE))
    return from_J


def _list_bins(counts_J2: Array, is_merged: bool) -> Iterable[tuple[float, float, float, float, float]]:
    """Yield each bin's edges, its number of images, and between which numbers the mean of its scores lies.

    A merged bin goes up to the next one that holds images, since each that was told does: at the edges of merged bins
    the number of images below is exact, and only between them is it bounded by the mean.
    """
    places = np.flatnonzero(counts_J2[:, NUMBER])
    uppers = np.append(EDGES, HIGHEST)
    nexts = np.append(places, NUM_BINS)[1:] if is_merged else places + 1
    ends = uppers[nexts].tolist()
    for place, end in zip(places.tolist(), ends, strict=True):
        n, total = counts_J2[place].tolist()
        room = ROUNDING * abs(total)
        yield float(EDGES[place]), end, n, (total - room) / n, (total + room) / n

"""The area under the ROC curve from a site's own images, with its variance, in numbers that add over sites.

Of one class let M be the number of its images and N that of the other images of the site, ``psi(x, y)`` = 1, 1/2 or 0
for a score x of the class's image above, equal to or below a score y of another. With the placements ``V10(x) = mean_y
psi(x, y)`` and ``V01(y) = mean_x psi(x, y)`` the area is ``theta = mean_x V10(x)`` (DeLong, DeLong and Clarke-Pearson,
Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves, Biometrics 44, 1988). Where
patients have several images, the placements are summed by patient (Obuchowski, Nonparametric Analysis of Clustered ROC
Curve Data, Biometrics 53, 1997): with M_i and N_i images of both kinds and sums ``V10_i``, ``V01_i`` of patient i, I10
and I01 patients with images of either kind, and I in all,

    S10 = N^2 I10 / (I10 - 1) sum_i (V10_i - M_i theta)^2
    S01 = M^2 I01 / (I01 - 1) sum_i (V01_i - N_i theta)^2
    S11 = 2 M N I / (I - 1) sum_i (V10_i - M_i theta) (V01_i - N_i theta)

and ``Var(theta) = (S10 + S01 + S11) / (M N)^2``. With one image a patient it is DeLong's variance. The components are
those of the literature times ``(M N)^2``, since so they add: of several sites the area pooled by numbers of pairs is
``sum (pairs theta) / sum pairs`` and its variance ``sum (S10 + S01 + S11) / (sum pairs)^2``. It compares images of one
site only ("within sites").
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from fedmed.metrics.values import Array, Values, divide_defined, mean_defined

PAIRS, WON, OWN_PART, OTHER_PART, SHARED_PART, OWN_PATIENTS, OTHER_PATIENTS = range(7)
"""Places in the last axis of an array ``areas``: M N, M N theta, S10, S01, S11, I10, I01."""
FEW_PATIENTS = 20
"""Of a class or of all others, below which DeLong's variance alone is too uncertain."""
_STEPS = 60
_DUST = 1e-12


def measure_area(own_M: Array, other_N: Array, own_patient_M: Array, other_patient_N: Array) -> Array:
    """Return the seven numbers of one class at one site; zeros without images on both sides.

    Parameters
    ----------
    own_M, other_N : ndarray of float64
        Scores of the class's own images, and of all others.
    own_patient_M, other_patient_N : ndarray of int64
        Their patients, numbered from 0.

    Notes
    -----
    With a single patient on a side its part cannot be estimated. The largest that it can be is told instead: a number
    between 0 and 1 has a variance of at most 1/4, so ``(M N)^2 / 4``.
    """
    num_own, num_other = len(own_M), len(other_N)
    if not num_own or not num_other:
        return np.zeros(7)
    placed_M, placed_N = _place(own_M, other_N), 1 - _place(other_N, own_M)
    theta = float(placed_M.mean())
    width = 1 + int(max(own_patient_M.max(), other_patient_N.max()))
    images_M, images_N = np.bincount(own_patient_M, minlength=width), np.bincount(other_patient_N, minlength=width)
    rest_M = _without_dust(np.bincount(own_patient_M, placed_M, width) - images_M * theta)
    rest_N = _without_dust(np.bincount(other_patient_N, placed_N, width) - images_N * theta)
    pairs = float(num_own * num_other)
    with_own, with_other = int((images_M > 0).sum()), int((images_N > 0).sum())
    everyone = int(((images_M > 0) | (images_N > 0)).sum())
    shared = 2 * pairs * _correct(everyone) * float(rest_M @ rest_N) if everyone > 1 else 0.0
    own_part = num_other**2 * _correct(with_own) * float(rest_M @ rest_M) if with_own > 1 else pairs**2 / 4
    other_part = num_own**2 * _correct(with_other) * float(rest_N @ rest_N) if with_other > 1 else pairs**2 / 4
    return np.array([pairs, pairs * theta, own_part, other_part, shared, with_own, with_other])


def bin_areas(own: Array, others: Array, effects: Array) -> Array:
    """Return the seven numbers of each class from histograms, in which two scores of one bin are a tie, shape (K,7).

    Parameters
    ----------
    own, others : ndarray, shape (K,B)
        Histograms of each class's score over its own images and over all others.
    effects : ndarray, shape (K,)
        Design effects of the classes' images: which patient a score is of is not known, and so the part of a class's
        own images is larger by its effect, and that of the others by the mean of all, weighted by images.
    """
    num_own, num_other = own.sum(axis=-1), others.sum(axis=-1)
    own_effect, other_effect = effects, np.full(len(own), max(float(effects @ num_own / max(num_own.sum(), 1.0)), 1.0))
    placed_own = (np.cumsum(others, axis=-1) - others / 2) / np.maximum(num_other, 1)[:, None]
    placed_other = 1 - (np.cumsum(own, axis=-1) - own / 2) / np.maximum(num_own, 1)[:, None]
    pairs = num_own * num_other
    theta = divide_defined((own * placed_own).sum(axis=-1), num_own)
    parts = []
    for images, placed, number, effect in (
        (own, placed_own, num_own, own_effect),
        (others, placed_other, num_other, other_effect),
    ):
        squares = (images * np.square(_without_dust(placed - theta[:, None]))).sum(axis=-1)
        variance = squares * effect / np.maximum(number * (number - 1), 1)
        parts.append(pairs**2 * np.where(number > 1, np.minimum(variance, 0.25), 0.25))
    patients = num_own / own_effect, num_other / other_effect
    numbers = np.stack([pairs, pairs * theta, *parts, np.zeros(len(own)), *patients], axis=-1)
    return np.where(pairs[:, None] > 0, np.nan_to_num(numbers), 0.0)


def pooled_areas(areas: Array) -> Values:
    """Return the areas pooled over sites by numbers of pairs, of numbers of shape (...,K,7).

    Returns
    -------
    Values
        By class NaN where no site has images of the class and others. The value is the mean over the other classes.
    """
    by_class = np.clip(divide_defined(areas[..., WON], areas[..., PAIRS]), 0.0, 1.0)
    return Values(mean_defined(by_class), by_class)


def area_intervals(areas: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Return intervals of areas.

    Parameters
    ----------
    areas : ndarray, shape (K,7)
        Of all sites together.
    level : float
        Between 0 and 1.

    Returns
    -------
    value : ndarray, shape (2,)
        Of the mean over the classes: the means of the classes' ends, which is right however the classes hang together.
    by_class : ndarray, shape (2,K)
        NaN where there is no area.

    Notes
    -----
    By class: DeLong's variance on the scale of the log-odds, ``logit theta -+ z sd / (theta (1 - theta))``, so that an
    end never passes 0 or 1. Where the images show no variance (an area of 0 or 1), the variance is that of Hanley and
    McNeil (1982) as a function of the true area with the numbers of patients, and the ends are the areas that lie z of
    its standard deviations away (Newcombe, Statistics in Medicine 25, 2006, method 5). With fewer than
    :data:`FEW_PATIENTS` patients on a side the wider of both counts at each end. No interval has width 0.
    """
    ends = np.array([_find_ends(row, level) for row in areas]).T
    defined = ~np.isnan(ends[0])
    value = ends[:, defined].mean(axis=1) if defined.any() else np.full(2, np.nan)
    return value, ends


def _correct(number: int) -> float:
    return number / (number - 1)


def _without_dust(values: Array) -> Array:
    """Return differences of placements with 0 for what only rounding has left of equal ones."""
    return np.where(np.abs(values) < _DUST, 0.0, values)


def _place(scores: Array, among: Array) -> Array:
    """Return for each score the share of others that it beats, ties counting half."""
    ordered = np.sort(among)
    below, up_to = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    shares: Array = (below + up_to) / (2 * len(among))
    return shares


def _find_ends(row: Array, level: float) -> tuple[float, float]:
    pairs, won = float(row[PAIRS]), float(row[WON])
    if pairs <= 0:
        return math.nan, math.nan
    theta, z = min(max(won / pairs, 0.0), 1.0), NormalDist().inv_cdf((1 + level) / 2)
    variance = float(row[[OWN_PART, OTHER_PART, SHARED_PART]].sum()) / pairs**2
    own, other = float(row[OWN_PATIENTS]), float(row[OTHER_PATIENTS])
    lower, upper = 1.0, 0.0
    if variance > _DUST and 0 < theta < 1:
        middle, reach = math.log(theta / (1 - theta)), z * math.sqrt(variance) / (theta * (1 - theta))
        lower, upper = _squash(middle - reach), _squash(middle + reach)
        if min(own, other) >= FEW_PATIENTS:
            return lower, upper
    below = _search(lambda area: theta - area - z * _hanley_deviation(area, own, other) > 0, 0.0, theta)
    above = _search(lambda area: area - theta - z * _hanley_deviation(area, own, other) < 0, theta, 1.0)
    return min(lower, below), max(upper, above)


def _squash(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


def _hanley_deviation(area: float, own: float, other: float) -> float:
    number = (own + other) / 2 - 1
    spread = 1 + number * (1 - area) / (2 - area) + number * area / (1 + area)
    return math.sqrt(max(area * (1 - area) * spread / max(own * other, 1.0), 0.0))


def _search(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Return the place between two numbers up to which a condition holds."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2

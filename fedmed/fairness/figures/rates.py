"""Disparities between groups, from arrays with any number of leading axes.

Letters: D leading axes (none, or the draws of a bootstrap), G groups, K classes. NaN stands for "cannot be computed".

A term about a class compares the groups that have images of the class, if there are two of them; a group that lacks the
class is left out for this class only. Sums over classes (``eopp1``, ``eopp0``, ``eodd``) are over the classes that all
groups have, since a sum of fewer terms is smaller. What cannot be computed is skipped and counted, and is never 0 or 1.
A figure of fewer than two groups does not exist.
"""

from typing import NamedTuple

import numpy as np

from fedmed.metrics.answer_ranges import MOST_OFF, settle_other
from fedmed.metrics.values import (
    Array,
    divide_defined,
    gap_defined,
    max_defined,
    mean_defined,
    min_defined,
    std_defined,
)

CLASS_GAP = "class_sensitivity_gap"


class GapValues(NamedTuple):
    """A disparity of many tables at once.

    Attributes
    ----------
    value : ndarray, shape (D,)
        The figure; of figures that exist for every class, that of the worst class.
    skipped : ndarray of int, shape (D,)
        Number of terms that could not be computed: classes, or groups where the figure is about groups.
    mean : ndarray, shape (D,), optional
        Mean over the classes.
    by_class : ndarray, shape (D,K), optional
        The figure of each class.
    """

    value: Array
    skipped: Array
    mean: Array | None = None
    by_class: Array | None = None


class Rates(NamedTuple):
    """Rates of the answer "class k" by group, each (D,G,K); NaN for a class of which the group has no images."""

    selection: Array
    """Share of the group's images that are answered with k."""
    tpr: Array
    """The same of its images of class k."""
    fpr: Array
    """The same of its other images."""


def class_rates(counts: Array, other_wrong: Array | None = None) -> Rates:
    """Compute the one-vs-rest rates of tables of true (rows) against predicted class.

    Parameters
    ----------
    counts : ndarray, shape (D,G,K,K)
        Wrong answers as far as they are told class by class.
    other_wrong : ndarray, shape (D,G,K), optional
        The others by true class. Any of them may have been the answer k, so that selection rate and FPR of class k lie
        in a range; they are its middle, and NaN for a class where a difference of two groups could be more than 0.05
        off for that.
    """
    if other_wrong is not None:
        counts, other_wrong = settle_other(counts, other_wrong)
    counts = counts.astype(np.float64)
    hits, positives, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)
    other = np.zeros_like(positives) if other_wrong is None else other_wrong.astype(np.float64)
    positives = positives + other
    n = positives.sum(axis=-1, keepdims=True)
    reach = (other.sum(axis=-1, keepdims=True) - other) / 2
    rates = (
        _keep_sure(divide_defined(predicted + reach, n), divide_defined(reach, n)),
        divide_defined(hits, positives),
        _keep_sure(divide_defined(predicted - hits + reach, n - positives), divide_defined(reach, n - positives)),
    )
    return Rates(*(np.where(positives > 0, rate, np.nan) for rate in rates))


def _keep_sure(rate: Array, reach: Array) -> Array:
    return np.where(2 * np.nan_to_num(reach).max(axis=-2, keepdims=True) <= MOST_OFF, rate, np.nan)


def rate_gaps(rates: Rates) -> dict[str, GapValues]:
    """Compute the disparities of one-vs-rest rates.

    Parameters
    ----------
    rates : Rates
        Of at least two groups.

    Returns
    -------
    dict from str to GapValues
        With the gap max - min and the ratio min / max over groups, class by class:

        * ``demographic_parity_difference``, ``demographic_parity_ratio``: gap and ratio of the selection rate
        * ``equal_opportunity_difference``: gap of the TPR
        * ``equalized_odds_difference``: the larger one of the gaps of TPR and FPR
        * ``eopp1``, ``eopp0``, ``eodd``: sum over classes of ``|TPR - TPR'|``, of ``|TNR - TNR'|`` and of
          ``|(TPR - TPR') + (FPR - FPR')|`` of two groups; of more than two, the largest over the pairs
        * ``dpm``, ``eom``: mean over classes of the ratio of the selection rate, and of the TPR

        The value of the first four is that of the worst class: the largest difference, the smallest ratio.
    """
    tpr_gap, fpr_gap = _gap(rates.tpr), _gap(rates.fpr)
    selection_ratio, tpr_ratio = _ratio(rates.selection), _ratio(rates.tpr)
    return {
        "demographic_parity_difference": _by_class(_gap(rates.selection)),
        "demographic_parity_ratio": _by_class(selection_ratio, smaller_is_worse=True),
        "equal_opportunity_difference": _by_class(tpr_gap),
        "equalized_odds_difference": _by_class(np.maximum(tpr_gap, fpr_gap)),
        "eopp1": _largest_sum(rates.tpr),
        "eopp0": _largest_sum(rates.fpr),  # differences of 1 - FPR are those of FPR
        "eodd": _largest_sum(rates.tpr + rates.fpr),
        "dpm": GapValues(mean_defined(selection_ratio), _count_nan(selection_ratio), by_class=selection_ratio),
        "eom": GapValues(mean_defined(tpr_ratio), _count_nan(tpr_ratio), by_class=tpr_ratio),
    }


def group_gaps(name: str, values: Array) -> dict[str, GapValues]:
    """Compute worst group, gap and spread of a figure of every group.

    Parameters
    ----------
    name : str
        Key X of the figure.
    values : ndarray, shape (D,G)
        Higher is better; NaN for a group that does not have it.

    Returns
    -------
    dict from str to GapValues
        ``worst_group_X`` = minimum, ``gap_X`` = maximum - minimum, ``std_X`` = standard deviation (ddof 0) over the
        groups that have the figure; all undefined if those are fewer than two.
    """
    skipped, gap = _count_nan(values), gap_defined(values)
    return {
        f"worst_group_{name}": GapValues(np.where(np.isnan(gap), np.nan, min_defined(values)), skipped),
        f"gap_{name}": GapValues(gap, skipped),
        f"std_{name}": GapValues(std_defined(values), skipped),
    }


def ratio_of_groups(values: Array) -> GapValues:
    """Compute minimum / maximum of a figure over the groups that have it (``pqd`` of the accuracy), shape (D,G)."""
    highest = max_defined(values)
    ratio = np.where(np.isnan(gap_defined(values)), np.nan, divide_defined(min_defined(values), highest))
    return GapValues(ratio, _count_nan(values) + (highest == 0))


def equity_scaled(overall: Array, values: Array) -> GapValues:
    """Compute ``overall / (1 + sum over groups of |overall - group|)``.

    Parameters
    ----------
    overall : ndarray, shape (D,)
        The figure of all groups together.
    values : ndarray, shape (D,G)
        That of each group; NaN for a group that does not have it.
    """
    distance = np.nan_to_num(np.abs(overall[..., None] - values), nan=0.0).sum(axis=-1)
    return GapValues(np.where(np.isnan(gap_defined(values)), np.nan, overall / (1 + distance)), _count_nan(values))


def class_gap(tpr: Array, worth: Array) -> GapValues:
    """Compute the largest difference of a class's sensitivity between two groups, in units of what chance does.

    Parameters
    ----------
    tpr : ndarray, shape (D,G,K)
        True positive rates.
    worth : ndarray, shape (G,K)
        How many images each row counts as.

    Returns
    -------
    GapValues
        By class the largest ``|p_g - p_h| / sqrt(p (1 - p) (1 / n_g + 1 / n_h))`` over pairs of groups g, h, where p is
        the rate of the class in all groups together; NaN where fewer than two groups have the class, 0 where p is 0 or
        1. The value is the largest over the classes. A class with few images has to differ by more.
    """
    usable = ~np.isnan(tpr)
    weights = np.where(usable, worth, 0.0)
    pooled = divide_defined((np.nan_to_num(tpr) * weights).sum(axis=-2), weights.sum(axis=-2))
    spread = np.sqrt(np.maximum(pooled * (1 - pooled), 0.0))
    largest = np.full(pooled.shape, np.nan)
    for one in range(1, tpr.shape[-2]):
        reach = np.sqrt(1 / np.maximum(worth[one], 1e-9) + 1 / np.maximum(worth[:one], 1e-9)) * spread[..., None, :]
        apart = np.abs(tpr[..., one : one + 1, :] - tpr[..., :one, :])
        scaled = np.where(np.isnan(apart), np.nan, np.nan_to_num(divide_defined(apart, reach)))
        largest = np.fmax(largest, np.fmax.reduce(scaled, axis=-2))
    return GapValues(max_defined(largest), _count_nan(largest), by_class=largest)


def _gap(rate: Array) -> Array:
    return gap_defined(np.moveaxis(rate, -2, -1))


def _ratio(rate: Array) -> Array:
    by_group = np.moveaxis(rate, -2, -1)
    ratio = divide_defined(min_defined(by_group), max_defined(by_group))
    return np.where(np.isnan(_gap(rate)), np.nan, ratio)


def _by_class(by_class: Array, smaller_is_worse: bool = False) -> GapValues:
    worst = min_defined(by_class) if smaller_is_worse else max_defined(by_class)
    return GapValues(worst, _count_nan(by_class), mean_defined(by_class), by_class)


def _largest_sum(rate: Array) -> GapValues:
    first, second = np.triu_indices(rate.shape[-2], 1)
    rate = np.where(np.isnan(rate).any(axis=-2, keepdims=True), np.nan, rate)
    difference = np.abs(rate[..., first, :] - rate[..., second, :])  # (D,pairs,K)
    skipped = _count_nan(difference[..., 0, :])  # a class is now defined for all groups or for none
    largest = np.nan_to_num(difference, nan=0.0).sum(axis=-1).max(axis=-1)
    return GapValues(np.where(skipped < rate.shape[-1], largest, np.nan), skipped)


def _count_nan(values: Array) -> Array:
    number: Array = np.isnan(values).sum(axis=-1)
    return number

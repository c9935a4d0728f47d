"""Figures that need the predicted class, where some wrong answers are told without it.

Of true class k let o_k wrong answers be told without the predicted class; T is their sum. Whatever they were, class j
got a_j of them with ``0 <= a_j <= T - o_j`` and ``sum_j a_j = T``. Each figure is computed at its lowest and its
highest over all such a; the middle is at most half of the range off. Where that is more than :data:`MOST_OFF`, there
is no figure.

Letters: K classes, D leading axes (none, or the draws of a bootstrap), V corners.
"""

from typing import NamedTuple

import numpy as np

from fedmed.metrics.values import Array, Values, divide_defined, mean_defined

RANGED = ("macro_precision", "macro_f1", "specificity", "kappa", "mcc")
MOST_OFF = 0.05
"""Largest half of a range with which a figure is still shown."""
_STEPS = 50


class Range(NamedTuple):
    """Lowest and highest values of a figure."""

    low: Values
    high: Values

    @property
    def reach(self) -> Array:
        """Half of the range of the value, shape (D,)."""
        reach: Array = (self.high.value - self.low.value) / 2
        return reach

    def to_values(self) -> Values:
        """Return the middles, NaN where a range is too wide."""
        low, high = self.low.by_class, self.high.by_class
        by_class = None if low is None or high is None else _find_middle(low, high)
        return Values(_find_middle(self.low.value, self.high.value), by_class)


def settle_other(counts: Array, other_wrong: Array) -> tuple[Array, Array]:
    """Return tables in which wrong answers of two classes are where they can only be: at the other one."""
    if counts.shape[-1] > 2:
        return counts, other_wrong
    settled = counts.copy()
    settled[..., 0, 1] += other_wrong[..., 0]
    settled[..., 1, 0] += other_wrong[..., 1]
    return settled, np.zeros_like(other_wrong)


def find_ranges(counts: Array, other_wrong: Array) -> dict[str, Range]:
    """Return the ranges of the figures of :data:`RANGED`.

    Parameters
    ----------
    counts : ndarray, shape (D,K,K)
        True class in rows; wrong answers as far as they are told class by class.
    other_wrong : ndarray, shape (D,K)
        o.

    Notes
    -----
    Macro precision and macro F1 are sums of ``c_j / (d_j + a_j)``, which are convex: highest at a corner of the set of
    all a, lowest where the slopes of all classes that are not at an end are equal. Specificity and the chance agreement
    of kappa are linear. The range of mcc is that of its numerator and its denominator apart, and so a little too wide.
    """
    counts, other = counts.astype(np.float64), other_wrong.astype(np.float64)
    tp, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-2)
    positives = counts.sum(axis=-1) + other
    n = positives.sum(axis=-1)
    most = other.sum(axis=-1, keepdims=True) - other  # (D,K)
    corners = _list_corners(other, most)  # (D,V,K)
    negatives = n[..., None] - positives
    told_fp = predicted - tp

    def specificity(wrong: Array) -> Array:
        return divide_defined(negatives - wrong, negatives)

    mean_specificity = mean_defined(
        divide_defined((negatives - told_fp)[..., None, :] - corners, negatives[..., None, :])
    )
    precision = tp, predicted
    f1 = 2 * tp, positives + predicted
    low_agreement, high_agreement = (
        end((positives[..., None, :] * corners).sum(axis=-1), axis=-1) + (positives * predicted).sum(axis=-1)
        for end in (np.min, np.max)
    )
    hits = tp.sum(axis=-1)
    return {
        "macro_precision": _range_of_sum(*precision, most, corners, n),
        "macro_f1": _range_of_sum(*f1, most, corners, n),
        "specificity": Range(
            Values(mean_specificity.min(axis=-1), specificity(told_fp + most)),
            Values(mean_specificity.max(axis=-1), specificity(told_fp)),
        ),
        "kappa": Range(*(_kappa(hits, n, agreement) for agreement in (high_agreement, low_agreement))),
        "mcc": _range_of_mcc(
            (hits * n - high_agreement, hits * n - low_agreement), predicted, positives, n, most, corners
        ),
    }


def _list_corners(other: Array, most: Array) -> Array:
    """Return the corners of all a, (D,V,K): all images to one class, but for its own, which go to another."""
    num_classes = other.shape[-1]
    first, second = (~np.eye(num_classes, dtype=np.bool_)).nonzero()
    corners = np.zeros((*other.shape[:-1], len(first), num_classes))
    corner = np.arange(len(first))
    corners[..., corner, first] = most[..., first]
    corners[..., corner, second] = other[..., first]
    return corners


def _range_of_sum(numerator: Array, base: Array, most: Array, corners: Array, n: Array) -> Range:
    """Return the range of the mean over all classes of numerator / (base + a), a class without either counting as 0."""
    at_corners = _mean_of_all(divide_defined(numerator[..., None, :], base[..., None, :] + corners))
    lowest = _mean_of_all(divide_defined(numerator, base + _spread_evenly(numerator, base, most)))
    by_class = divide_defined(numerator, base + most), divide_defined(numerator, base)
    value = np.minimum(lowest, at_corners.min(axis=-1)), at_corners.max(axis=-1)
    low, high = (Values(np.where(n > 0, end, np.nan), own) for end, own in zip(value, by_class, strict=True))
    return Range(low, high)


def _spread_evenly(numerator: Array, base: Array, most: Array) -> Array:
    """Return the a that makes the sum of numerator / (base + a) lowest, classes without a numerator left out."""
    total = most.sum(axis=-1, keepdims=True) / max(most.shape[-1] - 1, 1)
    # a_j = sqrt(c_j) s - d_j within its ends; the common s is searched.
    root = np.sqrt(numerator)
    low = np.zeros_like(total)
    high = ((base + most) / np.where(root > 0, root, np.inf)).max(axis=-1, keepdims=True) + 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        is_below = np.clip(root * middle - base, 0, most).sum(axis=-1, keepdims=True) < total
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    spread: Array = np.clip(root * high - base, 0, np.where(root > 0, most, 0.0))
    return spread


def _level_out(predicted: Array, most: Array) -> Array:
    """Return the a that makes the sum of (predicted + a)^2 lowest."""
    total = most.sum(axis=-1, keepdims=True) / max(most.shape[-1] - 1, 1)
    low, high = np.zeros_like(total), (predicted + most).max(axis=-1, keepdims=True)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        is_below = np.clip(middle - predicted, 0, most).sum(axis=-1, keepdims=True) < total
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    level: Array = np.clip(low - predicted, 0, most)
    return level


def _kappa(hits: Array, n: Array, agreement: Array) -> Values:
    return Values(divide_defined(hits * n - agreement, n**2 - agreement))


def _range_of_mcc(  # noqa: PLR0917
    numerators: tuple[Array, Array], predicted: Array, positives: Array, n: Array, most: Array, corners: Array
) -> Range:
    fixed = n**2 - np.square(positives).sum(axis=-1)
    squares = (
        np.square(predicted[..., None, :] + corners).sum(axis=-1).max(axis=-1),
        np.square(predicted + _level_out(predicted, most)).sum(axis=-1),
    )
    denominators = [np.sqrt(np.maximum((n**2 - square) * fixed, 0.0)) for square in squares]
    ends = np.stack([divide_defined(top, bottom) for top in numerators for bottom in denominators])
    return Range(Values(np.clip(ends.min(axis=0), -1, 1)), Values(np.clip(ends.max(axis=0), -1, 1)))


def _mean_of_all(by_class: Array) -> Array:
    mean: Array = np.nan_to_num(by_class, nan=0.0).mean(axis=-1)
    return mean


def _find_middle(low: Array, high: Array) -> Array:
    return np.where(high - low <= 2 * MOST_OFF, (low + high) / 2, np.nan)

"""Intervals of proportions, of sums and differences of them, and of the extremes of several figures.

None of these rests on draws. An interval of an extreme (the worst of several groups, the largest difference) is made of
intervals that hold for all groups at once, since the group that looks worst is partly chosen by chance.

Letters: G figures, two ends of an interval in the first axis.
"""

from statistics import NormalDist

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from fedmed.metrics.values import Array, divide_defined, mean_defined

LARGEST_BRIER = 2.0
_MANY = 50


def wilson_interval(successes: Array, n: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Return the ends of Wilson's score interval of proportions.

    Parameters
    ----------
    successes, n : ndarray
        Of the same shape; ``0 <= successes <= n``. Not necessarily whole numbers, as where images of one patient count
        as fewer (:mod:`fedmed.fairness.figures.design_effects`).
    level : float
        Between 0 and 1.

    Returns
    -------
    lower, upper : ndarray
        NaN where ``n`` is 0.

    Notes
    -----
    With ``p = successes / n`` and z the normal quantile of (1 + level) / 2:
    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``. Source: Wilson, 1927.
    """
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    successes, n = np.asarray(successes, np.float64), np.asarray(n, np.float64)
    centre = divide_defined(successes + z2 / 2, n + z2)
    spread = np.sqrt(z2 * divide_defined(successes * (n - successes), n) + z2**2 / 4) / (n + z2)
    # Rounding must not push an end past a proportion of exactly 0 or 1.
    lower, upper = np.where(successes == 0, 0.0, centre - spread), np.where(successes == n, 1.0, centre + spread)
    return np.where(n > 0, lower, np.nan), np.where(n > 0, upper, np.nan)


def proportion_interval(successes: Array, n: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Return the ends of Wilson's interval, wider where there are one to three successes or failures.

    Parameters
    ----------
    successes, n, level
        As for :func:`wilson_interval`.

    Returns
    -------
    lower, upper : ndarray
        NaN where ``n`` is 0.

    Notes
    -----
    With x = 1 or 2 successes, from n = 51 on also 3, Wilson's lower end is too high for very small proportions. It is
    at most ``chi2 / 2n`` with the quantile 1 - level of the chi-squared distribution with 2 x degrees of freedom, and
    likewise for failures and the upper end. Source: Brown, Cai and DasGupta, Statistical Science 16, 2001, 4.1.1.
    """
    successes, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    lower, upper = wilson_interval(successes, n, level)
    return (
        np.fmin(lower, _bound_few(successes, n, level)),
        np.fmax(upper, 1 - _bound_few(n - successes, n, level)),
    )


def _bound_few(successes: Array, n: Array, level: float) -> Array:
    """Return the limit of Poisson's distribution where it is used, NaN elsewhere."""
    few = (successes > 0) & (successes <= np.where(n > _MANY, 3, 2)) & (successes < n)
    bounds: Array = np.where(few, chi2.ppf(1 - level, 2 * np.where(few, successes, 1)) / (2 * np.maximum(n, 1)), np.nan)
    return bounds


def mean_interval(right: Array, n: Array, level: float = 0.95) -> Array:
    """Return an interval of the mean of independent proportions, shape (2, ...); those with ``n`` of 0 are left out.

    Parameters
    ----------
    right, n : ndarray, shape (..., K)
        As for :func:`wilson_interval`.
    level : float
        Between 0 and 1.

    Notes
    -----
    Each end is as far from the mean as the root of the sum of squares of the distances of the proportions' own ends,
    over their number (Zou and Donner, Statistics in Medicine 27, 2008). A class all of whose few images are answered
    alike counts with its uncertainty.
    """
    share, (lower, upper) = divide_defined(right, n), proportion_interval(right, n, level)
    mean, number = mean_defined(share), np.maximum((np.asarray(n) > 0).sum(axis=-1), 1)
    below, above = (np.sqrt(np.nansum(np.square(share - end), axis=-1)) / number for end in (lower, upper))
    return np.stack([mean - below, mean + above])


def score_interval(sums: Array, effect: float, level: float) -> Array:
    """Return Student's interval of a mean Brier score, shape (2,); NaN where it has no width.

    Parameters
    ----------
    sums : ndarray, shape (3,)
        Number, sum and sum of squares.
    effect : float
        Design effect: by how much the variance is larger than of independent scores.
    level : float
        Between 0 and 1.
    """
    n, total, squares = sums
    if n < 2:
        return np.full(2, np.nan)
    mean = total / n
    variance = max(squares - n * mean**2, 0.0) / (n - 1)
    reach = student.ppf((1 + level) / 2, max(n / effect - 1, 1.0)) * np.sqrt(variance * effect / n)
    return np.array([max(mean - reach, 0.0), min(mean + reach, LARGEST_BRIER)]) if reach > 0 else np.full(2, np.nan)


def share_level(level: float, number: int) -> float:
    """Return the level that each of a number of intervals needs so that all hold together (Bonferroni)."""
    return 1 - (1 - level) / max(number, 1)


def bound_lowest(ends: Array) -> Array:
    """Return an interval of the lowest of G figures, shape (2,), of intervals (2,G) that hold together, without NaN."""
    return np.array([_fold(np.fmin, ends[0]), _fold(np.fmin, ends[1])])


def bound_gap(values: Array, ends: Array) -> Array:
    """Return an interval of the largest difference between two of G figures.

    Parameters
    ----------
    values : ndarray, shape (G, ...)
        The figures, independent of each other; NaN where there is none.
    ends : ndarray, shape (2, G, ...)
        Their intervals, each at the level that all differences need together, ``share_level(level, G (G - 1) / 2)``.

    Returns
    -------
    ndarray, shape (2, ...)
        NaN where there are fewer than two figures.

    Notes
    -----
    A difference ``a - b`` lies between ``a - b - sqrt((a - lower_a)^2 + (upper_b - b)^2)`` and the same with the other
    ends (Zou and Donner, 2008), and the largest one between the largest of the lower and of the upper ends of all.
    """
    below, above = np.square(values - ends[0]), np.square(ends[1] - values)
    low = high = np.full(values.shape[1:], np.nan)
    for one in range(1, len(values)):
        # Against all figures before it, either way round.
        for minuend, subtrahend in ((slice(one, one + 1), slice(0, one)), (slice(0, one), slice(one, one + 1))):
            difference = values[minuend] - values[subtrahend]
            lower = difference - np.sqrt(below[minuend] + above[subtrahend])
            upper = difference + np.sqrt(above[minuend] + below[subtrahend])
            low, high = np.fmax(low, np.fmax.reduce(lower, axis=0)), np.fmax(high, np.fmax.reduce(upper, axis=0))
    return np.stack([np.maximum(low, 0.0), high])


def bound_ratio(ends: Array) -> Array:
    """Return an interval of lowest / highest of G figures, shape (2,), of intervals (2,G) that hold together."""
    lowest, highest = bound_lowest(ends), [_fold(np.fmax, end) for end in ends]
    low, high = divide_defined(lowest[0], highest[1]), divide_defined(lowest[1], highest[0])
    return np.array([low, np.fmin(high, 1.0) if not np.isnan(low) else np.nan])


def bound_scaled(overall: Array, ends: Array) -> Array:
    """Return an interval of ``overall / (1 + sum |overall - figure|)``, of intervals (2,) and (2,G) that hold."""
    defined = ~np.isnan(ends[0])
    if not defined.any() or np.isnan(overall).any():
        return np.full(2, np.nan)
    low, high = ends[:, defined]
    farthest = np.maximum(overall[1] - low, high - overall[0]).clip(0.0).sum()
    nearest = np.maximum(np.maximum(low - overall[1], overall[0] - high), 0.0).sum()
    return np.array([overall[0] / (1 + farthest), overall[1] / (1 + nearest)])


def _fold(rule: np.ufunc, values: Array) -> float:
    return float(rule.reduce(values, initial=np.nan))

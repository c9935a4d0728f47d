"""Drawing tables anew, all draws at once.

Letters: D draws, B cells of a row.
"""

import numpy as np

from fedmed.metrics.values import Array, divide_defined


def check_draws(num_draws: int, level: float) -> None:
    """Check what intervals are drawn with.

    Raises
    ------
    ValueError
        If there are no draws, or the level is not between 0 and 1.
    """
    if num_draws < 1 or not 0 < level < 1:
        raise ValueError(f"num_draws is {num_draws} and level {level}. Allowed: from 1; between 0 and 1.")


def resample(rng: np.random.Generator, table: Array, num_draws: int) -> Array:
    """Draw the last axis of a table of counts anew, multinomially with the observed shares; its sums stay.

    Returns
    -------
    ndarray of int64, shape (D, *table.shape)
    """
    return draw_rows(rng, table.sum(axis=-1), table, num_draws)


def draw_rows(rng: np.random.Generator, n: Array, weights: Array, num_draws: int) -> Array:
    """Draw rows of given sums from given distributions.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    n : ndarray of int64
        Sum of each row.
    weights : ndarray, shape (..., B)
        Distribution of each row up to a factor; its leading axes broadcast with ``n``. Rows of zeros only where ``n``
        is 0.
    num_draws : int
        D.

    Returns
    -------
    ndarray of int64, shape (D, ..., B)
    """
    shares = or_zero(divide_defined(weights, weights.sum(axis=-1, keepdims=True)))
    shares[..., 0] += ~weights.any(axis=-1)  # an empty row needs shares, too, and draws nothing from them
    shape = np.broadcast_shapes(n.shape, shares.shape[:-1])
    drawn: Array = rng.multinomial(n, shares, size=(num_draws, *shape))
    return drawn


def deal_rows(rng: np.random.Generator, sizes: Array, weights: Array, num_draws: int) -> Array:
    """Deal the images of each class out anew between the groups (a permutation of the groups within true classes).

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    sizes : ndarray of int64, shape (G,K)
        Images of each group and class.
    weights : ndarray, shape (G,K,B)
        Answers to them. Where the sums over B are ``sizes``, exactly these are dealt out; else as many answers as there
        are images, in the same shares (largest remainders).
    num_draws : int
        D.

    Returns
    -------
    ndarray of int64, shape (D,G,K,B)
    """
    pool = _apportion(weights.sum(axis=0), sizes.sum(axis=0))
    left = np.broadcast_to(pool, (num_draws, *pool.shape)).copy()
    dealt = np.zeros((num_draws, len(sizes), *pool.shape), np.int64)
    for g, need in enumerate(sizes[:-1]):
        dealt[:, g] = _take_some(rng, left, need)
        left -= dealt[:, g]
    dealt[:, -1] = left
    return dealt


def _take_some(rng: np.random.Generator, left: Array, need: Array) -> Array:
    """Draw ``need`` (K,) answers of each class without putting back, of those that are left (D,K,B)."""
    taken = np.zeros_like(left)
    missing = np.broadcast_to(need, left.shape[:-1])
    others = left.sum(axis=-1)
    for cell in range(left.shape[-1] - 1):
        others = others - left[..., cell]
        taken[..., cell] = rng.hypergeometric(left[..., cell], others, missing)
        missing = missing - taken[..., cell]
    taken[..., -1] = missing
    return taken


def _apportion(weights: Array, sizes: Array) -> Array:
    """Return whole numbers in the shares of each row (K,B) that add up to ``sizes`` (K,)."""
    wanted = or_zero(divide_defined(weights, weights.sum(axis=-1, keepdims=True))) * sizes[:, None]
    # Where the weights add up to the sizes already, only rounding errors have to go.
    numbers = np.floor(wanted + 1e-9).astype(np.int64)
    rank = np.argsort(np.argsort(numbers - wanted, axis=-1, kind="stable"), axis=-1, kind="stable")
    numbers += rank < (sizes - numbers.sum(axis=-1))[:, None]
    return numbers


def or_zero(values: Array) -> Array:
    """Return the values with 0 for NaN."""
    filled: Array = np.nan_to_num(values, nan=0.0)
    return filled


def correct_bias(value: Array, draws: Array, tails: Array) -> Array:
    """Return the ends of an interval of an extreme (a maximum, a minimum, a spread), corrected for its bias.

    Parameters
    ----------
    value : ndarray, shape (...)
        The figure.
    draws : ndarray, shape (D, ...)
        The figure in every draw; NaN is left out.
    tails : ndarray, shape (2,)
        Lower and upper probability.

    Returns
    -------
    ndarray, shape (2, ...)
        NaN where there are no draws. The interval holds the value.

    Notes
    -----
    An extreme of noisy rates lies beyond the extreme of the true ones, and in the draws it lies as much further again.
    Two corrections are known, with b = mean of the draws - v: the percentiles moved by -2 b, and the percentiles
    reflected at the figure, 2 v - q (the "basic" bootstrap). The first is better where rates are near 0 or 1, the
    second where groups are alike, so the wider of both is taken at each end.
    """
    defined = ~np.isnan(draws)
    if not defined.any():
        return np.full((2, *value.shape), np.nan)
    lower, upper = np.nanquantile(draws, tails, axis=0) if not defined.all() else np.quantile(draws, tails, axis=0)
    shift = 2 * (np.nanmean(draws, axis=0) - value)
    ends = np.minimum(2 * value - upper, lower - shift), np.maximum(2 * value - lower, upper - shift)
    return np.stack([np.minimum(ends[0], value), np.maximum(ends[1], value)])

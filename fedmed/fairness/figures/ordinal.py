"""Figures of ordered classes, such as grades of a disease: how far an answer is from the truth, not only whether.

Classes are the whole numbers 0 to K - 1 in their order, and a step is the distance of two neighbours.

Of true class k let o_k wrong answers be told without the predicted class. Each of them may be any class but k, so that
every figure lies in a range. The mean error and the share beyond one step are sums of the answers' distances, lowest
where all of these answers are at a neighbour and highest where they are as far off as they can be. Kappa is one minus a
ratio of two such sums; its ends are found by Dinkelbach's method (On Nonlinear Fractional Programming, Management
Science 13, 1967), in which each class's answers go together to the class that is best for the ratio of before.

Letters: K classes, D leading axes (none, or the draws of a bootstrap).
"""

import numpy as np

from fedmed.fairness.figures.design_effects import find_pooled_effect
from fedmed.fairness.figures.draws import check_draws, draw_rows
from fedmed.metrics.answer_ranges import MOST_OFF
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array, Figure, divide_defined, optional_float
from fedmed.seeding import make_rng

ORDINAL_FIGURES = ("quadratic_kappa", "mean_absolute_error", "beyond_one_step")
_STEPS = 50


def ordinal_ranges(counts: Array, other_wrong: Array | None = None) -> dict[str, tuple[Array, Array]]:
    """Return the lowest and the highest value that each figure may have.

    Parameters
    ----------
    counts : ndarray, shape (D,K,K)
        True class in rows; wrong answers as far as they are told class by class.
    other_wrong : ndarray, shape (D,K), optional
        o; without, both ends are the same.

    Returns
    -------
    dict from str to (ndarray, ndarray), each of shape (D,)
        With n images, O_ij of them of class i and taken for class j, and E_ij = (images of i) (answers j) / n:

        * ``quadratic_kappa`` = 1 - sum_ij (i - j)^2 O_ij / sum_ij (i - j)^2 E_ij (Cohen, Weighted Kappa, Psychological
          Bulletin 70, 1968); NaN where all images are of one class, for which it is 0 whatever the answers are
        * ``mean_absolute_error`` = sum_ij ``|i - j|`` O_ij / n, in steps
        * ``beyond_one_step`` = share of the images with ``|i - j| > 1``

        NaN without images.
    """
    told = counts.astype(np.float64)
    num_classes = told.shape[-1]
    other = np.zeros(told.shape[:-1]) if other_wrong is None else other_wrong.astype(np.float64)
    place = np.arange(num_classes)
    steps = np.abs(place[:, None] - place)
    n = told.sum(axis=(-2, -1)) + other.sum(axis=-1)
    found = {"quadratic_kappa": _find_kappa_range(told, other, steps**2, n)}
    for key, weight in (("mean_absolute_error", steps), ("beyond_one_step", steps > 1)):
        wrong = np.where(steps == 0, np.nan, weight)
        low, high = np.nanmin(wrong, axis=1), np.nanmax(wrong, axis=1)
        total = (told * weight).sum(axis=(-2, -1))
        found[key] = divide_defined(total + other @ low, n), divide_defined(total + other @ high, n)
    return found


def compute_ordinal(
    tables: EvaluationTables, seed: int | None = None, num_draws: int = 1000, level: float = 0.95
) -> dict[str, Figure]:
    """Return the figures of ordered classes of the images in ``tables``, pooled over its groups.

    Parameters
    ----------
    tables : EvaluationTables
        Any number of groups.
    seed : int, optional
        Seed of the run, for the intervals; without, there are none.
    num_draws : int
        D, at least 1.
    level : float
        Between 0 and 1.

    Returns
    -------
    dict from str to Figure
        By key of :data:`ORDINAL_FIGURES`. A figure that lies in a range is in its middle, and None where that is more
        than :data:`fedmed.metrics.answer_ranges.MOST_OFF` from the ends.

    Raises
    ------
    ValueError
        If ``num_draws`` or ``level`` is not allowed.

    Notes
    -----
    Images whose class is not told have no part in it. The intervals are percentiles of tables drawn anew twice: as
    observed, and with one more image of every class that occurs, half of it answered rightly and half of it spread over
    the wrong answers; at each end the wider of both is taken. So no interval has width zero, and a wrong answer that
    nobody has given yet is not ruled out. Half an image in each of the K^2 cells would outweigh the data: with 40
    images and 5 or 7 classes such intervals hold the truth in 45 to 60 % of cases; these in at least 92 % from 40
    images on, for 3 to 7 classes and accuracies from .6 to .98. Where patients have several images, the reach is longer
    by the root of the design effect of right answers.
    """
    pooled = tables.pool()
    counts, other = pooled.counts[0], pooled.other_wrong[0]
    found = ordinal_ranges(counts, other)
    ends = {} if seed is None else _draw_ends(pooled, found, make_rng(seed, "intervals", "ordinal"), num_draws, level)
    return {key: _make_figure(key, found[key], ends.get(key), pooled) for key in ORDINAL_FIGURES}


def _find_kappa_range(told: Array, other: Array, weight: Array, n: Array) -> tuple[Array, Array]:
    """Return the ends of kappa; the lowest one has the largest ratio of observed to expected distances."""
    images = told.sum(axis=-1) + other
    observed = (told * weight).sum(axis=(-2, -1))
    # Of one answer j, the distance that is expected by chance.
    chance = divide_defined(images @ weight, n[..., None])
    expected = (chance * told.sum(axis=-2)).sum(axis=-1)
    ends = []
    for sign in (-1.0, 1.0):
        ratio = divide_defined(observed, expected) if not other.any() else np.zeros_like(n)
        for _ in range(_STEPS if other.any() else 0):
            # Never the true class: these answers are wrong.
            gain = np.where(weight == 0, np.inf, weight - np.nan_to_num(ratio)[..., None, None] * chance[..., None, :])
            gain = np.where(np.isinf(gain), gain, -sign * gain)
            choice = np.argmin(gain, axis=-1)  # (D,K)
            far = np.take_along_axis(np.broadcast_to(weight, gain.shape), choice[..., None], axis=-1)[..., 0]
            often = np.take_along_axis(np.broadcast_to(chance[..., None, :], gain.shape), choice[..., None], axis=-1)
            better = divide_defined(
                observed + (other * far).sum(axis=-1), expected + (other * often[..., 0]).sum(axis=-1)
            )
            if np.array_equal(better, ratio, equal_nan=True):
                break
            ratio = better
        ends.append(np.where((images > 0).sum(axis=-1) > 1, 1 - ratio, np.nan))
    return ends[1], ends[0]


def _draw_ends(
    pooled: EvaluationTables,
    found: dict[str, tuple[Array, Array]],
    rng: np.random.Generator,
    num_draws: int,
    level: float,
) -> dict[str, tuple[float, float]]:
    check_draws(num_draws, level)
    counts, other = pooled.counts[0], pooled.other_wrong[0]
    num_classes = pooled.num_classes
    observed = np.concatenate([counts, other[:, None]], axis=1).astype(np.float64)
    if not observed.any():
        return {}
    spread = np.full(counts.shape, 0.5 / (num_classes - 1))
    np.fill_diagonal(spread, 0.5)
    one_more = observed.copy()
    one_more[:, :num_classes] += spread * (observed.sum(axis=1) > 0)[:, None]
    n = np.array(observed.sum().round(), dtype=np.int64)
    lows: dict[str, list[float]] = {key: [] for key in ORDINAL_FIGURES}
    highs: dict[str, list[float]] = {key: [] for key in ORDINAL_FIGURES}
    for weights in (observed, one_more):
        drawn = draw_rows(rng, n, weights.reshape(-1), num_draws).reshape(num_draws, num_classes, num_classes + 1)
        for key, (low, high) in ordinal_ranges(drawn[..., :num_classes], drawn[..., num_classes]).items():
            if not np.isnan(low).all():
                lows[key].append(float(np.nanquantile(low, (1 - level) / 2)))
                highs[key].append(float(np.nanquantile(high, (1 + level) / 2)))
    stretch = find_pooled_effect(pooled) ** 0.5
    limits = {"quadratic_kappa": (-1.0, 1.0), "mean_absolute_error": (0.0, num_classes - 1.0)}
    ends = {}
    for key in ORDINAL_FIGURES:
        lowest, highest = (float(end) for end in found[key])
        least, most = limits.get(key, (0.0, 1.0))
        if lows[key] and not np.isnan(lowest):
            below, above = lowest - min(lowest, *lows[key]), max(highest, *highs[key]) - highest
            lower, upper = max(lowest - stretch * below, least), min(highest + stretch * above, most)
            if upper > lower:
                ends[key] = lower, upper
    return ends


def _make_figure(
    key: str, ends: tuple[Array, Array], interval: tuple[float, float] | None, pooled: EvaluationTables
) -> Figure:
    low, high = (float(end) for end in ends)
    n = int(pooled.row_images.sum())
    value = optional_float((low + high) / 2) if high - low <= 2 * MOST_OFF else None
    reason = None
    if n == 0:
        reason = "all images are withheld" if pooled.withheld.any() else "no images"
    elif value is None:
        reason = "too many wrong answers are not told by class"
        if np.isnan(low):
            reason = "the images are all of one class"
    return Figure(
        key,
        value,
        n,
        "up" if key == "quadratic_kappa" else "down",
        interval=None if value is None else interval,
        reason=reason,
        n_withheld=int(pooled.withheld.sum()),
    )

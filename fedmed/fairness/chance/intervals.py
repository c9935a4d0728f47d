"""Intervals of figures, from evaluation tables alone.

A single proportion has Wilson's interval (Wilson, 1927). Everything else is resampled: a stratified multinomial
bootstrap (Efron, 1979) that keeps the number of images of each true class and draws the tables anew, all draws at once.
Images are taken as independent; several images of one patient make the true interval wider.

Letters: D draws, K classes.
"""

import dataclasses
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from fedmed.fairness.figures.draws import check_draws, correct_bias, or_zero, resample
from fedmed.metrics.answer_ranges import find_ranges, settle_other
from fedmed.metrics.areas import area_intervals
from fedmed.metrics.calibration import calibration_values
from fedmed.metrics.classification import area_figures, area_values, count_values, find_areas
from fedmed.metrics.tables import SCORE_BINS, EvaluationTables
from fedmed.metrics.values import Array, Figure, Values, divide_defined, mean_defined
from fedmed.seeding import make_rng

LARGEST_BRIER = 2.0
EXTREMES = ("worst_class_recall", "class_recall_gap", "class_auc_std")


@dataclasses.dataclass(frozen=True)
class _Ends:
    """Ends of intervals, shape (2,) for the value and (2,K) by class; NaN where there is none."""

    value: Array
    by_class: Array | None = None


def add_intervals(
    figures: Mapping[str, Figure], tables: EvaluationTables, seed: int, num_draws: int = 1000, level: float = 0.95
) -> dict[str, Figure]:
    """Return the figures with their intervals.

    Parameters
    ----------
    figures : mapping from str to Figure
        What :func:`fedmed.metrics.classification.compute_figures` made of ``tables``. Figures of other keys are
        returned as they are.
    tables : EvaluationTables
        Pooled over its groups.
    seed : int
        Seed of the run. The same seed gives the same intervals.
    num_draws : int
        D, at least 1.
    level : float
        Between 0 and 1.

    Returns
    -------
    dict from str to Figure
        A figure without a value has no interval either.

    Raises
    ------
    ValueError
        If ``num_draws`` or ``level`` is not allowed.

    Notes
    -----
    * Wilson: ``accuracy``, images of rare classes included, and by class ``sensitivity``, ``specificity``,
      ``macro_recall``, ``macro_precision``.
    * Means of recalls (``balanced_accuracy``, ``macro_recall``, the value of ``sensitivity``): each end is as far from
      the mean as the root of the sum of squares of the distances of the classes' Wilson ends, over the number of
      classes (Zou and Donner, 2008). A class all of whose few images are answered alike counts with its uncertainty,
      while it does not vary between draws.
    * Percentiles of the draws: ``macro_precision``, ``macro_f1``, ``kappa``, ``mcc``, ``auc``, the value of
      ``specificity``. These intervals are too narrow where classes are very small.
    * ``worst_class_recall``, ``class_recall_gap``, ``class_auc_std``: draws with the correction of
      :func:`fedmed.fairness.figures.draws.correct_bias`.
    * A figure that lies in a range, since wrong answers are not told by class: half of it is added on either side.
    * ``auc`` within sites: :func:`fedmed.metrics.areas.area_intervals`; its ``class_auc_std`` has no interval.
    * ``auc`` of histograms: the tables hold the histogram of each class's score, not which scores belong to one image.
      Draws join them by rank within a true class, the highest own score with the lowest other ones. This is exact for
      two classes and by class; the interval of the mean over more classes is too wide rather than too narrow, as it
      would be if the scores of an image were taken as independent.
    * ``ece``, ``mce``, ``classwise_ece``: by cell, number of images multinomial, number right binomial, mean confidence
      as observed. An absolute gap can only grow by chance and grows once more in every draw, so percentiles would lie
      above the truth. The ends are reflected at the figure, ``2 v - q`` (the "basic" bootstrap), and kept on their side
      of it. The lower one is 0 where draws with confidence as the chance of being right reach the figure, too. Where
      many bins are almost empty, as by class, the figure itself is too large, and so is its interval.
    * ``brier``: normal approximation from number, sum and sum of squares; there is nothing to resample.
    """
    check_draws(num_draws, level)
    pooled = tables.pool()
    rows, num_classes = _join_rows(pooled), pooled.num_classes
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    drawn = resample(make_rng(seed, "intervals", "counts"), rows, num_draws)
    draws, found = (count_values(r[..., :num_classes], None, r[..., num_classes:].sum(axis=-1)) for r in (drawn, rows))
    areas = find_areas(pooled)
    found |= area_figures(areas.values)
    if not areas.within_sites:
        draws |= area_figures(_draw_areas(pooled.scores[0], seed, num_draws))
    ends = {key: _percentiles(values, tails) for key, values in draws.items()}
    for key in EXTREMES:
        if key in draws:
            ends[key] = _Ends(np.clip(correct_bias(found[key].value, draws[key].value, tails), 0, 1))
    if areas.within_sites:
        ends["auc"] = _Ends(*area_intervals(pooled.areas[0], level))
    ends |= _calibration_ends(pooled.calibration[0], pooled.mixed[0], seed, num_draws, tails)
    ends["brier"] = _Ends(_normal_interval(pooled.brier[0], level))
    for key, by_class in _intervals_by_class(pooled.counts[0], pooled.other_wrong[0], level).items():
        ends[key] = dataclasses.replace(ends[key], by_class=by_class)
    right, n = np.diagonal(pooled.counts[0]), pooled.row_images[0]
    for key, scale in (("balanced_accuracy", 1.0), ("sensitivity", 1.0), ("macro_recall", float((n > 0).mean()))):
        ends[key] = dataclasses.replace(ends[key], value=scale * _mean_interval(right, n, level))
    rare_n, rare_right = pooled.rare[0]
    ends["accuracy"] = _Ends(np.stack(wilson_interval(right.sum() + rare_right, n.sum() + rare_n, level)))
    ends |= _widen(ends, pooled.counts[0], pooled.other_wrong[0])
    return {key: _attach(figure, ends[key]) if key in ends else figure for key, figure in figures.items()}


def wilson_interval(successes: Array, n: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Return the ends of Wilson's score interval of proportions.

    Parameters
    ----------
    successes, n : ndarray
        Of the same shape; ``0 <= successes <= n``.
    level : float
        Between 0 and 1.

    Returns
    -------
    lower, upper : ndarray
        NaN where ``n`` is 0.

    Notes
    -----
    With ``p = successes / n`` and z the normal quantile of (1 + level) / 2:
    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``.
    """
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    successes, n = np.asarray(successes, np.float64), np.asarray(n, np.float64)
    centre = divide_defined(successes + z2 / 2, n + z2)
    spread = np.sqrt(z2 * divide_defined(successes * (n - successes), n) + z2**2 / 4) / (n + z2)
    # Rounding must not push an end past a proportion of exactly 0 or 1.
    lower, upper = np.where(successes == 0, 0.0, centre - spread), np.where(successes == n, 1.0, centre + spread)
    return np.where(n > 0, lower, np.nan), np.where(n > 0, upper, np.nan)


def _join_rows(pooled: EvaluationTables) -> Array:
    """Return counts (K,K), with a column of other wrong answers only where there are any, since draws depend on it."""
    if not pooled.other_wrong.any():
        counts: Array = pooled.counts[0]
        return counts
    return np.concatenate([pooled.counts[0], pooled.other_wrong[0][:, None]], axis=1)


def _widen(ends: Mapping[str, _Ends], counts: Array, other_wrong: Array) -> dict[str, _Ends]:
    """Return intervals of figures that lie in a range: half of the range is added to what chance does."""
    counts, other_wrong = settle_other(counts, other_wrong)
    if not other_wrong.any():
        return {}
    widened = {}
    for key, one in find_ranges(counts, other_wrong).items():
        value = ends[key].value + np.array([-1.0, 1.0]) * one.reach
        widened[key] = dataclasses.replace(ends[key], value=np.clip(value, -1.0, 1.0))
    return widened


def _mean_interval(right: Array, n: Array, level: float) -> Array:
    """Return the ends of an interval of the mean recall of the classes present."""
    recall, (lower, upper) = divide_defined(right, n), wilson_interval(right, n, level)
    reach = [np.sqrt(np.nansum(np.square(recall - end))) for end in (lower, upper)]
    mean, num_present = mean_defined(recall), max((n > 0).sum(), 1)
    return np.array([mean - reach[0] / num_present, mean + reach[1] / num_present])


def _draw_areas(scores: Array, seed: int, num_draws: int) -> Values:
    rng = make_rng(seed, "intervals", "scores")
    num_classes = len(scores)
    own = np.zeros((num_draws, num_classes, SCORE_BINS))
    total = np.zeros_like(own)
    for k in range(num_classes):
        if not scores[k].any():
            continue
        cells, weights = np.unique(_join_by_rank(scores[k], k), axis=0, return_counts=True)
        is_in_bin = (cells[:, :, None] == np.arange(SCORE_BINS)).astype(np.float64)
        drawn = resample(rng, weights, num_draws).astype(np.float64)
        histograms = (drawn @ is_in_bin.reshape(len(cells), -1)).reshape(own.shape)
        own[:, k] = histograms[:, k]
        total += histograms
    return area_values(own, total - own)


def _join_by_rank(histograms: Array, own: int) -> Array:
    """Return one row of K score bins for each image of a true class, shape (n,K): own scores up, other scores down."""
    bins = [np.repeat(np.arange(SCORE_BINS), histogram) for histogram in histograms]
    return np.stack([side if c == own else side[::-1] for c, side in enumerate(bins)], axis=1)


def _calibration_ends(calibration: Array, mixed: Array, seed: int, num_draws: int, tails: Array) -> dict[str, _Ends]:
    rng = make_rng(seed, "intervals", "calibration")
    # The images without their class are one more row, which the figures by class do not have.
    n, confidence, correct = np.moveaxis(np.concatenate([calibration, mixed[None]]), -1, 0)
    drawn = resample(rng, np.rint(n).astype(np.int64), num_draws)
    mean_confidence, accuracy = (np.clip(or_zero(divide_defined(total, n)), 0, 1) for total in (confidence, correct))

    def draw(chance: Array) -> dict[str, _Ends]:
        rows = np.stack([drawn, drawn * mean_confidence, rng.binomial(drawn, chance)], axis=-1)
        values = calibration_values(rows[:, :-1], rows[:, -1])
        return {key: _percentiles(value, tails) for key, value in values.items()}

    found, as_observed, if_calibrated = calibration_values(calibration, mixed), draw(accuracy), draw(mean_confidence)
    return {key: _reflect(found[key], as_observed[key], if_calibrated[key]) for key in found}


def _normal_interval(brier: Array, level: float) -> Array:
    n, total, squares = brier
    if n < 2:
        return np.full(2, np.nan)
    mean = total / n
    variance = max(squares - n * mean**2, 0.0) / (n - 1)
    reach = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(variance / n)
    return np.array([max(mean - reach, 0.0), min(mean + reach, LARGEST_BRIER)])


def _intervals_by_class(counts: Array, other_wrong: Array, level: float) -> dict[str, Array]:
    """Return Wilson intervals (2,K); of a share in a range, from its lowest to its highest."""
    counts, other_wrong = settle_other(counts, other_wrong)
    right, n, predicted = np.diagonal(counts), counts.sum(axis=1) + other_wrong, counts.sum(axis=0)
    negatives, more = n.sum() - n, other_wrong.sum() - other_wrong
    true_negatives = negatives - predicted + right
    recall = np.stack(wilson_interval(right, n, level))
    return {
        "sensitivity": recall,
        "macro_recall": recall,
        "macro_precision": np.stack(
            [wilson_interval(right, predicted + more, level)[0], wilson_interval(right, predicted, level)[1]]
        ),
        "specificity": np.stack(
            [
                wilson_interval(true_negatives - more, negatives, level)[0],
                wilson_interval(true_negatives, negatives, level)[1],
            ]
        ),
    }


def _percentiles(draws: Values, tails: Array) -> _Ends:
    by_class = None if draws.by_class is None else [_quantiles(column, tails) for column in draws.by_class.T]
    return _Ends(_quantiles(draws.value, tails), None if by_class is None else np.stack(by_class, axis=1))


def _quantiles(draws: Array, tails: Array) -> Array:
    defined = draws[~np.isnan(draws)]
    return np.quantile(defined, tails) if len(defined) else np.full(2, np.nan)


def _reflect(found: Values, draws: _Ends, null: _Ends) -> _Ends:
    def mirror(value: Array, drawn: Array, by_chance: Array) -> Array:
        lower, upper = np.clip(2 * value - drawn[1], 0.0, value), np.maximum(2 * value - drawn[0], value)
        return np.stack([np.where(value <= by_chance[1], 0.0, lower), upper])

    if found.by_class is None or draws.by_class is None or null.by_class is None:
        return _Ends(mirror(found.value, draws.value, null.value))
    by_class = mirror(found.by_class, draws.by_class, null.by_class)
    return _Ends(mirror(found.value, draws.value, null.value), by_class)


def _attach(figure: Figure, ends: _Ends) -> Figure:
    by_class = figure.by_class
    if by_class is None or ends.by_class is None:
        return dataclasses.replace(figure, interval=_pair(figure.value, ends.value))
    pairs = tuple(_pair(value, pair) for value, pair in zip(by_class, ends.by_class.T, strict=True))
    return dataclasses.replace(figure, interval=_pair(figure.value, ends.value), by_class_interval=pairs)


def _pair(value: float | None, ends: Array) -> tuple[float, float] | None:
    return None if value is None or np.isnan(ends).any() else (float(ends[0]), float(ends[1]))

"""Intervals of figures, from evaluation tables alone.

A single proportion has Wilson's interval (Wilson, 1927), an area under the ROC curve that of DeLong on the scale of the
log-odds. What is neither is resampled: a stratified multinomial bootstrap (Efron, 1979) that keeps the number of images
of each true class and draws the tables anew, all draws at once. Where patients have several images, a row counts as
many images as it is worth (:mod:`fedmed.fairness.figures.design_effects`).

Letters: D draws, K classes.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fedmed.fairness.chance.joined_areas import join_intervals
from fedmed.fairness.chance.proportions import (
    bound_gap,
    bound_lowest,
    mean_interval,
    proportion_interval,
    score_interval,
    share_level,
)
from fedmed.fairness.figures.design_effects import (
    count_effective,
    find_design_effects,
    find_score_effect,
    pooled_effect,
)
from fedmed.fairness.figures.draws import check_draws, draw_rows, or_zero
from fedmed.metrics.answer_ranges import find_ranges, settle_other
from fedmed.metrics.areas import area_intervals, bin_areas
from fedmed.metrics.calibration import calibration_values, classwise_error, middle_probabilities
from fedmed.metrics.classification import area_values, count_values, find_areas, lacking_classes, split_scores
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array, Figure, Values, divide_defined
from fedmed.seeding import make_rng

DRAWN = ("macro_precision", "macro_f1", "kappa", "mcc", "specificity")
LOWEST = {"kappa": -1.0, "mcc": -1.0}
_ADDED = 0.5


@dataclasses.dataclass(frozen=True)
class _Ends:
    """Ends of intervals, shape (2,) for the value and (2,K) by class; NaN where there is none."""

    value: Array
    by_class: Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Answers by true class, of tables with one group."""

    counts: Array
    """(K,K)"""
    other_wrong: Array
    """(K,)"""
    effects: Array
    """Design effects (K,)."""
    told: Array
    """Classes of which images are told (K,)."""

    @property
    def n(self) -> Array:
        """Images of each class."""
        images: Array = self.counts.sum(axis=1) + self.other_wrong
        return images

    @property
    def right(self) -> Array:
        """Right answers of each class."""
        return np.diagonal(self.counts)

    @property
    def wholesale(self) -> float:
        """The design effect of all images together."""
        return pooled_effect(self.effects, self.n)


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
        A figure without a value has no interval either. No interval has width zero.

    Raises
    ------
    ValueError
        If ``num_draws`` or ``level`` is not allowed.

    Notes
    -----
    Coverage of all of these: ``simulations/benchmarks/coverage.py``.

    * :func:`fedmed.fairness.chance.proportions.proportion_interval`: ``accuracy``, images of rare classes included, and
      by class ``sensitivity``, ``specificity``, ``macro_recall``, ``macro_precision``.
    * Means of recalls (``balanced_accuracy``, ``macro_recall``, the value of ``sensitivity``, and that of
      ``specificity`` with two classes, where it is the same number):
      :func:`fedmed.fairness.chance.proportions.mean_interval`.
    * ``worst_class_recall``, ``class_recall_gap``: of the classes' intervals at a level at which all hold together.
    * Draws: ``macro_precision``, ``macro_f1``, ``kappa``, ``mcc``, the value of ``specificity``. Half an image is added
      to each cell of a class before it is drawn, and the percentiles are moved by what the addition alone changes
      (after Agresti and Min, 2005), so that answers that are all alike have their uncertainty, too.
    * A figure that lies in a range, since wrong answers are not told by class: half of it is added on either side.
    * ``auc`` by class: :func:`fedmed.metrics.areas.area_intervals`; of histograms, two scores in one bin are a tie. Its
      mean: :func:`fedmed.fairness.chance.joined_areas.join_intervals`, which is wide rather than narrow; within sites,
      an interval that holds however the classes hang together.
    * ``class_auc_std`` has none.
    * ``ece``, ``mce``, ``classwise_ece``: by bin, number of images multinomial, number right binomial, mean confidence
      as observed; true classes are not held fixed. An absolute gap can only grow by chance and grows once more in every
      draw, so percentiles would lie above the truth. The ends are reflected at the figure, ``2 v - q`` (the "basic"
      bootstrap), or moved with it where that is wider. The lower one is 0 where draws with confidence as the chance of
      being right reach the figure, too. Where many bins are almost empty the figure itself is too large, and so is its
      interval.
    * ``brier``: Student's, from number, sum and sum of squares; there is nothing to resample. Design effect:
      :func:`fedmed.fairness.figures.design_effects.find_score_effect`.
    """
    check_draws(num_draws, level)
    pooled = tables.pool()
    rows = _Rows(pooled.counts[0], pooled.other_wrong[0], find_design_effects(pooled)[0], ~lacking_classes(pooled)[0])
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    ends = _drawn_ends(rows, seed, num_draws, tails)
    ends |= _widen(ends, rows) | _recall_ends(rows, level)
    for key, by_class in _ends_by_class(rows, level).items():
        ends[key] = dataclasses.replace(ends[key], by_class=by_class)
    # Of images of rare classes no patients are told: they count as the others do.
    n, right = (pooled.rare[0] + np.array([rows.n.sum(), rows.right.sum()])) / rows.wholesale
    ends["accuracy"] = _Ends(np.stack(proportion_interval(right, n, level)))
    ends["auc"] = _area_ends(pooled, rows.effects, seed, num_draws, level)
    ends |= _calibration_ends(pooled, rows.wholesale, seed, num_draws, tails)
    ends["brier"] = _Ends(score_interval(pooled.brier[0], find_score_effect(pooled), level))
    return {key: _attach(figure, ends[key]) if key in ends else figure for key, figure in figures.items()}


def _drawn_ends(rows: _Rows, seed: int, num_draws: int, tails: Array) -> dict[str, _Ends]:
    """Return percentiles of draws about the observed figures."""
    # A column of other wrong answers only where there are any.
    table = rows.counts if not rows.other_wrong.any() else np.column_stack([rows.counts, rows.other_wrong])
    n, present = rows.n[:, None], (rows.n > 0)[:, None]
    effective = count_effective(rows.n, rows.effects)
    weights = np.where(present, table / rows.effects[:, None] + _ADDED, 0.0)
    drawn = draw_rows(make_rng(seed, "intervals", "counts"), effective, weights, num_draws)
    drawn = drawn * or_zero(divide_defined(n, effective[:, None]))
    expected = or_zero(divide_defined(weights, weights.sum(axis=1, keepdims=True))) * n
    num_classes = len(rows.counts)

    def compute(tables: Array) -> dict[str, Values]:
        return count_values(tables[..., :num_classes], None, tables[..., num_classes:].sum(axis=-1), rows.told)

    found, draws, centre = compute(table), compute(drawn), compute(expected)
    ends = {
        key: _Ends(_move(found[key].value, draws[key].value, centre[key].value, tails, LOWEST.get(key, 0.0)))
        for key in DRAWN
    }
    by_class = [
        _move(value, column, middle, tails)
        for value, column, middle in zip(
            *(_list_classes(one["macro_f1"]) for one in (found, draws, centre)), strict=True
        )
    ]
    return ends | {"macro_f1": _Ends(ends["macro_f1"].value, np.stack(by_class, axis=1))}


def _list_classes(values: Values) -> Array:
    """Return the values by class with the classes first."""
    assert values.by_class is not None
    return np.moveaxis(values.by_class, -1, 0)


def _move(value: Array, draws: Array, centre: Array, tails: Array, lowest: float = 0.0) -> Array:
    """Return percentiles of draws, moved by the distance of their centre from the value."""
    ends = _quantiles(draws, tails) - centre + value
    return np.array([np.minimum(ends[0], value), np.maximum(ends[1], value)]).clip(lowest, 1.0)


def _recall_ends(rows: _Rows, level: float) -> dict[str, _Ends]:
    right, n = rows.right / rows.effects, rows.n / rows.effects
    value = mean_interval(right, n, level)
    ends = {key: _Ends(value) for key in ("balanced_accuracy", "sensitivity")}
    # Of all classes, told or not; those without images count as 0.
    share = float((n > 0).sum() / max(rows.told.sum(), 1))
    ends["macro_recall"] = _Ends(share * value)
    if len(n) == 2 and (n > 0).all():
        ends["specificity"] = _Ends(value)
    number = int((n > 0).sum())
    recall = divide_defined(right, n)
    together = np.stack(proportion_interval(right, n, share_level(level, number)))
    pairs = np.stack(proportion_interval(right, n, share_level(level, number * (number - 1) // 2)))
    ends["worst_class_recall"] = _Ends(bound_lowest(together))
    ends["class_recall_gap"] = _Ends(bound_gap(recall, pairs).clip(0.0, 1.0))
    return ends


def _widen(ends: Mapping[str, _Ends], rows: _Rows) -> dict[str, _Ends]:
    """Return intervals of figures that lie in a range: half of the range is added to what chance does."""
    counts, other_wrong = settle_other(rows.counts, rows.other_wrong)
    if not other_wrong.any():
        return {}
    widened = {}
    for key, one in find_ranges(counts, other_wrong).items():
        value = ends[key].value + np.array([-1.0, 1.0]) * one.reach * len(rows.told) / max(rows.told.sum(), 1)
        widened[key] = dataclasses.replace(ends[key], value=np.clip(value, LOWEST.get(key, 0.0), 1.0))
    return widened


def _area_ends(pooled: EvaluationTables, effects: Array, seed: int, num_draws: int, level: float) -> _Ends:
    found = find_areas(pooled)
    own, others = split_scores(pooled.scores[0])
    numbers = pooled.areas[0] if found.of_images else bin_areas(own, others, effects)
    value, by_class = area_intervals(numbers, level)
    if found.within_sites or (found.of_images and not own.any()):
        return _Ends(value, by_class)
    if len(own) == 2:
        return _Ends(by_class[:, 0], by_class)  # one number twice
    areas = _list_classes(found.values if found.of_images else area_values(own, others))
    return _Ends(join_intervals(by_class, areas, pooled.scores[0], seed, num_draws), by_class)


def _calibration_ends(
    pooled: EvaluationTables, effect: float, seed: int, num_draws: int, tails: Array
) -> dict[str, _Ends]:
    rng = make_rng(seed, "intervals", "calibration")
    bins = pooled.calibration[0].sum(axis=0) + pooled.mixed[0]
    n, confidence, correct = np.moveaxis(bins, -1, 0)
    drawn = draw_rows(rng, count_effective(np.rint(n.sum()), np.array(effect)), n, num_draws)
    mean_confidence = np.clip(or_zero(divide_defined(confidence, n)), 0, 1)

    def draw(chance: Array) -> dict[str, Values]:
        rows = np.stack([drawn, drawn * mean_confidence, rng.binomial(drawn, chance)], axis=-1)
        return calibration_values(rows[..., None, :, :])

    # Half an image right and half an image wrong more in each bin that has any.
    accuracy = or_zero(divide_defined(correct / effect + _ADDED, n / effect + 2 * _ADDED))
    found, as_observed, if_calibrated = calibration_values(bins[None]), draw(accuracy), draw(mean_confidence)
    ends = {
        key: _Ends(_reflect(one.value, as_observed[key].value, if_calibrated[key].value, tails))
        for key, one in found.items()
    }
    return ends | {"classwise_ece": _classwise_ends(pooled.scores[0], effect, seed, num_draws, tails)}


def _classwise_ends(scores: Array, effect: float, seed: int, num_draws: int, tails: Array) -> _Ends:
    """Return ends for each class, and for the mean the means of these, which hold however the classes hang together."""
    own, others = split_scores(scores)
    num_classes = len(own)
    if not own.any():
        return _Ends(np.full(2, np.nan), np.full((2, num_classes), np.nan))
    rng = make_rng(seed, "intervals", "classwise")
    n = count_effective(np.rint(own.sum()), np.array(effect))
    found, total = classwise_error(own, others), own + others
    drawn = draw_rows(rng, np.broadcast_to(n, num_classes), total, num_draws)  # (D,K,64)
    share = or_zero(divide_defined(own / effect + _ADDED, total / effect + 2 * _ADDED))
    chance = middle_probabilities()
    observed, calibrated = (
        classwise_error(right, drawn - right) for right in (rng.binomial(drawn, share), rng.binomial(drawn, chance))
    )
    by_class = np.stack(
        [_reflect(found[k], observed[:, k], calibrated[:, k], tails) for k in range(num_classes)], axis=1
    )
    return _Ends(by_class.mean(axis=1), by_class)


def _ends_by_class(rows: _Rows, level: float) -> dict[str, Array]:
    """Return Wilson intervals (2,K); of a share in a range, from its lowest to its highest."""
    counts, other_wrong = settle_other(rows.counts, rows.other_wrong)
    right, n, predicted = np.diagonal(counts), counts.sum(axis=1) + other_wrong, counts.sum(axis=0)
    negatives, more = n.sum() - n, other_wrong.sum() - other_wrong
    true_negatives = negatives - predicted + right
    whole = rows.wholesale

    def wilson(successes: Array, number: Array, effects: Array | float = whole) -> tuple[Array, Array]:
        return proportion_interval(successes / effects, number / effects, level)

    recall = np.stack(wilson(right, n, rows.effects))
    specificity = np.stack([wilson(true_negatives - more, negatives)[0], wilson(true_negatives, negatives)[1]])
    if len(n) == 2:
        specificity = recall[:, ::-1]  # the same images and answers
    return {
        "sensitivity": recall,
        "macro_recall": recall,
        "macro_precision": np.stack([wilson(right, predicted + more)[0], wilson(right, predicted)[1]]),
        "specificity": specificity,
    }


def _quantiles(draws: Array, tails: Array) -> Array:
    defined = draws[~np.isnan(draws)]
    return np.quantile(defined, tails) if len(defined) else np.full(2, np.nan)


def _reflect(value: Array, draws: Array, null: Array, tails: Array) -> Array:
    if np.isnan(value) or np.isnan(draws).all():
        return np.full(2, np.nan)
    drawn, by_chance, mean = _quantiles(draws, tails), _quantiles(null, tails), np.nanmean(draws)
    lower = min(max(min(2 * value - drawn[1], value + drawn[0] - mean), 0.0), value)
    upper = max(2 * value - drawn[0], value + drawn[1] - mean)
    return np.array([0.0 if value <= by_chance[1] else lower, min(upper, 1.0)])


def _attach(figure: Figure, ends: _Ends) -> Figure:
    by_class = figure.by_class
    if by_class is None or ends.by_class is None:
        return dataclasses.replace(figure, interval=_pair(figure.value, ends.value))
    pairs = tuple(_pair(value, pair) for value, pair in zip(by_class, ends.by_class.T, strict=True))
    return dataclasses.replace(figure, interval=_pair(figure.value, ends.value), by_class_interval=pairs)


def _pair(value: float | None, ends: Array) -> tuple[float, float] | None:
    return (float(ends[0]), float(ends[1])) if value is not None and ends[1] > ends[0] else None

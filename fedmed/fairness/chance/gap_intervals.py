"""Intervals of disparities between groups.

They are made of the groups' own intervals, which hold for all groups (and classes) at once; see
:mod:`fedmed.fairness.chance.proportions`. Means over classes and ratios of rates are drawn anew, with the correction
of :func:`fedmed.fairness.figures.draws.correct_bias`. A standard deviation over groups has no interval: with few groups
none is valid.

Letters: D draws, G groups, K classes; two ends in the first axis.
"""

from collections.abc import Callable

import numpy as np

from fedmed.fairness.chance.proportions import (
    bound_gap,
    bound_lowest,
    bound_ratio,
    bound_scaled,
    mean_interval,
    proportion_interval,
    share_level,
)
from fedmed.fairness.figures.area_choice import choose_areas
from fedmed.fairness.figures.class_sets import find_class_set
from fedmed.fairness.figures.design_effects import find_design_effects, pooled_effect
from fedmed.fairness.figures.rates import class_rates
from fedmed.metrics.areas import PAIRS, area_intervals, bin_areas
from fedmed.metrics.classification import split_scores
from fedmed.metrics.evaluation import EvaluationTables
from fedmed.metrics.values import Array, divide_defined, mean_defined


def bound_disparities(known: EvaluationTables, level: float) -> dict[str, Array]:
    """Return the intervals of disparities that need no draws.

    Parameters
    ----------
    known : EvaluationTables
        Of the groups that are compared.
    level : float
        Between 0 and 1.

    Returns
    -------
    dict from str to ndarray, shape (2,)
        NaN where there is none.
    """
    ends: dict[str, Array] = {}
    for name, (values_G, overall, interval) in _list_figures(known).items():
        number = int((~np.isnan(values_G)).sum())
        together = interval(share_level(level, number + 1))
        ends[f"worst_group_{name}"] = bound_lowest(interval(share_level(level, number))[:, :-1])
        pairs = interval(share_level(level, number * (number - 1) // 2))[:, :-1]
        ends[f"gap_{name}"] = bound_gap(values_G, pairs)
        if name == "accuracy":
            ends["pqd"] = bound_ratio(together[:, :-1])
        elif not np.isnan(overall):
            ends[f"es_{name}"] = bound_scaled(together[:, -1], together[:, :-1])
    return ends | _bound_rates(known, level)


_Interval = Callable[[float], Array]
"""Gives for a level the intervals (2,G+1) of all groups and of all together."""


def _list_figures(known: EvaluationTables) -> dict[str, tuple[Array, float, _Interval]]:
    """Return for each figure its values by group, its value for all groups together, and their intervals."""
    right, n, effects = np.diagonal(known.counts, axis1=1, axis2=2), known.row_images, find_design_effects(known)
    rare_n, rare_right = known.rare.T
    chosen = find_class_set(n)
    kept, classes = chosen.groups, chosen.classes
    counted, rare = np.where(classes, n, 0), float(chosen.is_whole)
    whole = np.array([pooled_effect(*row) for row in zip(effects, counted, strict=True)])
    hits = np.where(kept, (np.where(classes, right, 0).sum(axis=1) + rare * rare_right) / whole, 0)
    images = np.where(kept, (counted.sum(axis=1) + rare * rare_n) / whole, 0)

    def accuracy(level: float) -> Array:
        ends = np.stack(proportion_interval(hits, images, level))
        return np.column_stack([ends, np.full(2, np.nan)])

    found: dict[str, tuple[Array, float, _Interval]] = {"accuracy": (divide_defined(hits, images), np.nan, accuracy)}
    if kept.any():
        own = np.where(kept[:, None] & classes, n / effects, 0.0)
        share = np.nan_to_num(divide_defined(right, n))
        all_n, all_right = own.sum(axis=0), (own * share).sum(axis=0)

        def balanced(level: float) -> Array:
            ends = mean_interval(np.vstack([own * share, all_right]), np.vstack([own, all_n]), level)
            return np.where(np.append(kept, True), ends, np.nan)

        values = np.where(kept, mean_defined(divide_defined(own * share, own)), np.nan)
        overall = float(mean_defined(divide_defined(all_right, all_n)))
        found["balanced_accuracy"] = values, overall, balanced
    areas = _find_areas(known, effects)
    chosen = find_class_set(areas[..., PAIRS])
    if chosen.groups.any():
        found["auc"] = _describe_areas(areas, chosen.groups, chosen.classes)
    return found


def _find_areas(known: EvaluationTables, effects: Array) -> Array:
    choice = choose_areas(known)
    if choice != "histograms":
        return known.areas if choice == "images" else np.zeros_like(known.areas)
    own, others = split_scores(known.scores)
    return np.stack([bin_areas(*sides) for sides in zip(own, others, effects, strict=True)])


def _describe_areas(areas: Array, kept: Array, classes: Array) -> tuple[Array, float, _Interval]:
    pooled = areas[kept].sum(axis=0)
    by_class = divide_defined(areas[..., 1], areas[..., PAIRS])
    values = np.where(kept, mean_defined(np.where(classes, by_class, np.nan)), np.nan)
    overall = float(divide_defined(pooled[classes, 1], pooled[classes, PAIRS]).mean())

    def interval(level: float) -> Array:
        rows = [*areas[kept][:, classes], pooled[classes]]
        ends = np.array([area_intervals(row, level)[0] for row in rows]).T
        found = np.full((2, len(kept) + 1), np.nan)
        found[:, np.append(kept, True)] = ends
        return found

    return values, overall, interval


def _bound_rates(known: EvaluationTables, level: float) -> dict[str, Array]:
    """Return the intervals of the worst class's gaps of rates, over all pairs of groups and all classes at once."""
    counted = np.flatnonzero(known.row_images.any(axis=1))
    # Where it is not told which answers the wrong ones were, the right ones are known only.
    has_answers = len(counted) > 1 and not (known.other_wrong.any() and known.num_classes > 2)
    tables = known.take(counted)
    rates = class_rates(tables.counts, tables.other_wrong)
    n, effects = tables.row_images, find_design_effects(tables)
    whole = np.array([[pooled_effect(*row)] for row in zip(effects, n, strict=True)])
    total, own = n.sum(axis=1, keepdims=True), np.where(np.isnan(rates.tpr), 0, n)
    sides = {"tpr": (rates.tpr, own / effects)}
    if has_answers:
        sides |= {"selection": (rates.selection, total / whole + 0 * own), "fpr": (rates.fpr, (total - n) / whole)}
    number_of = {"tpr": 1, "selection": 1, "fpr": 2}
    number = len(counted) * (len(counted) - 1) // 2 * known.num_classes

    def bound(name: str, factor: int) -> Array:
        rate, worth = sides[name]
        ends = np.stack(proportion_interval(np.nan_to_num(rate) * worth, worth, share_level(level, number * factor)))
        usable = ~np.isnan(rate)
        return bound_gap(rate, np.where(usable, ends, np.nan))  # (2,K)

    ends = {"equal_opportunity_difference": _fold_classes(bound("tpr", number_of["tpr"]))}
    if has_answers:
        ends["demographic_parity_difference"] = _fold_classes(bound("selection", number_of["selection"]))
        both = np.fmax(bound("tpr", number_of["fpr"]), bound("fpr", number_of["fpr"]))
        ends["equalized_odds_difference"] = _fold_classes(both)
    return ends


def bound_class_gap(known: EvaluationTables, worst_class: int, pair: tuple[int, int], level: float) -> Array:
    """Return the interval of the difference of one class's sensitivity between two groups, chosen from all of them.

    Parameters
    ----------
    known : EvaluationTables
        Of the groups that are compared.
    worst_class : int
        The class.
    pair : (int, int)
        Places of the groups with the lower and the higher sensitivity.
    level : float
        Between 0 and 1; it holds for all classes and pairs together.
    """
    number = len(known.groups) * (len(known.groups) - 1) // 2 * known.num_classes
    groups = list(pair)
    effects = find_design_effects(known)[groups, worst_class]
    right, n = (
        images[groups, worst_class] / effects
        for images in (np.diagonal(known.counts, axis1=1, axis2=2), known.row_images)
    )
    return bound_gap(right / n, np.stack(proportion_interval(right, n, share_level(level, number))))


def _fold_classes(ends: Array) -> Array:
    """Return the interval of the largest of K gaps, of intervals (2,K) that hold together."""
    largest: Array = np.fmax.reduce(ends, axis=1, initial=np.nan)
    return largest

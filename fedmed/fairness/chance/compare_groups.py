"""How figures differ between groups, with intervals and with what chance alone would do.

An interval of an extreme such as max - min is no test. So every disparity comes with its expectation and a p-value
under "all groups have the rates of all images together", and
:func:`fedmed.fairness.chance.flags.flag_attributes` decides on these alone.

Letters: D draws, G groups, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from fedmed.fairness.chance.flags import adjust_family, find_p_value
from fedmed.fairness.chance.gap_intervals import bound_class_gap, bound_disparities
from fedmed.fairness.figures.draws import check_draws, correct_bias
from fedmed.fairness.figures.gap_figures import (
    GAP_KEYS,
    RATIOS,
    GapFigure,
    compute_gaps,
    leave_out_unknown,
    list_sources,
)
from fedmed.fairness.figures.gap_sources import CountSource, GapSource
from fedmed.fairness.figures.rates import CLASS_GAP, GapValues
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array
from fedmed.seeding import make_rng

__all__ = ["GAP_KEYS", "GapFigure", "compare_groups", "compute_gaps"]

Draw = Callable[[np.random.Generator, int], tuple[Array, ...]]
_CELLS_AT_ONCE = 2_000_000
_SUMS = frozenset({"eopp1", "eopp0", "eodd"})
DRAWN = _SUMS | {"demographic_parity_ratio", "dpm", "eom", "worst_group_macro_f1", "gap_macro_f1"}
"""Disparities whose interval is drawn."""


OF_ANSWERS = frozenset(
    {
        "demographic_parity_difference",
        "demographic_parity_ratio",
        "dpm",
        "equalized_odds_difference",
        "eopp0",
        "eodd",
        "worst_group_macro_f1",
        "gap_macro_f1",
        "std_macro_f1",
    }
)
"""Disparities that need the answer to every image. Which wrong ones are told class by class differs from site to site,
and what is in the middle of a range then differs between groups without any fault of the model: they are not tested."""


def compare_groups(
    tables: EvaluationTables, seed: int, num_draws: int = 1000, level: float = 0.95
) -> dict[str, GapFigure]:
    """Compute all disparities with intervals, p-values and what chance alone would do.

    Parameters
    ----------
    tables : EvaluationTables
        Of one attribute.
    seed : int
        Seed of the run. The same seed gives the same result.
    num_draws : int
        D, at least 1, of each kind.
    level : float
        Of the intervals, between 0 and 1.

    Returns
    -------
    dict from str to GapFigure
        As :func:`compute_gaps`; flags come from :func:`fedmed.fairness.chance.flags.flag_attributes`.

    Raises
    ------
    ValueError
        If ``num_draws`` or ``level`` is not allowed.

    Notes
    -----
    Intervals: :func:`fedmed.fairness.chance.gap_intervals.bound_disparities`; of means over classes, of ratios and of
    sums D draws of every (group, true class) row from a multinomial with the observed shares and half an image more in
    each cell, with the correction of :func:`fedmed.fairness.figures.draws.correct_bias`. Standard deviations and the
    gap of the calibration error have none. Coverage: ``simulations/benchmarks/coverage.py``.

    p-values: D draws in which the answers to the images of each class are dealt out anew between the groups; ``p = (1 +
    draws at least as bad) / (1 + D)``. Groups with other shares of classes are thus expected to differ in accuracy, and
    are not blamed for it. Where patients have several images, rows count as fewer images
    (:mod:`fedmed.fairness.figures.design_effects`).
    """
    check_draws(num_draws, level)
    known, figures, null_draws = leave_out_unknown(tables), compute_gaps(tables), {}
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    for source in list_sources(known):
        name = type(source).__name__
        by_chance = _draw(source, source.draw_equal, make_rng(seed, "gaps", name, "equal"), num_draws)
        drawn: dict[str, Array] = {}
        if isinstance(source, CountSource):
            drawn = _draw(source, source.resample, make_rng(seed, "gaps", name, "resampled"), num_draws)
        for key in {key for key, figure in figures.items() if figure.value is not None} & by_chance.keys():
            figures[key] = _attach(figures[key], drawn.get(key), by_chance[key], tails)
            null_draws[key] = by_chance[key][:, -1]
    if known.other_wrong.any() and known.num_classes > 2:
        for key in OF_ANSWERS & null_draws.keys():
            figures[key] = replace(figures[key], p_value=None, chance=None, chance_mean=None)
            del null_draws[key]
    if len(known.groups) > 1:
        figures |= _bound(figures, known, level)
    return adjust_family(figures, null_draws)


def _bound(figures: Mapping[str, GapFigure], known: EvaluationTables, level: float) -> dict[str, GapFigure]:
    ends = bound_disparities(known, level)
    single = figures[CLASS_GAP]
    if single.worst_class is not None and single.worst_group is not None and single.best_group is not None:
        pair = known.groups.index(single.worst_group), known.groups.index(single.best_group)
        ends[CLASS_GAP] = bound_class_gap(known, single.worst_class, pair, level)
    return {
        key: replace(figures[key], interval=(float(pair[0]), float(pair[1])))
        for key, pair in ends.items()
        if figures[key].value is not None and not np.isnan(pair).any()
    }


def _draw(source: GapSource, draw: Draw, rng: np.random.Generator, num_draws: int) -> dict[str, Array]:
    """Return values, and means in a second column where there are any, of all disparities: (D,1) or (D,2)."""
    at_once = max(1, _CELLS_AT_ONCE // max(source.cells, 1))
    chunks: list[dict[str, Array]] = []
    for start in range(0, num_draws, at_once):
        gaps = source.compute(*draw(rng, min(at_once, num_draws - start))).gaps
        chunks.append({key: _to_columns(gap) for key, gap in gaps.items()})
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _to_columns(gap: GapValues) -> Array:
    return np.stack([gap.value] if gap.mean is None else [gap.value, gap.mean], axis=-1)


def _attach(figure: GapFigure, drawn: Array | None, by_chance: Array, tails: Array) -> GapFigure:
    defined = by_chance[~np.isnan(by_chance).any(axis=-1)]
    if figure.key == CLASS_GAP:
        assert figure.statistic is not None
        p_value = find_p_value(figure.statistic, defined[:, -1], figure.better) if len(defined) else None
        return replace(figure, p_value=p_value)
    observed = np.array([item for item in (figure.value, figure.mean) if item is not None])
    chance: list[float | None] = [None, None]
    p_value = None
    if len(defined):
        chance = [*map(float, defined.mean(axis=0)), None]
        p_value = find_p_value(observed[-1], defined[:, -1], figure.better)
    pairs = _find_pairs(figure, observed, drawn, defined, tails)
    has_mean = figure.mean is not None
    return replace(
        figure,
        interval=pairs[0] if figure.key in DRAWN else None,
        mean_interval=pairs[1] if has_mean else None,
        p_value=p_value,
        chance=chance[0],
        chance_mean=chance[1] if has_mean else None,
    )


def _find_pairs(
    figure: GapFigure, observed: Array, drawn: Array | None, by_chance: Array, tails: Array
) -> list[tuple[float, float] | None]:
    """Return intervals from draws; one reaches "no difference" (0, or a ratio of 1) where chance reaches the figure."""
    if drawn is None:
        return [None] * len(observed)
    ends = correct_bias(observed, drawn, tails)
    if len(by_chance):
        lowest, highest = np.quantile(by_chance, tails, axis=0)
        if figure.key in RATIOS:
            ends[1] = np.where(observed >= lowest, 1.0, ends[1])
        elif figure.better == "down":
            ends[0] = np.where(observed <= highest, 0.0, ends[0])
    ends = np.clip(ends, 0.0, None if figure.key in _SUMS else 1.0)
    return [None if np.isnan(pair).any() or pair[0] == pair[1] else (float(pair[0]), float(pair[1])) for pair in ends.T]

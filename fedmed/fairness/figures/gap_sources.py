"""Where disparities come from: tables of counts, of scores and of calibration, as observed and drawn anew.

Each source draws in two ways. *Resampled*: every (group, true class) row anew from its own shares, for intervals.
*Under equality*: every row from the shares of its class in all groups together, with the group's own number of images
of the class, for what chance alone does. Images of rare classes, whose class is not told, keep the rates of their group
in both, since nothing can be said about rates of their classes.

Letters: D draws (absent where nothing is drawn), G groups, K classes.
"""

from typing import NamedTuple, Protocol

import numpy as np

from fedmed.fairness.figures.draws import draw_rows, or_zero
from fedmed.fairness.figures.rates import (
    GapValues,
    Rates,
    class_rates,
    equity_scaled,
    group_gaps,
    rate_gaps,
    ratio_of_groups,
)
from fedmed.metrics.areas import pooled_areas
from fedmed.metrics.calibration import expected_error
from fedmed.metrics.classification import area_values, count_values, lacking_classes, split_scores
from fedmed.metrics.tables import SCORE_BINS, EvaluationTables
from fedmed.metrics.values import Array, divide_defined, gap_defined

COUNT_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")

Arrays = tuple[Array, ...]


class Disparities(NamedTuple):
    """All disparities that one source gives, with what they were computed from."""

    gaps: dict[str, GapValues]
    groups: dict[str, Array]
    """Key of a figure to its values, shape (D,G); NaN for a group that does not have it."""
    rates: Rates | None = None
    """Of the groups in ``GapSource.counted``."""


class GapSource(Protocol):
    """One kind of tables of at least two groups."""

    cells: int
    """Numbers in one draw; what memory it takes."""

    def observe(self) -> Arrays:
        """Return the tables as they are."""
        ...

    def draw(self, rng: np.random.Generator, num_draws: int, equal: bool) -> Arrays:
        """Return tables drawn anew, with D in front; ``equal``: under equality instead of resampled."""
        ...

    def compute(self, *arrays: Array) -> Disparities:
        """Compute disparities of such tables."""
        ...


class CountSource:
    """Tables of true against predicted class; ``counted`` are the groups with an image whose class is told."""

    def __init__(self, tables: EvaluationTables) -> None:
        self._counts, self._rare = tables.counts, tables.rare
        self._lacking, self._images = lacking_classes(tables), tables.row_images
        self.counted = np.flatnonzero(self._images.any(axis=1))
        num_groups, num_classes = self._lacking.shape
        self.cells = num_groups * num_classes * (num_groups + num_classes)
        # One more column where some wrong answers are not told class by class; else the draws stay as they are.
        self._rows = tables.counts
        if tables.other_wrong.any():
            self._rows = np.concatenate([tables.counts, tables.other_wrong[..., None]], axis=-1)
            self.cells *= num_classes  # the ranges of the figures need more room

    def observe(self) -> Arrays:
        """Return counts (G,K,K), or (G,K,K+1) with other wrong answers, and number and number right of rare classes."""
        return self._rows, self._rare

    def draw(self, rng: np.random.Generator, num_draws: int, equal: bool) -> Arrays:
        """Return the same with D in front."""
        weights = self._rows.sum(axis=0, keepdims=True) if equal else self._rows
        rows = draw_rows(rng, self._images, weights, num_draws)
        n, right = self._rare.T
        drawn = rng.binomial(n, or_zero(divide_defined(right, n)), size=(num_draws, len(n)))
        return rows, np.stack(np.broadcast_arrays(n, drawn), axis=-1)

    def compute(self, *arrays: Array) -> Disparities:
        """Compute all disparities that need neither scores nor confidences."""
        rows, rare = arrays
        num_classes = self._counts.shape[-1]
        counts, other = rows[..., :num_classes], rows[..., num_classes:].sum(axis=-1)
        found = count_values(counts, rare, other)
        overall = count_values(counts.sum(axis=-3), None, other.sum(axis=-2))["balanced_accuracy"].value
        groups = {key: found[key].value for key in COUNT_FIGURES}
        for key in ("balanced_accuracy", "macro_f1"):
            groups[key] = np.where(self._lacking.any(axis=-1), np.nan, groups[key])
        if _lacks_a_class(self._lacking, self._images):
            overall = np.full_like(overall, np.nan)
        gaps: dict[str, GapValues] = {}
        for key, values in groups.items():
            gaps |= group_gaps(key, values)
        gaps["pqd"] = ratio_of_groups(groups["accuracy"])
        gaps["es_balanced_accuracy"] = equity_scaled(overall, groups["balanced_accuracy"])
        rates = None
        if len(self.counted) > 1:
            rates = class_rates(counts[..., self.counted, :, :], other[..., self.counted, :])
            gaps |= rate_gaps(rates)
        return Disparities(gaps, groups, rates)


class ScoreSource:
    """Histograms of scores.

    Draws take a class's own images and all others apart, so that the scores of one image in different classes are drawn
    independently; by class this is right, and the AUC over several classes varies a little too much rather than too
    little.
    """

    def __init__(self, tables: EvaluationTables) -> None:
        self._own, self._others = split_scores(tables.scores)
        self._lacking, self._images = lacking_classes(tables), tables.row_images
        own_GK = self._own.sum(axis=-1)
        # Of each class: how its score is spread over images of class k, whatever the group; then mixed for each group.
        shares = divide_defined(tables.scores.sum(axis=0), own_GK.sum(axis=0)[:, None, None])
        mixed = np.einsum("gk,kcb->gcb", own_GK, or_zero(shares))
        self._equal_own = self._own.sum(axis=0, keepdims=True)
        same_class = own_GK[..., None] * or_zero(divide_defined(self._equal_own, self._equal_own.sum(-1)[..., None]))
        self._equal_others = np.maximum(mixed - same_class, 0.0)
        self.cells = 2 * own_GK.size * SCORE_BINS

    def observe(self) -> Arrays:
        """Return histograms of each class's score over its own and over all other images, each (G,K,64)."""
        return self._own, self._others

    def draw(self, rng: np.random.Generator, num_draws: int, equal: bool) -> Arrays:
        """Return the same with D in front."""
        weights = (self._equal_own, self._equal_others) if equal else (self._own, self._others)
        sides = zip((self._own, self._others), weights, strict=True)
        return tuple(draw_rows(rng, side.sum(-1).astype(np.int64), weight, num_draws) for side, weight in sides)

    def compute(self, *arrays: Array) -> Disparities:
        """Compute the disparities of the AUC."""
        own, others = arrays
        areas = area_values(own, others).value
        overall = area_values(own.sum(axis=-3), others.sum(axis=-3)).value
        values = np.where(self._lacking.any(axis=-1), np.nan, areas)
        if _lacks_a_class(self._lacking, self._images):
            overall = np.full_like(overall, np.nan)
        return Disparities(group_gaps("auc", values) | {"es_auc": equity_scaled(overall, values)}, {"auc": values})


def compare_areas(tables: EvaluationTables) -> Disparities:
    """Compute the disparities of the AUC from the areas of groups that are told without histograms.

    Of hospitals these groups are the sites. There is nothing to draw anew, so that no interval and no p-value follows.
    """
    lacking = lacking_classes(tables)
    values = np.where(lacking.any(axis=-1), np.nan, pooled_areas(tables.areas).value)
    overall = pooled_areas(tables.pool().areas[0]).value
    if _lacks_a_class(lacking, tables.row_images):
        overall = np.full_like(overall, np.nan)
    return Disparities(group_gaps("auc", values) | {"es_auc": equity_scaled(overall, values)}, {"auc": values})


class CalibrationSource:
    """Calibration tables. The mean confidence of a cell is not drawn anew but taken as it is."""

    def __init__(self, tables: EvaluationTables) -> None:
        self._calibration, self._mixed = tables.calibration, tables.mixed
        self.cells = tables.calibration.size

    def observe(self) -> Arrays:
        """Return one table (G,15,3) over all images of each group."""
        return (self._calibration.sum(axis=1) + self._mixed,)

    def draw(self, rng: np.random.Generator, num_draws: int, equal: bool) -> Arrays:
        """Return the same with D in front."""
        classes = self._calibration
        if equal:
            classes = np.broadcast_to(classes.sum(axis=0), classes.shape)
        sources = np.concatenate([classes, self._mixed[:, None]], axis=1)  # (G,K+1,15,3)
        n = np.rint(np.concatenate([self._calibration, self._mixed[:, None]], axis=1)[..., 0].sum(axis=-1))
        mean, right = (np.clip(or_zero(divide_defined(sources[..., i], sources[..., 0])), 0, 1) for i in (1, 2))
        drawn = draw_rows(rng, n.astype(np.int64), sources[..., 0], num_draws)
        cells = np.stack([drawn, drawn * mean, rng.binomial(drawn, right)], axis=-1)
        return (cells.sum(axis=-3),)

    def compute(self, *arrays: Array) -> Disparities:
        """Compute the disparity of the expected calibration error."""
        values = expected_error(arrays[0])
        skipped: Array = np.isnan(values).sum(axis=-1)
        return Disparities({"gap_ece": GapValues(gap_defined(values), skipped)}, {"ece": values})


def _lacks_a_class(lacking: Array, images: Array) -> bool:
    return bool((lacking.any(axis=0) & ~images.any(axis=0)).any())

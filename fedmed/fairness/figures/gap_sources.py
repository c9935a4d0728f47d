"""Where disparities come from: tables of counts, of scores and of calibration, as observed and drawn anew.

Each source draws *under equality*, which is what chance alone does. Answers are dealt out anew between the groups
within their true class, which is exact however few there are; histograms of scores and of confidences, on which no
flag depends, are drawn from the shares of their class in all groups together. Counts are also *resampled*, every
(group, true class) row from its own shares, for intervals. Images of rare classes, whose class is not told, keep the
rates of their group in both, since nothing can be said about rates of their classes. Where patients have several
images, a row counts as many images as it is worth (:mod:`fedmed.fairness.figures.design_effects`).

Letters: D draws (absent where nothing is drawn), G groups, K classes.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from fedmed.fairness.figures.class_sets import find_class_set
from fedmed.fairness.figures.design_effects import count_effective, find_design_effects, pooled_effect
from fedmed.fairness.figures.draws import deal_rows, draw_rows, or_zero
from fedmed.fairness.figures.rates import (
    CLASS_GAP,
    GapValues,
    Rates,
    class_gap,
    class_rates,
    equity_scaled,
    group_gaps,
    rate_gaps,
    ratio_of_groups,
)
from fedmed.metrics.areas import PAIRS, pooled_areas
from fedmed.metrics.calibration import expected_error
from fedmed.metrics.classification import area_values, count_values, find_areas, split_scores
from fedmed.metrics.tables import SCORE_BINS, EvaluationTables
from fedmed.metrics.values import Array, Values, divide_defined, gap_defined, mean_defined

MACRO = ("balanced_accuracy", "macro_f1")
"""Figures of counts that are means over the classes of :class:`fedmed.fairness.figures.class_sets.ClassSet`."""

Arrays = tuple[Array, ...]


class Disparities(NamedTuple):
    """All disparities that one source gives, with what they were computed from."""

    gaps: dict[str, GapValues]
    groups: dict[str, Array]
    """Key of a figure to its values, shape (D,G); NaN for a group that does not have it."""
    rates: Rates | None = None
    """Of the groups in ``GapSource.counted``."""
    overall: Mapping[str, Array] = {}
    """Key of a figure to its value for all compared groups together, shape (D,)."""


class GapSource(Protocol):
    """One kind of tables of at least two groups."""

    cells: int
    """Numbers in one draw; what memory it takes."""

    def observe(self) -> Arrays:
        """Return the tables as they are."""
        ...

    def draw_equal(self, rng: np.random.Generator, num_draws: int) -> Arrays:
        """Return tables drawn under equality, with D in front."""
        ...

    def compute(self, *arrays: Array) -> Disparities:
        """Compute disparities of such tables."""
        ...


class CountSource:
    """Tables of true against predicted class; ``counted`` are the groups with an image whose class is told."""

    def __init__(self, tables: EvaluationTables) -> None:
        self._counts, self._rare = tables.counts, tables.rare
        self._images, effects = tables.row_images, find_design_effects(tables)
        self._effects, self._effective = effects, count_effective(self._images, effects)
        # Of images of rare classes no patients are told: they count as the others of their group do.
        self._wholesale = np.array([pooled_effect(*row) for row in zip(effects, self._images, strict=True)])
        self.class_set = find_class_set(self._images)
        self.counted = np.flatnonzero(self._images.any(axis=1))
        num_groups, num_classes = self._images.shape
        self.cells = num_groups * num_classes * (num_groups + num_classes)
        # One more column where some wrong answers are not told class by class; else the draws stay as they are.
        self._rows = tables.counts
        if tables.other_wrong.any():
            self._rows = np.concatenate([tables.counts, tables.other_wrong[..., None]], axis=-1)
            self.cells *= num_classes  # the ranges of the figures need more room

    def observe(self) -> Arrays:
        """Return counts (G,K,K), or (G,K,K+1) with other wrong answers, and number and number right of rare classes."""
        return self._rows, self._rare

    def draw_equal(self, rng: np.random.Generator, num_draws: int) -> Arrays:
        """Return the same with D in front, drawn under equality."""
        return self._complete(deal_rows(rng, self._effective, self._rows, num_draws), rng)

    def resample(self, rng: np.random.Generator, num_draws: int) -> Arrays:
        """Return the same with D in front, each row drawn from its own shares and half an image more in each cell."""
        added = self._rows / self._effects[..., None] + 0.5
        return self._complete(draw_rows(rng, self._effective, added, num_draws), rng)

    def _complete(self, rows: Array, rng: np.random.Generator) -> Arrays:
        """Return drawn rows with the images that they stand for, and the rare classes drawn as well."""
        if (self._effective != self._images).any():
            rows = rows * or_zero(divide_defined(self._images, self._effective))[..., None]
        n, right = self._rare.T
        worth = count_effective(n, self._wholesale)
        drawn = rng.binomial(worth, or_zero(divide_defined(right, n)), size=(len(rows), len(n)))
        if (worth != n).any():
            drawn = drawn * or_zero(divide_defined(n, worth))
        return rows, np.stack(np.broadcast_arrays(n, drawn), axis=-1)

    def compute(self, *arrays: Array) -> Disparities:
        """Compute all disparities that need neither scores nor confidences."""
        rows, rare = arrays
        num_classes = self._counts.shape[-1]
        counts, other = rows[..., :num_classes], rows[..., num_classes:].sum(axis=-1)
        groups = {"accuracy": self._find_accuracy(counts, other, rare)} | self._average_classes(counts, other)
        gaps: dict[str, GapValues] = {}
        for key, values in groups.items():
            gaps |= group_gaps(key, values)
        gaps["pqd"] = ratio_of_groups(groups["accuracy"])
        overall = self._average_all(counts, other)
        gaps["es_balanced_accuracy"] = equity_scaled(overall["balanced_accuracy"], groups["balanced_accuracy"])
        rates = None
        if len(self.counted) > 1:
            rates = class_rates(counts[..., self.counted, :, :], other[..., self.counted, :])
            gaps |= rate_gaps(rates)
            gaps[CLASS_GAP] = class_gap(rates.tpr, self.worth)
        return Disparities(gaps, groups, rates, overall)

    def _find_accuracy(self, counts: Array, other: Array, rare: Array) -> Array:
        """Return the accuracies over the same classes; where that is over all, images of rare classes count, too."""
        if self.class_set.is_whole:
            value = count_values(counts, rare, other)["accuracy"].value
        else:
            value = _compute_over(counts, other, self.class_set.classes)["accuracy"].value
        return np.where(self.class_set.groups, value, np.nan)

    def _average_all(self, counts: Array, other: Array) -> dict[str, Array]:
        """Return means over the classes of the comparison, of all compared groups together."""
        kept, classes = self.class_set.groups, self.class_set.classes
        counts, other = counts[..., kept, :, :].sum(axis=-3), other[..., kept, :].sum(axis=-2)
        found = _compute_over(counts, other, classes)
        return {key: found[key].value for key in self._partial}

    def _average_classes(self, counts: Array, other: Array) -> dict[str, Array]:
        """Return means over the classes of the comparison, NaN for groups that are not compared."""
        found = _compute_over(counts, other, self.class_set.classes)
        return {key: np.where(self.class_set.groups, found[key].value, np.nan) for key in MACRO}

    @property
    def _partial(self) -> tuple[str, ...]:
        """Figures that are about the classes of the comparison, and not about all images."""
        return MACRO if self.class_set.is_whole else (*MACRO, "accuracy")

    @property
    def worth(self) -> Array:
        """How many images each row counts as, shape (groups in ``counted``, K)."""
        worth: Array = self._images[self.counted] / self._effects[self.counted]
        return worth


def _compute_over(counts: Array, other: Array, classes: Array) -> dict[str, Values]:
    """Compute figures of the images of some true classes."""
    return count_values(counts * classes[:, None], None, other * classes, classes)


class ScoreSource:
    """Histograms of scores.

    Draws take a class's own images and all others apart, so that the scores of one image in different classes are drawn
    independently; by class this is right, and the AUC over several classes varies a little too much rather than too
    little.
    """

    def __init__(self, tables: EvaluationTables) -> None:
        self._own, self._others = split_scores(tables.scores)
        own_GK = self._own.sum(axis=-1)
        self.class_set = find_class_set(own_GK)
        effects = find_design_effects(tables)
        everyone = divide_defined((effects * own_GK).sum(axis=1), own_GK.sum(axis=1))
        self.effects = effects, np.broadcast_to(np.nan_to_num(everyone, nan=1.0)[:, None], effects.shape)
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

    def draw_equal(self, rng: np.random.Generator, num_draws: int) -> Arrays:
        """Return the same with D in front."""
        weights = self._equal_own, self._equal_others
        sides = zip((self._own, self._others), weights, self.effects, strict=True)
        return tuple(
            draw_rows(rng, count_effective(side.sum(-1), effects), weight, num_draws) for side, weight, effects in sides
        )

    def compute(self, *arrays: Array) -> Disparities:
        """Compute the disparities of the AUC."""
        own, others = arrays
        kept = self.class_set.groups
        areas = _average_areas(area_values(own, others), self.class_set.classes)
        overall = _average_areas(
            area_values(own[..., kept, :, :].sum(axis=-3), others[..., kept, :, :].sum(axis=-3)), self.class_set.classes
        )
        values = np.where(kept, areas, np.nan)
        gaps = group_gaps("auc", values) | {"es_auc": equity_scaled(overall, values)}
        return Disparities(gaps, {"auc": values}, overall={"auc": overall})


def compare_areas(tables: EvaluationTables) -> Disparities:
    """Compute the disparities of the AUC from the areas of groups that compare the images themselves.

    There is nothing to draw anew: a p-value follows only where there are histograms, too, that are good enough.
    """
    class_set = find_class_set(tables.areas[..., PAIRS])
    values = _average_areas(pooled_areas(tables.areas), class_set.classes)
    values = np.where(class_set.groups, values, np.nan)
    together = find_areas(tables.take(np.flatnonzero(class_set.groups)).pool()).values
    overall = _average_areas(together, class_set.classes)
    gaps = group_gaps("auc", values) | {"es_auc": equity_scaled(overall, values)}
    return Disparities(gaps, {"auc": values}, overall={"auc": overall})


class CalibrationSource:
    """Calibration tables. The mean confidence of a cell is not drawn anew but taken as it is."""

    def __init__(self, tables: EvaluationTables) -> None:
        self._calibration, self._mixed = tables.calibration, tables.mixed
        effects = find_design_effects(tables)
        self.effects = np.array([pooled_effect(*row) for row in zip(effects, tables.row_images, strict=True)])
        # Of one class alone confidence is not honest in any group: how often it is right depends on the class.
        self._of_one_class = ((tables.row_images > 0).sum(axis=1) == 1) & (tables.rare[:, 0] == 0)
        self.cells = tables.calibration.size

    def observe(self) -> Arrays:
        """Return one table (G,15,3) over all images of each group."""
        return (self._calibration.sum(axis=1) + self._mixed,)

    def draw_equal(self, rng: np.random.Generator, num_draws: int) -> Arrays:
        """Return the same with D in front."""
        classes = np.broadcast_to(self._calibration.sum(axis=0), self._calibration.shape)
        sources = np.concatenate([classes, self._mixed[:, None]], axis=1)  # (G,K+1,15,3)
        n = np.rint(np.concatenate([self._calibration, self._mixed[:, None]], axis=1)[..., 0].sum(axis=-1))
        mean, right = (np.clip(or_zero(divide_defined(sources[..., i], sources[..., 0])), 0, 1) for i in (1, 2))
        drawn = draw_rows(rng, count_effective(n, self.effects[:, None]), sources[..., 0], num_draws)
        cells = np.stack([drawn, drawn * mean, rng.binomial(drawn, right)], axis=-1)
        return (cells.sum(axis=-3),)

    def compute(self, *arrays: Array) -> Disparities:
        """Compute the disparity of the expected calibration error."""
        values = np.where(self._of_one_class, np.nan, expected_error(arrays[0]))
        skipped: Array = np.isnan(values).sum(axis=-1)
        return Disparities({"gap_ece": GapValues(gap_defined(values), skipped)}, {"ece": values})


def _average_areas(areas: Values, classes: Array) -> Array:
    """Return the mean area over some classes, NaN without any."""
    assert areas.by_class is not None
    return mean_defined(np.where(classes, areas.by_class, np.nan))

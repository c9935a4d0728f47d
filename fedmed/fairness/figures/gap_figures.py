"""Disparities between the groups of an attribute, as observed.

Letters: G groups, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fedmed.fairness.figures.area_choice import are_fine, choose_areas, explain_absence
from fedmed.fairness.figures.class_sets import find_class_set
from fedmed.fairness.figures.extreme_groups import find_ends, find_lacking
from fedmed.fairness.figures.gap_sources import (
    CalibrationSource,
    CountSource,
    Disparities,
    GapSource,
    ScoreSource,
    compare_areas,
)
from fedmed.fairness.figures.rates import CLASS_GAP, GapValues, Rates
from fedmed.metrics.areas import PAIRS
from fedmed.metrics.site_tables import UNKNOWN
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array, max_defined, min_defined, optional_float

HIGHER_IS_BETTER = frozenset(
    {"demographic_parity_ratio", "dpm", "eom", "pqd", "es_balanced_accuracy", "es_auc"}
    | {f"worst_group_{name}" for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc")}
)
RATIOS = frozenset({"demographic_parity_ratio", "dpm", "eom", "pqd"})
RATE_FIGURES = (
    "demographic_parity_difference",
    "demographic_parity_ratio",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    "eopp1",
    "eopp0",
    "eodd",
    "dpm",
    "eom",
)
FIGURE_OF_GAP = {
    "pqd": "accuracy",
    "es_balanced_accuracy": "balanced_accuracy",
    "es_auc": "auc",
    "gap_ece": "ece",
    **{
        f"{form}_{name}": name
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc")
        for form in ("worst_group", "gap", "std")
    },
}
"""Key of a disparity to the figure of every group that it compares."""
GAP_KEYS = (*RATE_FIGURES, CLASS_GAP, *FIGURE_OF_GAP)
OVER_THE_SAME_CLASSES = frozenset({"accuracy", "balanced_accuracy", "macro_f1", "auc"})


@dataclass(frozen=True)
class GapFigure:
    """One disparity between the groups of an attribute.

    Attributes
    ----------
    key : str
        Its name in reports.
    value : float or None
        ``None`` if it cannot be computed. Of figures that exist for every class: that of the worst class.
    better : {"up", "down"}
        Which direction is an improvement.
    n : int
        Number of images of the groups compared.
    mean : float, optional
        Mean over the classes, of figures whose value is that of the worst class.
    interval, mean_interval : (float, float), optional
        Of value and mean, with bias correction.
    by_class : tuple of K (float or None), optional
        The figure of each class; ``None`` for a class that is skipped.
    skipped : int
        Number of terms that could not be computed: classes of which some group has no images (or a zero denominator),
        or, of figures that compare one figure of every group, groups that do not have it.
    reason : str, optional
        Why ``value`` is ``None``.
    p_value : float, optional
        Probability under "all groups have the rates of all images together" of a ``mean``, where there is one, or else
        of a ``value`` at least as bad. A mean has less noise than the worst of many classes.
    chance, chance_mean : float, optional
        What value and mean are expected to be under the same assumption, for groups as large as these.
    family_p : float, optional
        The p-value, adjusted for the few figures on which flags rest (:data:`fedmed.fairness.chance.flags.FLAG_KEYS`).
    flagged : bool, optional
        Whether chance is ruled out; ``None`` if that was not asked.
    worst_group, best_group : str, optional
        Groups with the lowest and the highest figure (for ``gap_ece`` the other way round), or rate in the worst class.
    worst_class : int, optional
        The class whose figure is the value.
    left_out : tuple of str
        Groups that take no part since they have no images or lack the figure; ``unknown`` is none of them.
    n_withheld : int
        Rows (site, group, true class) with images that are held back.
    classes : tuple of int, optional
        Of gaps of means over the classes: the classes over which all groups are compared. Of gaps of accuracies only
        where some group lacks a class, so that only images of these classes count.
    overall : float, optional
        The figure of all compared groups together, over the same classes.
    lacking : mapping of int to tuple of str
        Of rates: groups that lack a class and are left out for it, by class.
    statistic : float, optional
        What the p-value rests on, where that is not the mean or the value.
    limit : float, optional
        The adjusted p-value up to which it is flagged; ``None`` where it cannot be, or was not asked.
    """

    key: str
    value: float | None
    better: Literal["up", "down"]
    n: int
    mean: float | None = None
    interval: tuple[float, float] | None = None
    by_class: tuple[float | None, ...] | None = None
    skipped: int = 0
    reason: str | None = None
    p_value: float | None = None
    chance: float | None = None
    flagged: bool | None = None
    worst_group: str | None = None
    best_group: str | None = None
    mean_interval: tuple[float, float] | None = None
    chance_mean: float | None = None
    family_p: float | None = None
    worst_class: int | None = None
    left_out: tuple[str, ...] = ()
    n_withheld: int = 0
    classes: tuple[int, ...] | None = None
    overall: float | None = None
    lacking: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    statistic: float | None = None
    limit: float | None = None


def compute_gaps(tables: EvaluationTables) -> dict[str, GapFigure]:
    """Compute all disparities between the groups of ``tables``, the unknown one left out.

    Parameters
    ----------
    tables : EvaluationTables
        Of one attribute.

    Returns
    -------
    dict from str to GapFigure
        All of :data:`GAP_KEYS`, without intervals and p-values. Definitions: :mod:`fedmed.fairness.figures.rates`.
    """
    known = leave_out_unknown(tables)
    found: dict[str, GapFigure] = {}
    for source in list_sources(known):
        found |= _describe(source.compute(*source.observe()), known, source)
    if len(known.groups) > 1 and choose_areas(known) == "images":
        found |= _describe(compare_areas(known), known, None)
    return {key: found[key] if key in found else _make_absent(key, known) for key in GAP_KEYS}


def leave_out_unknown(tables: EvaluationTables) -> EvaluationTables:
    """Return the tables without the group of images whose attribute is not known."""
    return tables.take([index for index, group in enumerate(tables.groups) if group != UNKNOWN])


def list_sources(known: EvaluationTables) -> list[GapSource]:
    """Return the tables that disparities can be computed from; none of fewer than two groups."""
    if len(known.groups) < 2:
        return []
    sources: list[GapSource] = [CountSource(known)]
    if known.scores.any() and are_fine(known):
        sources.append(ScoreSource(known))
    if known.calibration.any() or known.mixed.any():
        sources.append(CalibrationSource(known))
    return sources


def _describe(found: Disparities, known: EvaluationTables, source: GapSource | None) -> dict[str, GapFigure]:
    figures = {}
    for key, gap in found.gaps.items():
        if isinstance(source, CountSource) and found.rates is not None and key in RATE_FIGURES:
            figures[key] = _make_rate_figure(key, gap, found.rates, known, source.counted)
        elif isinstance(source, CountSource) and found.rates is not None and key == CLASS_GAP:
            figures[key] = _make_class_gap(gap, found.rates.tpr, known, source)
        else:
            name = FIGURE_OF_GAP[key]
            figures[key] = _make_group_figure(key, gap, found.groups[name], known)
            if name in found.overall:
                figures[key] = _name_classes(figures[key], float(found.overall[name]), known, source)
    return figures


def _name_classes(figure: GapFigure, overall: float, known: EvaluationTables, source: GapSource | None) -> GapFigure:
    own = source.class_set if isinstance(source, CountSource | ScoreSource) else find_class_set(known.areas[..., PAIRS])
    n = figure.n
    if isinstance(source, CountSource):
        n = int(known.row_images[np.ix_(own.groups, own.classes)].sum())
    return replace(figure, n=n, classes=tuple(np.flatnonzero(own.classes).tolist()), overall=optional_float(overall))


def _make_class_gap(gap: GapValues, tpr_GK: Array, known: EvaluationTables, source: CountSource) -> GapFigure:
    """Return the class and the two groups whose sensitivities differ by most, for their numbers of images."""
    statistic, names = optional_float(gap.value), [known.groups[row] for row in source.counted]
    figure = _make_absent(CLASS_GAP, known)
    if statistic is None or gap.by_class is None:
        return replace(figure, reason="no class has images in two groups")
    worst_class = int(np.nanargmax(gap.by_class))
    low, high = find_ends(tpr_GK[:, worst_class], source.worth[:, worst_class])
    return replace(
        figure,
        value=float(tpr_GK[high, worst_class] - tpr_GK[low, worst_class]),
        n=int(known.row_images[source.counted[[low, high]], worst_class].sum()),
        skipped=int(gap.skipped),
        reason=None,
        worst_group=names[low],
        best_group=names[high],
        worst_class=worst_class,
        left_out=tuple(name for name in known.groups if name not in names),
        lacking=find_lacking(tpr_GK, names),
        statistic=statistic,
    )


def _make_rate_figure(key: str, gap: GapValues, rates: Rates, known: EvaluationTables, counted: Array) -> GapFigure:
    value, names = optional_float(gap.value), [known.groups[row] for row in counted]
    worst_class = None if value is None or gap.by_class is None else _find_worst(key, gap.by_class)
    ends: tuple[str, str] | tuple[None, None] = (None, None)
    if worst_class is not None:
        rate_G = _decisive_rate(key, rates)[:, worst_class]
        ends = names[int(np.nanargmin(rate_G))], names[int(np.nanargmax(rate_G))]
    return GapFigure(
        key,
        value,
        _direction(key),
        int(known.row_images.sum()),
        mean=None if gap.mean is None else optional_float(gap.mean),
        by_class=None if gap.by_class is None else tuple(map(optional_float, gap.by_class)),
        skipped=int(gap.skipped),
        reason=None if value is not None else _explain_rates(key, rates),
        worst_group=ends[0],
        best_group=ends[1],
        worst_class=worst_class,
        left_out=tuple(name for name in known.groups if name not in names),
        n_withheld=int(known.withheld.sum()),
        lacking=find_lacking(rates.tpr, names),
    )


def _make_group_figure(key: str, gap: GapValues, values_G: Array, known: EvaluationTables) -> GapFigure:
    value, name = optional_float(gap.value), FIGURE_OF_GAP[key]
    usable = ~np.isnan(values_G)
    ends: tuple[str, str] | tuple[None, None] = (None, None)
    if value is not None:
        lowest, highest = int(np.nanargmin(values_G)), int(np.nanargmax(values_G))
        ends = known.groups[lowest], known.groups[highest]
    reason = None
    if value is None:
        reason = "no group has a right answer" if key == "pqd" else "it is not defined for these groups"
        if usable.sum() < 2:
            needed = "two classes in common" if name in OVER_THE_SAME_CLASSES else f"the figure {name}"
            reason = f"fewer than two groups have {needed}"
    return GapFigure(
        key,
        value,
        _direction(key),
        int(_count_images(name, known)[usable].sum()),
        skipped=int(gap.skipped),
        reason=reason,
        worst_group=ends[1 if name == "ece" else 0],
        best_group=ends[0 if name == "ece" else 1],
        left_out=tuple(group for group, used in zip(known.groups, usable, strict=True) if not used),
        n_withheld=int(known.withheld.sum()),
    )


def _make_absent(key: str, known: EvaluationTables) -> GapFigure:
    if len(known.groups) < 2:
        reason = "fewer than two groups"
    elif FIGURE_OF_GAP.get(key) == "auc":
        reason = explain_absence(known)
    else:
        reason = "fewer than two groups have images"
    skipped = known.num_classes if key in (*RATE_FIGURES, CLASS_GAP) else len(known.groups)
    withheld = int(known.withheld.sum())
    return GapFigure(
        key, None, _direction(key), 0, skipped=skipped, reason=reason, left_out=known.groups, n_withheld=withheld
    )


def _direction(key: str) -> Literal["up", "down"]:
    return "up" if key in HIGHER_IS_BETTER else "down"


def _find_worst(key: str, by_class: Array) -> int:
    return int(np.nanargmin(by_class) if key in RATIOS else np.nanargmax(by_class))


def _decisive_rate(key: str, rates: Rates) -> Array:
    """Return the rate, (G,K), whose spread is the figure of a class; it is that of more spread for equalised odds."""
    if key in ("demographic_parity_difference", "demographic_parity_ratio", "dpm"):
        return rates.selection
    if key == "equalized_odds_difference":
        spread = [max_defined(rate.T) - min_defined(rate.T) for rate in (rates.fpr, rates.tpr)]
        fpr_decides = spread[0] > spread[1]
        return np.where(fpr_decides, -rates.fpr, rates.tpr)  # many false alarms are the bad end
    return rates.tpr


def _count_images(name: str, known: EvaluationTables) -> Array:
    if name == "ece":
        told: Array = np.rint(known.calibration[..., 0].sum(axis=(1, 2)) + known.mixed[..., 0].sum(axis=1))
        return told.astype(np.int64)
    has_scores = name == "auc" and known.scores.any()
    counted: Array = known.scores[:, :, 0].sum(axis=(1, 2)) if has_scores else known.row_images.sum(axis=1)
    return counted + known.rare[:, 0] if name == "accuracy" else counted


def _explain_rates(key: str, rates: Rates) -> str:
    is_shared = (~np.isnan(_decisive_rate(key, rates))).sum(axis=0) > 1
    if key in RATIOS and is_shared.any():
        return "the rate is 0 in every group"
    if np.isnan(rates.selection).all() and not np.isnan(rates.tpr).all():
        return "too many wrong answers are not told by class"
    if key in ("eopp1", "eopp0", "eodd"):
        return "no class has images in every group"
    return "no class has images in two groups"

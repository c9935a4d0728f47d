"""Figures of tables as plain data."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

import numpy as np

from fedmed.fairness.chance.intervals import add_intervals
from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES, compute_ordinal
from fedmed.metrics.answer_ranges import RANGED, settle_other
from fedmed.metrics.calibration import reliability
from fedmed.metrics.classification import MACRO_FIGURES, Figure, compute_figures, lacking_classes
from fedmed.metrics.clusters import PATIENTS
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array
from fedmed.report.content import ReportContent
from fedmed.report.schema.figures import ClassFigure, FigureEntries, FigureEntry, Reliability

CALIBRATION_FIGURES = ("ece", "mce", "classwise_ece", "brier")
OF_TOLD_IMAGES = ("accuracy", "kappa", "mcc", *ORDINAL_FIGURES)
"""Figures of all images together, which of a site or group may be images of some classes only."""
NOT_TOLD = "not told"
"""Of what sites hold back."""
_Value = TypeVar("_Value")


def describe_tables(
    tables: EvaluationTables, content: ReportContent, *, with_intervals: bool = True, reason: str | None = None
) -> FigureEntries:
    """Return all figures of tables, pooled over their groups, by key.

    Parameters
    ----------
    tables : EvaluationTables
        Any number of groups.
    content : ReportContent
        Names of the classes, seed and thresholds.
    with_intervals : bool
        Whether to draw the bootstrap.
    reason : str, optional
        Why nothing of the tables may be shown. Then every figure is n/a, the number of images too.
    """
    if reason is not None:
        empty = make_empty_tables(content.num_classes)
        figures = compute_figures(empty) | _compute_ordinal(empty, content, with_intervals=False)
        return {key: _hide_figure(figure, reason) for key, figure in figures.items()}
    figures = compute_figures(tables)
    if with_intervals:
        figures = add_intervals(figures, tables, content.seed)
    figures |= _compute_ordinal(tables, content, with_intervals=with_intervals)
    present = [bool(images) for images in tables.row_images.sum(axis=0)]
    lacking = [bool(is_lacking) for is_lacking in lacking_classes(tables.pool())[0]]
    described = {key: _describe_figure(figure, content.classes, present, lacking) for key, figure in figures.items()}
    if any(lacking):
        told = [name for name, is_lacking in zip(content.classes, lacking, strict=True) if not is_lacking]
        # Accuracy counts images of rare classes, too, whichever these are.
        for key in OF_TOLD_IMAGES[int(tables.rare.any()) :]:
            if key in described and described[key]["value"] is not None:
                described[key]["over_classes"] = told
    patients = round(tables.patients[..., PATIENTS].sum())
    for key, entry in described.items():
        if patients and key not in CALIBRATION_FIGURES:
            entry["patients"] = patients
        if entry["value"] is None and (any(lacking) or (tables.num_images == 0 and content.thresholds["k"] > 1)):
            entry["reason"] = _explain_withheld(tables, key, content, lacking) or entry["reason"]
    if settle_other(tables.counts, tables.other_wrong)[1].any():
        _explain_ranges(described, present)
    return described


def _explain_ranges(described: FigureEntries, present: list[bool]) -> None:
    """Give the reason of figures by class that are n/a, since wrong answers whose class is not told are too many."""
    for key in RANGED:
        by_class = described[key].get("by_class")
        for name, has_images in zip(by_class or (), present, strict=by_class is not None):
            if by_class and by_class[name]["value"] is None and has_images:
                by_class[name]["reason"] = "wrong answers are not told by class"


def add_pooled(figures: FigureEntries, everyone: EvaluationTables, content: ReportContent) -> FigureEntries:
    """Return figures of a site or a group, those over fewer than all classes beside that of everyone over the same.

    Parameters
    ----------
    figures : dict
        As :func:`describe_tables` gives them.
    everyone : EvaluationTables
        Of all sites or groups that may be shown.
    content : ReportContent
        Names of the classes.
    """
    partial = {key: tuple(entry["over_classes"]) for key, entry in figures.items() if "over_classes" in entry}
    pooled = {
        names: _compute_over(everyone, content, np.isin(np.array(content.classes), names))
        for names in set(partial.values())
    }
    return {
        key: entry | {"pooled": pooled[partial[key]][key].value} if key in partial else entry
        for key, entry in figures.items()
    }


def _compute_over(tables: EvaluationTables, content: ReportContent, classes: Array) -> dict[str, Figure]:
    ordinal = _compute_ordinal(tables.keep_classes(classes), content, with_intervals=False)
    return compute_figures(tables, classes) | ordinal


def _compute_ordinal(tables: EvaluationTables, content: ReportContent, *, with_intervals: bool) -> dict[str, Figure]:
    """Return the figures of ordered classes where the settings say that the classes are."""
    if not content.config.get("ordinal"):
        return {}
    return compute_ordinal(tables, content.seed if with_intervals else None)


def _explain_withheld(tables: EvaluationTables, key: str, content: ReportContent, lacking: list[bool]) -> str | None:
    """Return why a figure is n/a where classes are held back, with the names of the classes; None if not for that.

    Not "too few": a class may also be held back since another one, of too few, would follow from it.
    """
    if tables.num_images == 0:
        return NOT_TOLD
    if key not in MACRO_FIGURES and key not in OF_TOLD_IMAGES:
        return None
    names = [name for name, is_lacking in zip(content.classes, lacking, strict=True) if is_lacking]
    return f"{NOT_TOLD}: {', '.join(names)}"


def describe_calibration(tables: EvaluationTables, content: ReportContent) -> FigureEntries:
    """Return the calibration figures of tables with intervals, without drawing those of the scores."""
    without_scores = dataclasses.replace(tables, scores=np.zeros_like(tables.scores), areas=np.zeros_like(tables.areas))
    return keep_calibration(describe_tables(without_scores, content))


def keep_calibration(figures: Mapping[str, FigureEntry]) -> FigureEntries:
    """Return the calibration figures among described figures, as a whole and not by class."""
    return {key: drop_classes(figures[key]) for key in CALIBRATION_FIGURES}


def drop_classes(figure: FigureEntry) -> FigureEntry:
    """Return a described figure as a whole and not by class."""
    whole = figure.copy()
    whole.pop("by_class", None)
    return whole


def describe_reliability(tables: EvaluationTables) -> Reliability:
    """Return the points of a reliability diagram; a mean of an empty bin is NaN, as in any figure before it is JSON."""
    points = reliability(tables)
    return {
        "n": points["n"].tolist(),
        "confidence": points["confidence"].tolist(),
        "accuracy": points["accuracy"].tolist(),
    }


def make_empty_tables(num_classes: int, groups: Collection[str] = ("all",)) -> EvaluationTables:
    """Return tables without any image."""
    return EvaluationTables.make(tuple(groups), num_classes)


def name_classes(classes: tuple[str, ...], values: Iterable[_Value]) -> dict[str, _Value]:
    """Return K values by the name of the class."""
    return dict(zip(classes, values, strict=True))


def _hide_figure(figure: Figure, reason: str) -> FigureEntry:
    return {"value": None, "interval": None, "n": None, "n_withheld": None, "better": figure.better, "reason": reason}


def _describe_figure(figure: Figure, classes: tuple[str, ...], present: list[bool], lacking: list[bool]) -> FigureEntry:
    described: FigureEntry = {
        "value": figure.value,
        "interval": figure.interval,
        "n": figure.n,
        "n_withheld": figure.n_withheld,
        "better": figure.better,
    }
    if figure.value is None:
        described["reason"] = figure.reason or "not defined for these images"
    elif figure.bound is not None:
        described["bound"] = figure.bound
    elif figure.within_sites:
        described["within_sites"] = True
    if figure.classes is not None:
        described["over_classes"] = [classes[k] for k in figure.classes]
    if figure.by_class is not None:
        intervals = figure.by_class_interval or (None,) * len(classes)
        described["by_class"] = {
            name: _describe_class(value, interval, _explain_absence(figure.key, has_images, is_lacking))
            for name, value, interval, has_images, is_lacking in zip(
                classes, figure.by_class, intervals, present, lacking, strict=True
            )
        }
    return described


def _describe_class(value: float | None, interval: tuple[float, float] | None, absence: str) -> ClassFigure:
    if value is None:
        return {"value": value, "interval": interval, "reason": absence}
    return {"value": value, "interval": interval}


def _explain_absence(key: str, has_images: bool, is_lacking: bool) -> str:
    if not has_images:
        return NOT_TOLD if is_lacking else "no image of this class"
    return "never predicted" if key == "macro_precision" else "not defined for this class"

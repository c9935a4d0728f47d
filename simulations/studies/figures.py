"""The figures of a study: where they are in a cell's result, which direction is better, and what people call them.

A *class group* is a name for some of the classes, for example ``tail``: its figures are means over its classes.
"""

from collections.abc import Iterable, Mapping, Sequence

from fedmed.errors import ConfigError, suggest_nearest
from fedmed.report.drawing.wording import LABELS
from simulations.studies.results import CellResult, Figure, Gap, Part, SiteFigure

COUNTS = {
    "benefit.better": ("Sites better than their own model", "up"),
    "benefit.worse": ("Sites worse than their own model", "down"),
}
"""Numbers of sites: what they are called, and which direction is better."""

BY_CLASS = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auc": "AUC",
    "macro_f1": "F1",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "classwise_ece": "calibration error",
}
"""Figures that reports hold by class, and what the one of a class is called."""

_CLASSES = "classes."

ClassGroups = Mapping[str, Sequence[str]]
"""Name of a class group -> names of its classes."""


def read_figure(result: CellResult, figure: str, class_groups: ClassGroups | None = None) -> float | None:
    """Return one figure of a cell's result, None where it does not have it.

    Parameters
    ----------
    result : CellResult
        What the cell found.
    figure : str
        ``KEY``, ``gaps.ATTRIBUTE.KEY``, ``groups.ATTRIBUTE.GROUP.KEY``, ``classes.GROUP.KEY`` or ``benefit.VERDICT``.
    class_groups : mapping of str to sequence of str, optional
        The classes of every class group.
    """
    if figure in COUNTS:
        summary = result.get("benefit_summary", {})
        return float(len(summary[figure.partition(".")[2]])) if any(summary.values()) else None
    if figure.startswith(_CLASSES):
        return _read_class_group(result.get("figures", {}), figure, class_groups)
    value = _find_entry(result, figure).get("value")
    return None if value is None else float(value)


def read_sites(result: CellResult, figure: str, class_groups: ClassGroups | None = None) -> dict[str, float]:
    """Return one figure by site, for the sites that have it; of a class group those that have all of its classes."""
    found = {}
    for site, figures in result.get("sites", {}).items():
        if figure.startswith(_CLASSES):
            value = _read_class_group(figures, figure, class_groups)
        else:
            value = figures.get(figure, {}).get("value")
        if value is not None:
            found[site] = float(value)
    return found


def explain_absence(result: CellResult, figure: str, class_groups: ClassGroups) -> str | None:
    """Return why the figure of a class group is not defined in a cell's result; None where it is, and for others."""
    if not figure.startswith(_CLASSES):
        return None
    group, key = split_class_figure(figure)
    by_class = result.get("figures", {}).get(key, {}).get("by_class")
    if by_class is None:
        return f"the cell was run before {BY_CLASS[key]} was kept by class"
    lacking = [name for name in class_groups[group] if by_class.get(name) is None]
    return f"no {BY_CLASS[key]} of {', '.join(lacking)}" if lacking else None


def find_direction(results: Iterable[CellResult], figure: str) -> str | None:
    """Return whether ``up`` or ``down`` is better, as the reports say; None before the first cell is done."""
    if figure in COUNTS:
        return COUNTS[figure][1]
    for result in results:
        # A group's figure has the direction of the same figure of all images.
        for name in (figure, figure.rpartition(".")[2]):
            direction = _find_entry(result, name).get("better")
            if direction:
                return str(direction)
    return None


def label_study_figure(figure: str) -> str:
    """Return the name of a study's figure for people: ``Worst group's accuracy (sex)``."""
    if figure in COUNTS:
        return COUNTS[figure][0]
    if figure.startswith(_CLASSES):
        group, key = split_class_figure(figure)
        return f"Mean {BY_CLASS[key]} of the {group.replace('_', ' ')} classes"
    kind, _, rest = figure.partition(".")
    key = rest.rpartition(".")[2] if rest else kind
    label = LABELS.get(key, key.replace("_", " ").capitalize())
    return f"{label} ({rest.rpartition('.')[0].replace('.', ': ')})" if rest else label


def split_class_figure(figure: str) -> tuple[str, str]:
    """Return the class group and the key of ``classes.GROUP.KEY``."""
    group, _, key = figure.removeprefix(_CLASSES).partition(".")
    return group, key


def check_class_figures(figures: Iterable[str], class_groups: ClassGroups) -> None:
    """Check that figures of class groups name a group that there is and a figure that is known by class.

    Raises
    ------
    ValueError
        With what is allowed.
    """
    for figure in figures:
        if not figure.startswith(_CLASSES):
            continue
        group, key = split_class_figure(figure)
        if group not in class_groups:
            raise ValueError(
                f"the figure '{figure}' is of the class group '{group}'.{suggest_nearest(group, class_groups)} "
                f"Allowed, as 'class_groups' says: {', '.join(class_groups) or 'none'}"
            )
        if key not in BY_CLASS:
            raise ValueError(
                f"the figure '{figure}' is not known by class.{suggest_nearest(key, BY_CLASS)} "
                f"Allowed after 'classes.{group}.': {', '.join(BY_CLASS)}"
            )


def check_class_groups(class_groups: ClassGroups, classes: Sequence[str], where: str) -> None:
    """Check that class groups name classes of the data.

    Parameters
    ----------
    class_groups : mapping of str to sequence of str
        The classes of every class group.
    classes : sequence of str
        Names of the classes of the data; empty where they are not known, as in the cells of older studies.
    where : str
        Which study and arm, for the message.

    Raises
    ------
    ConfigError
        With the group, what was found, what is allowed and the nearest class.
    """
    for group, names in class_groups.items():
        for name in names:
            if classes and name not in classes:
                raise ConfigError(
                    f"{where}: 'class_groups.{group}' names the class '{name}'.{suggest_nearest(name, classes)} "
                    f"Allowed: {', '.join(classes)}."
                )


def _read_class_group(
    figures: Mapping[str, Figure] | Mapping[str, SiteFigure], figure: str, class_groups: ClassGroups | None
) -> float | None:
    """Return the mean of a figure over the classes of a group, None where one of them has none."""
    group, key = split_class_figure(figure)
    by_class = figures.get(key, {}).get("by_class", {})
    values = [by_class.get(name) for name in (class_groups or {})[group]]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _find_entry(result: CellResult, figure: str) -> Figure | Gap | Part:
    """Return what a result holds of a figure that is no class group's; an empty one where it has none."""
    match figure.split(".", 3 if figure.startswith("groups.") else 2):
        case ["groups", attribute, group, key]:
            return result.get("groups", {}).get(attribute, {}).get(group, {}).get(key, {})
        case ["gaps", attribute, key]:
            return result.get("gaps", {}).get(attribute, {}).get(key, {})
        case ["figures", key] | [key]:
            return result.get("figures", {}).get(key, {})
    return {}

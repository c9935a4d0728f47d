"""The page's part on ordered classes: how far answers are off, for the whole, by site and by patient group."""

from fedmed.fairness.figures.groups import is_crossing
from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES
from fedmed.report.drawing.markup import Cell, Numbers, Table, show_name
from fedmed.report.drawing.wording import EXPLANATIONS, count, head_attribute, label_figure
from fedmed.report.sections.values import Values

MOST_ROWS = 20
SITE = "site"


def describe_ordinal(numbers: Numbers) -> Values | None:
    """Return the section on ordered classes, None where the classes are not ordered."""
    if ORDINAL_FIGURES[0] not in numbers.get("figures"):
        return None
    rows: list[list[Cell]] = [["All images", *_list_cells(numbers, ("figures",))]]
    folded: list[list[Cell]] = []
    for name in numbers.get("sites"):
        _add(rows, folded, [show_name(f"Site: {name}"), *_list_cells(numbers, ("sites", name, "test"))])
    for attribute, groups in numbers.get("groups").items():
        for group in groups if attribute != SITE else ():
            label = show_name(f"{head_attribute(attribute)}: {group}")
            row: list[Cell] = [label, *_list_cells(numbers, ("groups", attribute, group))]
            _add(rows if not is_crossing(attribute) else folded, folded, row)
    columns = ["Images of", "Number", *map(label_figure, ORDINAL_FIGURES)]
    caption = "Figures of ordered classes with 95 % intervals. Images whose class is not told have no part in them."
    return {
        "classes": numbers.get("classes"),
        "table": Table(caption, columns, rows),
        "folded": Table(caption, columns, folded) if folded else None,
        "rest": f"The other {count(len(folded), 'row')}",
        "terms": [(label_figure(key), EXPLANATIONS[key]) for key in ORDINAL_FIGURES],
    }


def _add(rows: list[list[Cell]], folded: list[list[Cell]], row: list[Cell]) -> None:
    (rows if len(rows) < MOST_ROWS else folded).append(row)


def _list_cells(numbers: Numbers, path: tuple[str, ...]) -> list[Cell]:
    figures = numbers.get(*path)
    if ORDINAL_FIGURES[0] not in figures:
        return ["n/a"] * (len(ORDINAL_FIGURES) + 1)
    cells: list[Cell] = [numbers.figure_and_interval(*path, key) for key in ORDINAL_FIGURES]
    return [numbers.show(*path, ORDINAL_FIGURES[0], "n", missing="n/a"), *cells]

"""The page's part on ordered classes: how far answers are off, for the whole, by site and by patient group."""

from fedmed.fairness.figures.groups import is_crossing
from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES
from fedmed.report.drawing.markup import Numbers, escape, render_fold, render_section, render_table, show_name
from fedmed.report.drawing.wording import EXPLANATIONS, count, head_attribute, label_figure

MOST_ROWS = 20
SITE = "site"


def render_ordinal(numbers: Numbers) -> str:
    """Return the section, or nothing where the classes are not ordered."""
    if ORDINAL_FIGURES[0] not in numbers.get("figures"):
        return ""
    rows = [["All images", *_list_cells(numbers, ("figures",))]]
    folded: list[list[str]] = []
    for name in numbers.get("sites"):
        _add(rows, folded, [f"Site: {show_name(name)}", *_list_cells(numbers, ("sites", name, "test"))])
    for attribute, groups in numbers.get("groups").items():
        for group in groups if attribute != SITE else ():
            label = f"{show_name(head_attribute(attribute))}: {show_name(group)}"
            row = [label, *_list_cells(numbers, ("groups", attribute, group))]
            _add(rows if not is_crossing(attribute) else folded, folded, row)
    columns = ["Images of", "Number", *map(label_figure, ORDINAL_FIGURES)]
    caption = "Figures of ordered classes with 95 % intervals. Images whose class is not told have no part in them."
    order = " &lt; ".join(map(show_name, numbers.get("classes")))
    explained = "".join(
        f"<li><strong>{escape(label_figure(key))}</strong>: {escape(EXPLANATIONS[key])}</li>" for key in ORDINAL_FIGURES
    )
    more = render_fold(f"The other {count(len(folded), 'row')}", render_table(caption, columns, folded))
    return render_section(
        "ordinal",
        "Ordered classes: how far are the answers off?",
        f"<p>The classes are ordered: {order}. To take one for its neighbour is a smaller fault than to take it for a "
        "class farther away.</p>",
        render_table(caption, columns, rows),
        more if folded else "",
        f"<ul>{explained}</ul>",
    )


def _add(rows: list[list[str]], folded: list[list[str]], row: list[str]) -> None:
    (rows if len(rows) < MOST_ROWS else folded).append(row)


def _list_cells(numbers: Numbers, path: tuple[str, ...]) -> list[str]:
    figures = numbers.get(*path)
    if ORDINAL_FIGURES[0] not in figures:
        return ["n/a"] * (len(ORDINAL_FIGURES) + 1)
    cells = [numbers.figure_and_interval(*path, key) for key in ORDINAL_FIGURES]
    return [numbers.show(*path, ORDINAL_FIGURES[0], "n", missing="n/a"), *cells]

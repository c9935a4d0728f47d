"""The page's part on the slope and the intercept of calibration."""

from collections.abc import Sequence

from fedmed.fairness.figures.groups import is_crossing
from fedmed.report.drawing.markup import Numbers, escape, render_fold, render_table, show_name
from fedmed.report.drawing.wording import count, head_attribute
from fedmed.report.schema.slope import SlopeEntry, SlopesEntry

MOST_ROWS = 20
_COLUMNS = ("slope", "intercept", "in_the_large")
_EXPLAINED = (
    "The right answers are explained by the log-odds of the stated confidence. An honest model has a slope of 1 and an "
    "intercept of 0. A slope below 1: the confidence is spread too far, high ones are too high and low ones too low. "
    "Intercept at slope 1: below 0 the model is too sure on the whole, above 0 not sure enough. An interval that holds "
    "1, or 0, is no proof that the model is honest; few images make it wide."
)


def render_slopes(numbers: Numbers) -> str:
    """Return the table, or nothing where a report of before has none."""
    slopes: SlopesEntry | None = numbers.get("calibration").get("slopes")
    if slopes is None or not slopes["pooled"]["n"]:
        return ""
    base = ("calibration", "slopes")
    rows = [["All images", *_list_cells(numbers, (*base, "pooled"))]]
    folded: list[list[str]] = []
    for name in slopes["sites"]:
        own = [f"Site: {show_name(name)}", *_list_cells(numbers, (*base, "sites", name))]
        (rows if len(rows) < MOST_ROWS else folded).append(own)
    for attribute, groups in slopes["groups"].items():
        for group in groups:
            label = f"{show_name(head_attribute(attribute))}: {show_name(group)}"
            own = [label, *_list_cells(numbers, (*base, "groups", attribute, group))]
            (folded if is_crossing(attribute) or len(rows) >= MOST_ROWS else rows).append(own)
    columns = ["Images of", "Number", "Slope", "Intercept", "Intercept at slope 1"]
    when = " after the temperature" if numbers.get("calibration", "temperature") is not None else ""
    caption = f"Calibration slope and intercept{when}, from the bins of confidence, with 95 % intervals."
    more = render_fold(f"The other {count(len(folded), 'row')}", render_table(caption, columns, folded))
    table = render_table(caption, columns, rows) + (more if folded else "")
    return f"<h3>Slope and intercept</h3>\n<p>{_EXPLAINED}</p>\n{table}"


def _list_cells(numbers: Numbers, path: Sequence[str]) -> list[str]:
    entry: SlopeEntry = numbers.get(*path)
    missing = f"n/a ({escape(entry['reason'])})"
    cells = [
        missing if numbers.get(*path, key) is None else numbers.figure_and_interval(*path, key) for key in _COLUMNS
    ]
    return [numbers.show(*path, "n"), *cells]

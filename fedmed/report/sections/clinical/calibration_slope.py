"""The page's part on the slope and the intercept of calibration."""

from collections.abc import Sequence

from fedmed.report.drawing.markup import Cell, Numbers, Table, show_name
from fedmed.report.drawing.wording import count, head_attribute
from fedmed.report.schema.slope import SlopeEntry, SlopesEntry
from fedmed.report.sections.values import Values

MOST_ROWS = 20
_COLUMNS = ("slope", "intercept", "in_the_large")


def describe_slopes(numbers: Numbers) -> Values | None:
    """Return the table, None where a report of before has none."""
    slopes: SlopesEntry | None = numbers.get("calibration").get("slopes")
    if slopes is None or not slopes["pooled"]["n"]:
        return None
    base = ("calibration", "slopes")
    rows: list[list[Cell]] = [["All images", *_list_cells(numbers, (*base, "pooled"))]]
    folded: list[list[Cell]] = []
    for name in slopes["sites"]:
        own: list[Cell] = [show_name(f"Site: {name}"), *_list_cells(numbers, (*base, "sites", name))]
        (rows if len(rows) < MOST_ROWS else folded).append(own)
    for attribute, groups in slopes["groups"].items():
        for group in groups:
            label = show_name(f"{head_attribute(attribute)}: {group}")
            folded.append([label, *_list_cells(numbers, (*base, "groups", attribute, group))])
    columns = ["Images of", "Number", "Slope", "Intercept", "Intercept at slope 1"]
    temperature = numbers.get("calibration", "temperature")
    when = " after the temperature" if temperature is not None and temperature["temperature"] != 1 else ""
    caption = f"Calibration slope and intercept{when}, from the bins of confidence, with 95 % intervals."
    return {
        "table": Table(caption, columns, rows),
        "folded": Table(caption, columns, folded) if folded else None,
        "rest": f"The other {count(len(folded), 'row')}",
    }


def _list_cells(numbers: Numbers, path: Sequence[str]) -> list[Cell]:
    entry: SlopeEntry = numbers.get(*path)
    missing = f"n/a ({entry['reason']})"
    cells: list[Cell] = [
        missing if numbers.get(*path, key) is None else numbers.figure_and_interval(*path, key) for key in _COLUMNS
    ]
    return [numbers.show(*path, "n"), *cells]

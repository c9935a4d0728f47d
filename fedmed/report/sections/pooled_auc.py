"""The exact AUC of a simulation beside the one that the sites' tables give."""

from fedmed.report.drawing.markup import Cell, Numbers, Table, show_name
from fedmed.report.schema.pooled_auc import PooledAucEntry
from fedmed.report.sections.values import Values

PLACE = "pooled_auc"
_WHOLE = "Mean"


def describe_pooled_auc(numbers: Numbers) -> Values | None:
    """Return what the results show of it, None where it is not known."""
    entry: PooledAucEntry | None = numbers.document.get(PLACE)  # type: ignore[assignment]  # of a document
    if entry is None:
        return None
    if entry["difference"] is None:
        return {"reason": entry["reason"] or "not known", "table": None}
    return {
        "reason": None,
        "is_partial": (numbers.get("figures", "auc")["n"] or 0) < entry["n"],
        "within_sites": bool(numbers.get("figures", "auc").get("within_sites")),
        "left_out": [name for name in numbers.get("classes") if name not in entry["over_classes"]],
        "table": Table(
            "AUC over all sites' test images at once, beside that of the table above.",
            ["Class", "All images at once", "As above", "Difference"],
            [_list_row(numbers, name) for name in (None, *entry["over_classes"])],
        ),
    }


def _list_row(numbers: Numbers, name: str | None) -> list[Cell]:
    place = (PLACE,) if name is None else (PLACE, "by_class", name)
    return [
        _WHOLE if name is None else show_name(name),
        numbers.show(*place, "exact"),
        numbers.show(*place, "shown"),
        numbers.show_signed(*place, "difference"),
    ]

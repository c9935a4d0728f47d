"""Which images were found, and which of them were left out and why, as far as a page knows it."""

from collections.abc import Mapping

from markupsafe import Markup

from fedmed.report.drawing.markup import EMPTY, Cell, Numbers, join, show_name
from fedmed.report.drawing.templates import fill
from fedmed.report.schema.flow import DataFlow, FoundEntry
from fedmed.report.sections.values import Values

REASONS = {
    "unreadable": "file missing or unreadable",
    "repeated": "file named twice",
    "contradictory": "file named with different values",
    "no_label": "no label",
    "no_class": "label is not one of the classes",
    "no_file": "no file name",
    "no_site": "no site",
    "broken_row": "row of the table is broken",
    "settings": "left out by data.max_train_images or data.long_tail",
    "withdrawn": "patient withdrew, or left out beside one who did",
}
_PLACE = ("flow", "found")


def find_found(numbers: Numbers) -> FoundEntry | None:
    """Return images found and left out, None where the page does not know them."""
    flow: DataFlow | None = numbers.document.get("flow")  # type: ignore[assignment]  # of a document
    return None if flow is None else flow.get("found")


def describe_found(numbers: Numbers) -> Values | None:
    """Return how many images were found and left out by reason, for the first page."""
    found = find_found(numbers)
    if found is None:
        return None
    return {"reasons": _say_reasons(numbers, found["excluded"])}


def list_found(numbers: Numbers, site: str) -> list[Cell]:
    """Return the cells of a site's row: found, and left out by reason."""
    found = find_found(numbers)
    if found is None or site not in found["sites"]:
        return ["not known", "not known"]
    place = (*_PLACE, "sites", site)
    return [numbers.show(*place, "found"), _say_reasons(numbers, found["sites"][site]["excluded"], *place) or "none"]


def _say_reasons(numbers: Numbers, excluded: Mapping[str, int], *place: str) -> Markup:
    """Return the reasons with their numbers, the most frequent first."""
    path = place or _PLACE
    ordered = sorted(excluded, key=lambda reason: (-excluded[reason], reason))
    lines = [
        fill("{} {}", numbers.show(*path, "excluded", reason), REASONS.get(reason) or show_name(reason))
        for reason in ordered
        if excluded[reason]
    ]
    return join(lines, "; ") if lines else EMPTY

"""What is wrong with an operating point, in sentences: it fails its aim, is of no use, or lets nobody through."""

from fedmed.report.drawing.markup import Cell, Numbers
from fedmed.report.drawing.templates import fill
from fedmed.report.schema.clinical import ClinicalPart

LOWEST_SPECIFICITY = 0.05
SHOWN_DIGITS = 3
_WHOLE = ("clinical", "whole")


def find_failures(numbers: Numbers) -> list[Cell]:
    """Return a sentence for each thing that is wrong with the operating point on the test images.

    The stated sensitivity lies above the whole interval of the sensitivity; net benefit is not above that of an alert
    for every image and that of none, as they are shown; the specificity is below :data:`LOWEST_SPECIFICITY`.
    """
    part: ClinicalPart | None = numbers.document.get("clinical")  # type: ignore[assignment]  # of a document
    if part is None or "whole" not in part:
        return []
    found: list[Cell] = []
    stated, entry = part["stated_sensitivity"], part["whole"]
    interval, specificity = entry["sensitivity"]["interval"], entry["specificity"]["value"]
    if stated is not None and interval is not None and interval[1] < stated:
        found.append(
            fill(
                "The stated sensitivity of {} was reached on validation images; on test images it is {} ({} to {}): "
                "less than stated.",
                numbers.show("clinical", "stated_sensitivity"),
                numbers.show(*_WHOLE, "sensitivity", "value"),
                *(numbers.show(*_WHOLE, "sensitivity", "interval", side) for side in (0, 1)),
            )
        )
    if is_useless(part):
        found.append(
            fill(
                "Alerts at this threshold are of no use by net benefit: it is {}, that of an alert for every image {} "
                "and that of none 0.",
                numbers.show(*_WHOLE, "net_benefit"),
                numbers.show(*_WHOLE, "net_benefit_all"),
            )
        )
    if specificity is not None and specificity < LOWEST_SPECIFICITY:
        found.append(
            fill(
                "Nearly every image raises an alert: of the images without such a class only a share of {} has none.",
                numbers.show(*_WHOLE, "specificity", "value"),
            )
        )
    return found


def is_useless(part: ClinicalPart) -> bool:
    """Return whether net benefit is not above that of an alert for every image and that of none."""
    entry = part.get("whole")
    value, everybody = (None, None) if entry is None else (entry["net_benefit"], entry.get("net_benefit_all"))
    if value is None or everybody is None:
        return False
    return round(value, SHOWN_DIGITS) <= round(max(everybody, 0.0), SHOWN_DIGITS)


def sum_up_alerts(numbers: Numbers) -> Cell | None:
    """Return the first page's line on alerts; None where none were asked for."""
    part: ClinicalPart | None = numbers.document.get("clinical")  # type: ignore[assignment]  # of a document
    if part is None:
        return None
    if part["threshold"] is None:
        return "No operating point could be chosen; none is in use."
    if "whole" not in part:
        return "An operating point was chosen, and no test image has been scored with it."
    told = fill(
        "From a probability of {} on an alert is raised: sensitivity {}, specificity {}.",
        numbers.show("clinical", "probability"),
        *(_show_share(numbers, key) for key in ("sensitivity", "specificity")),
    )
    if not is_useless(part):
        return told
    return fill("{} Alerts at this threshold are of no use by net benefit.", told)


def _show_share(numbers: Numbers, key: str) -> Cell:
    interval = numbers.interval(*_WHOLE, key)
    value = numbers.figure(*_WHOLE, key)
    return fill("{} ({})", value, interval) if interval else value

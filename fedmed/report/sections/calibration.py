"""The page's part on calibration: the temperature, and how honest the stated confidence is before and after it."""

from markupsafe import Markup

from fedmed.report.drawing.markup import Cell, Numbers, Table, show_name
from fedmed.report.drawing.plots import draw_reliability
from fedmed.report.drawing.small_reliability import draw_small_reliability
from fedmed.report.drawing.templates import fill
from fedmed.report.drawing.wording import count, head_attribute
from fedmed.report.schema.figures import FigureEntries, GroupCalibration, Reliability
from fedmed.report.sections.clinical.calibration_slope import describe_slopes
from fedmed.report.sections.method import is_coarse
from fedmed.report.sections.values import Values
from fedmed.storage.records import TemperatureRecord

MOST_SMALL = 12
MOST_ROWS = 20
SITE = "site"
COLUMNS = {"ece": "ECE", "brier": "Brier"}


def describe_calibration(numbers: Numbers) -> Values:
    """Return the section on calibration."""
    forms = ["before", "after"] if _has_before(numbers) else ["after"]
    pooled = [found for form in forms if (found := _draw_pooled(numbers, form)) is not None]
    table, folded = _list_figures(numbers)
    return {
        "temperature": _describe_temperature(numbers),
        "table": table,
        "folded": folded,
        "rest": f"The other {count(len(folded.rows), 'group')}" if folded else "",
        "slopes": describe_slopes(numbers),
        "pooled": pooled,
        "bins": _list_bins(numbers) if pooled else None,
    }


def describe_reliability(numbers: Numbers) -> Values | None:
    """Return small reliability diagrams by group for the appendix, None where there are none."""
    small, left_out = _draw_small(numbers)
    if not small:
        return None
    return {
        "small": small,
        "left_out": count(left_out, "further group") if left_out else "",
        "both": len(_list_forms(numbers)) > 1,
    }


def _describe_temperature(numbers: Numbers) -> Values | None:
    """Return what was done about calibration and what it brought, None where nothing was known of it."""
    temperature: TemperatureRecord | None = numbers.get("calibration", "temperature")
    before: FigureEntries | None = numbers.get("calibration", "before")
    if temperature is None:
        return None
    value = temperature["temperature"]
    return {
        "is_one": value == 1,
        "direction": "too sure of itself" if value > 1 else "not sure enough",
        "fitted": bool(temperature.get("n")),
        "with_fit": temperature.get("nll_before") is not None and temperature.get("nll_after") is not None,
        "with_errors": before is not None and before["ece"]["value"] is not None,
        "part": numbers.get("fairness_part"),
    }


def _list_figures(numbers: Numbers) -> tuple[Table, Table | None]:
    rows: list[list[Cell]] = [["All images", *_list_cells(numbers, ("calibration",))]]
    folded: list[list[Cell]] = []
    for attribute, groups in numbers.get("calibration", "groups").items():
        own: list[list[Cell]] = [
            [
                show_name(f"{head_attribute(attribute)}: {group}"),
                *_list_cells(numbers, ("calibration", "groups", attribute, group)),
            ]
            for group in groups
            if numbers.get("calibration", "groups", attribute, group, "after", "ece", "n") != 0  # where it is told
        ]
        is_crossing = " x " in attribute
        (folded if is_crossing or len(rows) + len(own) > MOST_ROWS else rows).extend(own)
    forms = _list_forms(numbers)
    columns = ["Group", "Images", *(f"{label} {form}".strip() for label in COLUMNS.values() for form in forms)]
    caption = "Expected calibration error (0 is perfect) and Brier score (0 is perfect), with 95 % intervals."
    if len(forms) > 1:
        caption += " Before and after the temperature."
    return Table(caption, columns, rows), Table(caption, columns, folded) if folded else None


def _list_forms(numbers: Numbers) -> list[str]:
    return ["before", "after"] if _has_before(numbers) else [""]


def _has_before(numbers: Numbers) -> bool:
    """Return whether there was another confidence before the temperature: one of 1 changes nothing."""
    temperature: TemperatureRecord | None = numbers.get("calibration", "temperature")
    is_one = temperature is not None and temperature["temperature"] == 1
    return numbers.get("calibration", "before") is not None and not is_one


def _list_cells(numbers: Numbers, path: tuple[str, ...]) -> list[Cell]:
    forms = [form or "after" for form in _list_forms(numbers)]
    cells = [
        "n/a" if numbers.get(*path, form) is None else numbers.figure_and_interval(*path, form, key)
        for key in COLUMNS
        for form in forms
    ]
    return [numbers.show(*path, "after", "ece", "n"), *cells]


def _draw_pooled(numbers: Numbers, form: str) -> Values | None:
    bins: Reliability | None = numbers.get("calibration", "reliability", form)
    if bins is None or not any(bins["n"]):
        return None
    both = numbers.get("calibration", "reliability", "before") is not None and _has_before(numbers)
    when = {"before": "Before the temperature: the", "after": "After the temperature: the"}[form] if both else "The"
    caption = fill(
        f"{when} share of right answers (bars, and points at the mean confidence of each bin) against the confidence "
        "that the model states. On the dashed diagonal, confidence is honest; below it, the model is too sure. "
        "Expected calibration error {}.",
        numbers.figure("calibration", form, "ece"),
    )
    return {"drawing": draw_reliability(bins["n"], bins["confidence"], bins["accuracy"], form), "caption": caption}


def _list_bins(numbers: Numbers) -> Table:
    forms = [form for form in ("before", "after") if numbers.get("calibration", "reliability", form) is not None]
    forms = forms if _has_before(numbers) else ["after"]
    size = len(numbers.get("calibration", "reliability", "after", "n"))
    rows: list[list[Cell]] = []
    missing = "no image, or with the bin before" if is_coarse(numbers) else "no image"
    for index in range(size):
        cells: list[Markup] = []
        for form in forms:
            path = ("calibration", "reliability", form)
            cells += [
                numbers.show(*path, "n", index, digits=0),
                numbers.show(*path, "confidence", index, missing=missing),
                numbers.show(*path, "accuracy", index, missing=missing),
            ]
        rows.append([f"{index / size:.2f} to {(index + 1) / size:.2f}", *cells])
    columns = ["Confidence"]
    for form in forms:
        suffix = f" {form}" if len(forms) > 1 else ""
        columns += [f"Images{suffix}", f"Mean confidence{suffix}", f"Share right{suffix}"]
    caption = "Bins of the stated confidence, all images."
    if is_coarse(numbers):
        caption += " Sites put neighbouring bins together that hold few; the first one stands for them."
    return Table(caption, columns, rows)


def _draw_small(numbers: Numbers) -> tuple[list[Values], int]:
    """Return small reliability diagrams by group, of attributes that are no crossings, and how many were too many."""
    drawings: list[Values] = []
    left_out = 0
    by_attribute: dict[str, dict[str, GroupCalibration]] = numbers.get("calibration", "groups")
    # Sites come last here, since of a large federation they would leave no room for the patients' groups.
    for attribute in sorted(by_attribute, key=lambda name: name == SITE):
        if " x " in attribute:
            continue
        for group, entry in by_attribute[attribute].items():
            after = entry["reliability"]["after"]
            if after is None or not any(after["n"]):
                continue
            if len(drawings) == MOST_SMALL:
                left_out += 1
                continue
            drawings.append(_draw_small_one(numbers, attribute, group))
    return drawings, left_out


def _draw_small_one(numbers: Numbers, attribute: str, group: str) -> Values:
    path = ("calibration", "groups", attribute, group)
    before: Reliability | None = numbers.get(*path, "reliability", "before") if _has_before(numbers) else None
    after: Reliability = numbers.get(*path, "reliability", "after")
    title = f"{head_attribute(attribute)}: {group}"
    error, images = numbers.figure(*path, "after", "ece"), numbers.show(*path, "after", "ece", "n")
    return {
        "drawing": draw_small_reliability(before, after, f"Reliability, {title}."),
        "caption": fill("{}. ECE {} on {} images.", show_name(title), error, images),
    }

"""The page's part on calibration: the temperature, and how honest the stated confidence is before and after it."""

from fedmed.report.drawing.markup import (
    Numbers,
    escape,
    render_figure,
    render_fold,
    render_section,
    render_table,
    show_name,
)
from fedmed.report.drawing.plots import draw_reliability
from fedmed.report.drawing.wording import count, head_attribute
from fedmed.report.schema.figures import FigureEntries, GroupCalibration, Reliability
from fedmed.report.sections.clinical.calibration_slope import render_slopes
from fedmed.report.sections.method import is_coarse
from fedmed.report.sections.small_reliability import draw_small_reliability
from fedmed.storage.records import TemperatureRecord

MOST_SMALL = 12
MOST_ROWS = 20
SITE = "site"
_SMALL_KEY = '<span class="symbol s0">●</span>after the temperature, <span class="symbol s3">✕</span>before it. '
COLUMNS = {"ece": "ECE", "brier": "Brier"}


def render_calibration(numbers: Numbers) -> str:
    """Return the section on calibration."""
    pairs = "".join(_render_pooled(numbers, form) for form in ("before", "after"))
    return render_section(
        "calibration",
        "Calibration: is the stated confidence honest?",
        f"<p>{say_temperature(numbers)}</p>",
        _render_figures(numbers),
        render_slopes(numbers),
        f'<div class="grid">{pairs}</div>' if pairs else "<p>No image has been scored yet.</p>",
        render_fold("Numbers of the calibration diagrams", _render_bins(numbers)) if pairs else "",
        _render_small(numbers),
    )


def say_temperature(numbers: Numbers) -> str:
    """Return what was done about calibration and what it brought, in words."""
    temperature: TemperatureRecord | None = numbers.get("calibration", "temperature")
    before: FigureEntries | None = numbers.get("calibration", "before")
    if temperature is None:
        return "No temperature was fitted for this model: its confidence is as training has left it."
    value = temperature["temperature"]
    direction = "too sure of itself" if value > 1 else "not sure enough" if value < 1 else "as sure as it should be"
    path = ("calibration", "temperature")
    fitted = f", fitted on {numbers.show(*path, 'n')} validation images" if temperature.get("n") else ""
    sentences = [
        f"The model's scores are divided by a temperature of {numbers.show(*path, 'temperature')}{fitted}; before, "
        f"the model was {direction}. The predicted class does not change, only the confidence."
    ]
    if temperature.get("nll_before") is not None and temperature.get("nll_after") is not None:
        fit = [numbers.show("calibration", "temperature", f"nll_{form}") for form in ("before", "after")]
        sentences.append(f"The mean negative log-likelihood there went from {fit[0]} to {fit[1]}.")
    if before is not None and before["ece"]["value"] is not None:
        errors = [
            f"{numbers.figure('calibration', form, 'ece')} ({numbers.interval('calibration', form, 'ece')})"
            for form in ("before", "after")
        ]
        part = numbers.get("fairness_part")
        sentences.append(
            f"On the {part} images the expected calibration error (ECE) is {errors[0]} before and {errors[1]} after "
            "it, with 95 % intervals."
        )
    return " ".join(sentences)


def _render_figures(numbers: Numbers) -> str:
    rows = [["All images", *_list_cells(numbers, ("calibration",))]]
    folded: list[list[str]] = []
    for attribute, groups in numbers.get("calibration", "groups").items():
        name = show_name(head_attribute(attribute))
        own = [
            [f"{name}: {show_name(group)}", *_list_cells(numbers, ("calibration", "groups", attribute, group))]
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
    table = render_table(caption, columns, rows)
    if not folded:
        return table
    return table + render_fold(f"The other {count(len(folded), 'group')}", render_table(caption, columns, folded))


def _list_forms(numbers: Numbers) -> list[str]:
    return ["before", "after"] if numbers.get("calibration", "before") is not None else [""]


def _list_cells(numbers: Numbers, path: tuple[str, ...]) -> list[str]:
    forms = [form or "after" for form in _list_forms(numbers)]
    cells = [
        "n/a" if numbers.get(*path, form) is None else numbers.figure_and_interval(*path, form, key)
        for key in COLUMNS
        for form in forms
    ]
    return [numbers.show(*path, "after", "ece", "n"), *cells]


def _render_pooled(numbers: Numbers, form: str) -> str:
    bins: Reliability | None = numbers.get("calibration", "reliability", form)
    if bins is None or not any(bins["n"]):
        return ""
    both = numbers.get("calibration", "reliability", "before") is not None
    when = {"before": "Before the temperature: the", "after": "After the temperature: the"}[form] if both else "The"
    caption = (
        f"{when} share of right answers (bars, and points at the mean confidence of each bin) against the confidence "
        "that the model states. On the dashed diagonal, confidence is honest; below it, the model is too sure. "
        f"Expected calibration error {numbers.figure('calibration', form, 'ece')}."
    )
    return render_figure(draw_reliability(bins["n"], bins["confidence"], bins["accuracy"], form), caption)


def _render_bins(numbers: Numbers) -> str:
    forms = [form for form in ("before", "after") if numbers.get("calibration", "reliability", form) is not None]
    size = len(numbers.get("calibration", "reliability", "after", "n"))
    rows = []
    for index in range(size):
        cells = []
        for form in forms:
            path = ("calibration", "reliability", form)
            cells += [
                numbers.show(*path, "n", index, digits=0),
                numbers.show(*path, "confidence", index, missing="no image"),
                numbers.show(*path, "accuracy", index, missing="no image"),
            ]
        rows.append([escape(f"{index / size:.2f} to {(index + 1) / size:.2f}"), *cells])
    columns = ["Confidence"]
    for form in forms:
        suffix = f" {form}" if len(forms) > 1 else ""
        columns += [f"Images{suffix}", f"Mean confidence{suffix}", f"Share right{suffix}"]
    caption = "Bins of the stated confidence, all images."
    if is_coarse(numbers):
        caption += " Sites put neighbouring bins together that hold few; the first one stands for them."
    return render_table(caption, columns, rows)


def _render_small(numbers: Numbers) -> str:
    """Return small reliability diagrams by group, of attributes that are no crossings, as long as they are few."""
    drawings: list[str] = []
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
            drawings.append(_render_small_one(numbers, attribute, group))
    if not drawings:
        return ""
    both = len(_list_forms(numbers)) > 1
    key = f'<p class="symbols">{_SMALL_KEY if both else ""}The larger a dot, the more images are behind it.</p>'
    more = f"<p>{count(left_out, 'further group')}: in report.json.</p>" if left_out else ""
    return f'<h3>By group</h3>\n{key}<div class="tiles small-figures">{"".join(drawings)}</div>{more}'


def _render_small_one(numbers: Numbers, attribute: str, group: str) -> str:
    path = ("calibration", "groups", attribute, group)
    before: Reliability | None = numbers.get(*path, "reliability", "before")
    after: Reliability = numbers.get(*path, "reliability", "after")
    title = f"{head_attribute(attribute)}: {group}"
    svg = draw_small_reliability(before, after, f"Reliability, {title}.")
    images = numbers.show(*path, "after", "ece", "n")
    caption = f"{show_name(title)}. ECE {numbers.figure(*path, 'after', 'ece')} on {images} images."
    return render_figure(svg, caption)

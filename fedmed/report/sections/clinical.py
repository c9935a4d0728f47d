"""The page's part on alerts: whom the model would send to a person, whom it would miss, and whether that is of use."""

from collections.abc import Mapping

from fedmed.report.drawing.decision_plot import draw_decision
from fedmed.report.drawing.markup import (
    Numbers,
    escape,
    render_figure,
    render_fold,
    render_key,
    render_section,
    render_table,
    show_name,
)
from fedmed.report.drawing.wording import count, head_attribute
from fedmed.report.schema.clinical import AlertEntry, ClinicalPart

COLUMNS = ("Images", "Sensitivity", "Specificity", "Right alerts", "Right all-clears")
MOST_ROWS = 20
Path = tuple[str, ...]


def render_clinical(numbers: Numbers) -> str:
    """Return the section on alerts; nothing where the study has no alert classes."""
    part: ClinicalPart | None = numbers.document.get("clinical")  # type: ignore[assignment]
    if part is None:
        return ""
    if "whole" not in part:
        return render_section("clinical", "Alerts: whom would the model miss?", _say_missing(part))
    return render_section(
        "clinical",
        "Alerts: whom would the model miss?",
        f"<p>{_say_point(numbers, part)}</p>",
        f"<p>{_say_alerts(numbers, part)}</p>",
        *(f"<p>{text}</p>" for text in _say_groups(part)),
        _render_table(numbers, part),
        _render_curve(numbers, part),
    )


def _say_missing(part: ClinicalPart) -> str:
    names = ", ".join(map(show_name, part["alert_classes"]))
    if part["threshold"] is None:
        reason = escape(part["note"] or "not known why")
        return f"<p>No operating point could be chosen for alerts on {names}: {reason}.</p>"
    return f"<p>An operating point was chosen for alerts on {names}, and no test image has been scored with it.</p>"


def _say_point(numbers: Numbers, part: ClinicalPart) -> str:
    """Return how the threshold was chosen."""
    path = ("clinical", "validation")
    names = ", ".join(map(show_name, part["alert_classes"]))
    if part["stated_sensitivity"] is not None:
        goal = f"reaches the stated sensitivity of {numbers.show('clinical', 'stated_sensitivity')}"
    else:
        ratio = numbers.show("clinical", "cost_ratio", digits=1)
        goal = f"costs least if a missed image is worth {ratio} false alarms"
    return (
        f"An image raises an alert if the model gives {names} together a probability of at least "
        f"{numbers.show('clinical', 'probability')}. That threshold was chosen on validation images only, as the one "
        f"that {goal}: on {numbers.show(*path, 'n_with')} images with such a class the sensitivity is at least "
        f"{numbers.show(*path, 'sensitivity')}, on {numbers.show(*path, 'n_without')} others the specificity at least "
        f"{numbers.show(*path, 'specificity')}. Test images had no part in it."
    )


def _say_alerts(numbers: Numbers, part: ClinicalPart) -> str:
    path = ("clinical", "whole")
    stated = ""
    if part["prevalence"] is not None and part["whole"]["ppv_stated"] is not None:
        stated = (
            f" Where {numbers.show('clinical', 'prevalence')} of the patients have such a class, as stated for its "
            f"use, {_show(numbers, (*path, 'ppv_stated'))} of the alerts would be right and "
            f"{_show(numbers, (*path, 'npv_stated'))} of the images without an alert."
        )
    return (
        f"On the test images the sensitivity is {_show(numbers, (*path, 'sensitivity'))} and the specificity "
        f"{_show(numbers, (*path, 'specificity'))}, with 95 % intervals; {numbers.show(*path, 'alerts')} images raise "
        f"an alert, of which {_show(numbers, (*path, 'ppv'))} are right.{stated}"
    )


def _show(numbers: Numbers, path: Path) -> str:
    interval = numbers.interval(*path)
    return numbers.show(*path, "value") + (f" ({interval})" if interval else "")


def _say_groups(part: ClinicalPart) -> list[str]:
    """Return for each attribute and alert class how many of 100 would be missed in its groups."""
    sentences = []
    for attribute, entries in part["groups"].items():
        if " x " in attribute:
            continue
        for label in part["alert_classes"]:
            told = {group: entry for group, entry in entries.items() if label in entry["by_class"]}
            if len(told) > 1:
                sentences.append(_say_missed(attribute, label, told))
    return sentences


def _say_missed(attribute: str, label: str, told: Mapping[str, AlertEntry]) -> str:
    parts: list[str] = []
    for group, entry in sorted(told.items(), key=lambda one: -(one[1]["by_class"][label]["share"]["value"] or 0)):
        share = entry["by_class"][label]["share"]
        low, high = share["interval"] or (0.0, 1.0)
        n = entry["by_class"][label]["n"]
        parts.append(
            f"{'of 100' if parts else 'Of 100 images with ' + show_name(label)} of {show_name(group)} about "
            f"{_per_hundred(share['value'] or 0.0)} ({_per_hundred(low)} to {_per_hundred(high)}; {count(n, 'image')})"
            f"{'' if parts else ' would be missed'}"
        )
    return f"<strong>{escape(head_attribute(attribute))}.</strong> {', '.join(parts)}."


def _per_hundred(share: float) -> str:
    return f"{100 * share:.0f}"


def _render_table(numbers: Numbers, part: ClinicalPart) -> str:
    rows = [["All images", *_list_cells(numbers, ("clinical", "whole"))]]
    rows += [[f"Site: {show_name(site)}", *_list_cells(numbers, ("clinical", "sites", site))] for site in part["sites"]]
    folded: list[list[str]] = []
    for attribute, entries in part["groups"].items():
        name = show_name(head_attribute(attribute))
        own = [
            [f"{name}: {show_name(group)}", *_list_cells(numbers, ("clinical", "groups", attribute, group))]
            for group in entries
        ]
        (folded if " x " in attribute or len(rows) + len(own) > MOST_ROWS else rows).extend(own)
    columns = ["Group", *COLUMNS]
    if part["prevalence"] is not None:
        columns += ["Right alerts at the stated prevalence", "Right all-clears at the stated prevalence"]
    columns.append("Net benefit")
    caption = (
        "Alerts at the operating point, with 95 % intervals. Right alerts and right all-clears (predictive values) are "
        "at the prevalence of these images, unless another is named. A star: some class is not told there, so that "
        "these and net benefit leave it out."
    )
    table = render_table(caption, columns, rows)
    if folded:
        table += render_fold(f"The other {count(len(folded), 'group')}", render_table(caption, columns, folded))
    return table


def _list_cells(numbers: Numbers, path: Path) -> list[str]:
    entry: AlertEntry = numbers.get(*path)
    star = "*" if entry["left_out"] else ""
    keys = ["sensitivity", "specificity", "ppv", "npv"]
    if entry["ppv_stated"] is not None or numbers.get("clinical", "prevalence") is not None:
        keys += ["ppv_stated", "npv_stated"]
    images = f"{numbers.show(*path, 'n_with')} with, {numbers.show(*path, 'n_without')} without{star}"
    cells = ["n/a" if numbers.get(*path, key) is None else numbers.figure_and_interval(*path, key) for key in keys]
    return [images, *cells, numbers.show(*path, "net_benefit")]


def _render_curve(numbers: Numbers, part: ClinicalPart) -> str:
    if "curve" not in part:
        return "<p>Decision curve: n/a, since no site tells enough alert scores of both kinds.</p>"
    curves = part["curves"]
    svg = draw_decision(part["curve_thresholds"], part["curve"], [curves[site] for site in curves], part["probability"])
    coarse = any(high > low + 1e-6 for low, high in zip(part["curve"]["low"], part["curve"]["high"], strict=True))
    caption = (
        "Decision curve: right alerts for each image, less the false ones, each weighed by the odds of the threshold "
        "at which one would act. A model is of use where its line lies above both an alert for every image (dashed) "
        "and none (0)."
    )
    if coarse:
        caption += " The band is what the bins in which sites count their scores leave open."
    legend = render_key(["all sites; thin: each site"]) if len(curves) > 1 else ""
    return render_figure(svg, caption, legend)

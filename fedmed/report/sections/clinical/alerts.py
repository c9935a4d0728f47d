"""The page's part on alerts: whom the model would send to a person, whom it would miss, and whether that is of use."""

from collections.abc import Mapping

from fedmed.report.drawing.decision_plot import draw_decision
from fedmed.report.drawing.markup import EMPTY, Cell, Numbers, Table, join, show_name
from fedmed.report.drawing.palette import make_key
from fedmed.report.drawing.templates import fill
from fedmed.report.drawing.wording import count, head_attribute
from fedmed.report.schema.clinical import AlertEntry, ClinicalPart
from fedmed.report.sections.clinical.findings import find_failures
from fedmed.report.sections.method import is_coarse
from fedmed.report.sections.values import Values

COLUMNS = ("Images", "Sensitivity", "Specificity", "Right alerts", "Right all-clears")
MOST_ROWS = 20
Path = tuple[str, ...]


def describe_clinical(numbers: Numbers) -> Values | None:
    """Return the section on alerts, None where the study has no alert classes."""
    part: ClinicalPart | None = numbers.document.get("clinical")  # type: ignore[assignment]
    if part is None:
        return None
    asked = {"names": part["alert_classes"], "part": part}
    if "whole" not in part:
        return asked | {"told": False}
    path = ("clinical", "whole")
    keys = ("sensitivity", "specificity", "ppv", "ppv_stated", "npv_stated")
    table, folded = _list_groups(numbers, part)
    return asked | {
        "told": True,
        "shares": {key: _show_share(numbers, (*path, key)) for key in keys if numbers.get(*path, key) is not None},
        "stated": part["prevalence"] is not None and part["whole"]["ppv_stated"] is not None,
        "failures": find_failures(numbers),
        "is_merged": is_coarse(numbers),
        "not_told": part["whole"].get("not_told", []),
        "missed": _list_missed(part),
        "table": table,
        "folded": folded,
        "rest": f"The other {count(len(folded.rows), 'group')}" if folded else "",
        "curve": _draw_curve(part),
    }


def _show_share(numbers: Numbers, path: Path) -> Cell:
    interval = numbers.interval(*path)
    value = numbers.figure(*path)
    return fill("{} ({})", value, interval) if interval else value


def _list_missed(part: ClinicalPart) -> list[Values]:
    """Return for each attribute and alert class how many of 100 would be missed in its groups, the most first."""
    found: list[Values] = []
    for attribute, entries in part["groups"].items():
        if " x " in attribute:
            continue
        classes: list[Values] = []
        for label in part["alert_classes"]:
            told = {group: entry for group, entry in entries.items() if label in entry["by_class"]}
            others = [group for group, entry in entries.items() if label in _list_lacking(entry)]
            if len(told) + len(others) > 1:
                classes.append({"label": label, "groups": _count_missed(label, told), "others": others})
        if classes:
            found.append({"attribute": head_attribute(attribute), "classes": classes})
    return found


def _list_lacking(entry: AlertEntry) -> list[str]:
    """Return the classes of which there may be images, and none is told."""
    return [name for name in entry["left_out"] if name in entry.get("not_told", ())]


def _count_missed(label: str, told: Mapping[str, AlertEntry]) -> list[Values]:
    groups: list[Values] = []
    for group, entry in sorted(told.items(), key=lambda one: -(one[1]["by_class"][label]["share"]["value"] or 0)):
        share = entry["by_class"][label]["share"]
        low, high = share["interval"] or (0.0, 1.0)
        told_of_100 = {"about": _per_hundred(share["value"] or 0.0), "low": _per_hundred(low)}
        images = count(entry["by_class"][label]["n"], "image")
        groups.append({"name": group, **told_of_100, "high": _per_hundred(high), "images": images})
    return groups


def _per_hundred(share: float) -> str:
    return f"{100 * share:.0f}"


def _list_groups(numbers: Numbers, part: ClinicalPart) -> tuple[Table, Table | None]:
    whole = "All images that are told" if numbers.get("clinical", "whole").get("not_told") else "All images"
    rows: list[list[Cell]] = [[whole, *_list_cells(numbers, ("clinical", "whole"))]]
    rows += [[show_name(f"Site: {site}"), *_list_cells(numbers, ("clinical", "sites", site))] for site in part["sites"]]
    folded: list[list[Cell]] = []
    for attribute, entries in part["groups"].items():
        name = head_attribute(attribute)
        own: list[list[Cell]] = [
            [
                show_name(f"{name}: {group}"),
                *_list_cells(numbers, ("clinical", "groups", attribute, group)),
            ]
            for group in entries
        ]
        (folded if " x " in attribute or len(rows) + len(own) > MOST_ROWS else rows).extend(own)
    columns = ["Group", *COLUMNS]
    if part["prevalence"] is not None:
        columns += ["Right alerts at the stated prevalence", "Right all-clears at the stated prevalence"]
    columns.append("Net benefit")
    caption = (
        "Alerts at the operating point, with 95 % intervals. Right alerts and right all-clears (predictive values) are "
        "at the prevalence of these images, unless another is named. A star: of some class no image is "
        "there, or a site tells none, so that the numbers of images and all figures leave these out. Predictive values "
        "and net benefit of a site or group are n/a where images may be left out so, since they would be false."
    )
    return Table(caption, columns, rows, "alerts"), Table(caption, columns, folded, "alerts") if folded else None


def _list_cells(numbers: Numbers, path: Path) -> list[Cell]:
    entry: AlertEntry = numbers.get(*path)
    star = "*" if entry["left_out"] or entry.get("not_told") else EMPTY
    lacking = _list_lacking(entry)
    alert_classes: list[str] = numbers.get("clinical", "alert_classes")
    only = EMPTY
    if entry["n_with"] and any(name in alert_classes for name in lacking):
        only = fill(" (over {} only)", join([show_name(name) for name in entry["classes"]], ", "))
    is_untold = {
        "n_with": any(name in alert_classes for name in lacking),
        "n_without": any(name not in alert_classes for name in lacking),
    }
    with_alert, without = (
        "not told" if is_untold[key] and not numbers.get(*path, key) else numbers.show(*path, key) for key in is_untold
    )
    sensitivity = join([numbers.figure(*path, "sensitivity"), only, numbers.interval(*path, "sensitivity")])
    keys = ["specificity", "ppv", "npv"]
    if entry["ppv_stated"] is not None or numbers.get("clinical", "prevalence") is not None:
        keys += ["ppv_stated", "npv_stated"]
    cells = ["n/a" if numbers.get(*path, key) is None else numbers.figure_and_interval(*path, key) for key in keys]
    missing = f"n/a ({entry['net_benefit_reason']})" if "net_benefit_reason" in entry else "n/a"
    benefit = numbers.show(*path, "net_benefit", missing=missing)
    net_benefit = join([benefit, numbers.interval(*path, key="net_benefit_interval")])
    return [join([fill("{} with{}, {} without", with_alert, only, without), star]), sensitivity, *cells, net_benefit]


def _draw_curve(part: ClinicalPart) -> Values | None:
    """Return the decision curve, None where no site tells enough scores."""
    if "curve" not in part:
        return None
    whole, curves, entry = part["curve"], list(part["curves"].values()), part["whole"]
    images = part.get("curve_images")
    is_same = images is not None and all(images[key] == entry[key] for key in ("n_with", "n_without"))
    probability = part["probability"]
    chosen = None if probability is None else (probability, entry["net_benefit"] if is_same else None)
    told, total = len(part.get("curve_sites", part["curves"])), len(part["sites"])
    label = "all sites" if told == total else f"{told} of {total} sites"
    thin = "each site" if len(curves) == total else f"{count(len(curves), 'site')} of which no image is left out"
    return {
        "drawing": draw_decision(part["curve_thresholds"], whole, curves, chosen),
        "key": make_key([f"{label}; thin: {thin}" if curves else label]) if total > 1 else None,
        "label": label,
        "is_same": is_same,
        "coarse": any(high > low + 1e-6 for low, high in zip(whole["low"], whole["high"], strict=True)),
    }

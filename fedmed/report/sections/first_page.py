"""The first page: what the model is for, who decided, the data, three figures, who it is worse for, and its limits."""

from collections.abc import Mapping, Sequence

from fedmed.report.drawing.markup import Cell, Numbers, Table, format_number, show_name
from fedmed.report.drawing.wording import count
from fedmed.report.schema.flow import DataFlow
from fedmed.report.sections.clinical.findings import sum_up_alerts
from fedmed.report.sections.data_flow import describe_found, find_found, list_found
from fedmed.report.sections.method import is_coarse, is_own_page
from fedmed.report.sections.patients import has_patients, head_ids, name_ids, show_patients
from fedmed.report.sections.results import describe_summary
from fedmed.report.sections.values import Values

MOST_SITES = 8
PARTS = {"train": "Training", "validation": "Validation", "test": "Test", "scored": "Scored"}
RELEASES = {
    "automatic": "The finished model is released without a person's decision (release: automatic).",
    "manual": "A person at the coordinating site decides whether the model is released (release: manual).",
    "two_persons": "Two persons at the coordinating site decide whether the model is released (release: two_persons).",
}
_SIMULATION = "It is a simulation: nothing is released to anybody."
_RELEASED = "The coordinating site released the model."
_RELEASE_UNKNOWN = "Who decides about a release is not known to the software."


def describe_first_page(numbers: Numbers) -> Values:
    """Return what the first page shows."""
    ece = numbers.get("figures", "ece")
    config: Mapping[str, object] = numbers.get("config")
    is_simulation = "simulations/run.py" in numbers.get("command")
    decided = _SIMULATION if is_simulation else RELEASES.get(str(config.get("release")), _RELEASE_UNKNOWN)
    return {
        **describe_summary(numbers),
        "classes": numbers.get("classes"),
        "alerts": sum_up_alerts(numbers),
        "release": _RELEASED if is_own_page(numbers) else decided,
        "is_own": is_own_page(numbers),
        "synthetic": numbers.get("synthetic"),
        "of_all_classes": numbers.get("figures").get("worst_class_recall", {}).get("interval") is not None,
        "with_ece": ece["value"] is not None,
        "figures_chance": format_number(1 / len(numbers.get("classes")), 2),
        "flow": numbers.document.get("flow"),
        "flow_sites": _list_sites(numbers),
        "found": describe_found(numbers),
        "is_simulation": is_simulation,
        "is_federation": "flower-server" in numbers.get("command"),
        "with_patients": has_patients(numbers),
        "num_flow_sites": _count_sites(numbers),
        "is_coarse": is_coarse(numbers),
        "with_rest": _has_rest(numbers),
        "limits": _list_limits(numbers),
    }


def _has_rest(numbers: Numbers) -> bool:
    """Return whether some scored images are of classes that their sites do not tell."""
    flow, told = numbers.document.get("flow"), numbers.get("figures", "balanced_accuracy", "n")
    scored = None if flow is None else numbers.get("flow", "total", "scored")
    return told is not None and scored is not None and told < scored


def _count_sites(numbers: Numbers) -> str:
    return count(len(numbers.get("sites")), "site")


def _list_sites(numbers: Numbers) -> list[Table]:
    """Return the images of the sites as a table, and those of further sites as another one to fold away."""
    flow: DataFlow | None = numbers.document.get("flow")  # type: ignore[assignment]  # of a document
    if flow is None:
        return []
    caption = "Images by site. Scored: test images that the figures rest on."
    parts = [part for part in PARTS if flow["total"][part] is not None or part in ("train", "scored")]
    found = find_found(numbers)
    with_found = found is not None and bool(found["sites"])
    columns = ["Site", *(["Found", "Left out"] if with_found else []), *(PARTS[part] for part in parts)]
    if has_patients(numbers):
        caption += (
            f" {head_ids(numbers)}: those behind the scored images; one with images of two classes, or "
            "at two sites, counts twice."
        )
        columns.append(head_ids(numbers))
    columns.append("Rounds taken part")
    if is_coarse(numbers) and found is None:
        rounded = "Training and validation images" if "validation" in parts else "Training images"
        caption += f" {rounded} are rounded down by the sites."
    if _has_rest(numbers):
        caption += " Some scored images are of classes that a site does not tell"
        caption += f"; no {name_ids(numbers)} are counted for these." if has_patients(numbers) else "."
    rows = [_list_site(numbers, name, parts, with_found=with_found) for name in flow["sites"]]
    return [Table(caption, columns, part) for part in (rows[:MOST_SITES], rows[MOST_SITES:]) if part]


def _list_site(numbers: Numbers, name: str, parts: Sequence[str], *, with_found: bool) -> list[Cell]:
    known = name in numbers.get("participation", "sites")
    path = ("flow", "sites", name)
    return [
        show_name(name),
        *(list_found(numbers, name) if with_found else []),
        *(numbers.show(*path, part, missing="n/a") for part in parts),
        *([show_patients(numbers, "sites", name)] if has_patients(numbers) else []),
        numbers.show("participation", "sites", name, "accepted_rounds") if known else "not known",
    ]


def _list_limits(numbers: Numbers) -> list[str]:
    """Return what must not be concluded from the page."""
    limits = ["This is invented data: no figure says anything about patients."] if numbers.get("synthetic") else []
    limits += [
        "That it works at a hospital, on a device or for patients that did not take part: nothing here was measured "
        "there.",
        "That a group is treated equally because its gap is not flagged, or that a site is as well off because it is "
        "undecided: few images can hide a real difference.",
        "That a figure shown as n/a is good or bad: it is not known.",
        "That a stated confidence is a probability for one patient: it is honest at most on average.",
        "That a diagnosis or treatment may rest on it: it has not been tested in use.",
    ]
    if is_coarse(numbers):
        limits.append(
            "That rare classes and small groups do as well as the rest: sites withhold them, and figures lack them."
        )
    return limits

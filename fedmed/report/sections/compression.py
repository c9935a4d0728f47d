"""The page's part on compression: what each phase did and took, and how the gate decided."""

from markupsafe import Markup

from fedmed.report.drawing.markup import Cell, Numbers, Table, show_name
from fedmed.report.drawing.templates import fill, render_macro
from fedmed.report.drawing.wording import head_attribute
from fedmed.report.figures.compression import HIDDEN_REASON
from fedmed.report.schema.document import CompressionEntry, DistilledStep
from fedmed.report.schema.figures import ComparedEntry
from fedmed.report.sections.values import Values
from fedmed.storage.records import CheckRecord

_PHASES = {
    "explore": "Learning the Fourier prompt of the proxy images (a reconstruction)",
    "targets": "The large network's answers for the proxy images",
    "train": "Training of the small network",
    "distance": "Distance of the proxy images from the hospitals' own",
    "recalibrate": "BatchNorm statistics of all sites' training images",
    "gate": "Both networks on the sites' validation images",
}
_CHECKS = {
    "balanced_accuracy": "Balanced accuracy, all images",
    "worst_class": "Lowest recall of a class",
    "class": "Recall of",
    "gap": "Gap between groups of",
}
_KINDS = {"proxy": "at the server, on unlabelled proxy images", "co_distillation": "at the sites, on their own images"}
_STEPS = {
    "step": "Step",
    "round": "Round",
    "train_loss": "Loss",
    "held_out_loss": "Loss, held out",
    "agreement": "Decides like the large one",
}


def describe_compression(numbers: Numbers) -> Values | None:
    """Return the section on compression, None where the run compresses nothing."""
    found: CompressionEntry | None = numbers.get("compression")
    if found is None:
        return None
    if not found["checks"]:
        return {"found": found, "judged": False}
    return {
        "found": found,
        "judged": True,
        "kind": _KINDS[found["kind"]],
        "sizes": _list_sizes(numbers),
        "checks": _list_checks(numbers),
        "comparison": _list_comparison(numbers),
        "phases": _list_phases(numbers),
        "course": _list_course(numbers),
    }


def _list_sizes(numbers: Numbers) -> Table:
    rows: list[list[Cell]] = []
    for name, title in (("teacher", "Large (trained)"), ("student", "Small")):
        path = ("compression", "sizes", name)
        rows.append(
            [
                title,
                numbers.get(*path, "name"),
                numbers.show(*path, "parameters"),
                numbers.show(*path, "deployed_parameters"),
                numbers.show(*path, "deployed_mib", digits=1),
            ]
        )
    columns = ["Network", "Kind", "Parameters in training", "merged", "MiB merged"]
    return Table("Sizes of both networks, as they are trained and merged for use.", columns, rows)


def _list_checks(numbers: Numbers) -> Table:
    rows: list[list[Cell]] = []
    checks: list[CheckRecord] = numbers.get("compression", "checks")
    for index, check in enumerate(checks):
        path = ("compression", "checks", index)
        name = _CHECKS[check["name"]]
        heading = fill(name) if check["subject"] == "all" else fill("{} {}", name, show_name(check["subject"]))
        values = [numbers.show(*path, key, missing=HIDDEN_REASON) for key in ("teacher", "student", "loss", "limit")]
        verdict = "holds" if check["passed"] else render_macro("flag", "fails", True)
        chance = numbers.show_chance(*path, "p_value")
        rows.append([heading, *values, _show_support(numbers, index), fill("{} {}", verdict, chance)])
    caption = (
        "The gate: how much worse the small network may be on the same validation images. The recall of a single class "
        "counts where the paired images leave no doubt (exact one-sided test at 5 %). 'That is' says what the allowed "
        "loss amounts to in images of the class, or of the class and group, of which one image moves the figure most: "
        "below 1, a single image can decide."
    )
    columns = ["Condition", "Large", "Small", "Loss", "Allowed", "That is", "Verdict"]
    return Table(caption, columns, rows)


def _show_support(numbers: Numbers, index: int) -> Cell:
    """Return the allowed loss in images, nothing where it is not told."""
    path = ("compression", "checks", index, "rests_on")
    check: CheckRecord = numbers.get("compression", "checks", index)
    found = check.get("rests_on")
    if found is None:
        return ""
    images, limit = numbers.show(*path, "num_images"), numbers.show(*path, "limit_images", digits=1)
    shown = fill("{} of {} images of {}", limit, images, show_name(found["label"]))
    return shown if found["group"] is None else fill("{} in {}", shown, show_name(found["group"]))


def _list_comparison(numbers: Numbers) -> Table | None:
    comparison: dict[str, dict[str, ComparedEntry]] = numbers.get("compression", "comparison")
    rows = [_list_compared(numbers, attribute, group) for attribute, groups in comparison.items() for group in groups]
    if not rows:
        return None
    caption = (
        f"Balanced accuracy of both networks on the same {numbers.get('compression', 'part')} images, by site and "
        "group, with 95 % intervals; the difference is small minus large."
    )
    return Table(caption, ["Group", "Images", "Large", "Small", "Difference"], rows)


def _list_compared(numbers: Numbers, attribute: str, group: str) -> list[Cell]:
    path = ("compression", "comparison", attribute, group)
    return [
        fill("{}: {}", show_name(head_attribute(attribute)), show_name(group)),
        numbers.show(*path, "models", "student", "accuracy", "n"),
        *(numbers.figure_and_interval(*path, "models", name, "balanced_accuracy") for name in ("teacher", "student")),
        _show_difference(numbers, *path),
    ]


def _show_difference(numbers: Numbers, *path: str) -> Markup:
    where = (*path, "differences", "balanced_accuracy")
    if numbers.get(*where)["value"] is None:
        return fill("n/a ({})", numbers.get(*where)["reason"])
    return numbers.show_signed(*where, "value") + numbers.interval(*where, signed=True)


def _list_phases(numbers: Numbers) -> Table:
    rows: list[list[Cell]] = [
        [_PHASES[phase["phase"]], numbers.show("compression", "phases", index, "seconds", digits=1)]
        for index, phase in enumerate(numbers.get("compression", "phases"))
    ]
    for index in range(len(numbers.get("compression", "earlier"))):
        number = numbers.show("compression", "earlier", index, "round")
        seconds = numbers.show("compression", "earlier", index, "seconds", digits=1)
        rows.append([fill("Distillation after round {}, where the next began", number), seconds])
    rows.append(["All at the end", numbers.show("compression", "seconds", digits=1)])
    return Table("Seconds of each phase.", ["Phase", "Seconds"], rows)


def _list_course(numbers: Numbers) -> Table | None:
    path = ("compression", "training", "history")
    history: list[DistilledStep] = numbers.get(*path)
    if not history:
        return None
    told: dict[str, object] = {**history[0]}
    keys = [key for key in _STEPS if told[key] is not None]
    rows = [[numbers.show(*path, index, key) for key in keys] for index in range(len(history))]
    return Table("Course of the distillation.", [_STEPS[key] for key in keys], rows)

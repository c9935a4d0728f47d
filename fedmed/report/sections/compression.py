"""The page's part on compression: what each phase did and took, and how the gate decided."""

from fedmed.report.drawing.markup import Numbers, escape, render_fold, render_section, render_table, show_name
from fedmed.report.drawing.wording import head_attribute
from fedmed.report.figures.compression import HIDDEN_REASON
from fedmed.report.schema.document import CompressionEntry, DistilledStep
from fedmed.report.schema.figures import ComparedEntry
from fedmed.storage.records import CheckRecord

STATUS = {
    "accepted": "<strong>accepted</strong>: it is the model of this report",
    "rejected": '<strong class="flag">rejected</strong>: the network that was trained is the model of this report',
    "skipped": "not asked for: the network that was trained is the model of this report",
}
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


def render_compression(numbers: Numbers) -> str:
    """Return the section on compression, or nothing where the run compresses nothing."""
    found: CompressionEntry | None = numbers.get("compression")
    if found is None:
        return ""
    if not found["checks"]:
        return render_section("compression", "Compression", f"<p>{escape(found['reason'])}</p>")
    return render_section(
        "compression",
        "Compression",
        f"<p>{_summarise(numbers)}</p>",
        _render_sizes(numbers),
        _render_checks(numbers),
        _render_comparison(numbers),
        _render_phases(numbers),
        _render_training(numbers),
    )


def _summarise(numbers: Numbers) -> str:
    found: CompressionEntry = numbers.get("compression")
    members = ""
    if found["training"]["num_members"] is not None:
        number = numbers.show("compression", "training", "num_members")
        members = f", from the mean answer of the single models of {number} sites (as in FedDF) and not from its own"
    text = (
        f"The network that was trained was distilled into a small one, {_KINDS[found['kind']]}{members}. On "
        f"{numbers.show('compression', 'num_images')} validation images of the sites the small one was "
        f"{STATUS[found['status']]}. {escape(found['reason'])}"
    )
    distance = found["distance"]
    if distance is None:
        return text
    return (
        f"{text} The proxy images are {numbers.show('compression', 'distance', 'proxy')} away from the large network's "
        f"BatchNorm statistics, the hospitals' own {numbers.show('compression', 'distance', 'sites')}."
        + (f" {escape(distance['warning'])}" if distance["warning"] else "")
    )


def _render_sizes(numbers: Numbers) -> str:
    rows = []
    for name, title in (("teacher", "Large (trained)"), ("student", "Small")):
        path = ("compression", "sizes", name)
        rows.append(
            [
                title,
                escape(numbers.get(*path, "name")),
                numbers.show(*path, "parameters"),
                numbers.show(*path, "deployed_parameters"),
                numbers.show(*path, "deployed_mib", digits=1),
            ]
        )
    columns = ["Network", "Kind", "Parameters in training", "merged", "MiB merged"]
    return render_table("Sizes of both networks, as they are trained and merged for use.", columns, rows)


def _render_checks(numbers: Numbers) -> str:
    rows = []
    checks: list[CheckRecord] = numbers.get("compression", "checks")
    for index, check in enumerate(checks):
        path = ("compression", "checks", index)
        subject = "" if check["subject"] == "all" else f" {show_name(check['subject'])}"
        values = [numbers.show(*path, key, missing=HIDDEN_REASON) for key in ("teacher", "student", "loss", "limit")]
        verdict = "holds" if check["passed"] else '<strong class="flag">fails</strong>'
        chance = numbers.show_chance(*path, "p_value")
        cells = [*values, _show_support(numbers, index), f"{verdict} {chance}".strip()]
        rows.append([f"{_CHECKS[check['name']]}{subject}", *cells])
    caption = (
        "The gate: how much worse the small network may be on the same validation images. The recall of a single class "
        "counts where the paired images leave no doubt (exact one-sided test at 5 %). 'That is' says what the allowed "
        "loss amounts to in images of the class, or of the class and group, of which one image moves the figure most: "
        "below 1, a single image can decide."
    )
    columns = ["Condition", "Large", "Small", "Loss", "Allowed", "That is", "Verdict"]
    return f"<h3>The gate</h3>\n{render_table(caption, columns, rows)}"


def _show_support(numbers: Numbers, index: int) -> str:
    """Return the allowed loss in images, nothing where it is not told."""
    path = ("compression", "checks", index, "rests_on")
    check: CheckRecord = numbers.get("compression", "checks", index)
    found = check.get("rests_on")
    if found is None:
        return ""
    group = "" if found["group"] is None else f" in {show_name(found['group'])}"
    images, limit = numbers.show(*path, "num_images"), numbers.show(*path, "limit_images", digits=1)
    return f"{limit} of {images} images of {show_name(found['label'])}{group}"


def _render_comparison(numbers: Numbers) -> str:
    comparison: dict[str, dict[str, ComparedEntry]] = numbers.get("compression", "comparison")
    rows = []
    for attribute, groups in comparison.items():
        for group in groups:
            path = ("compression", "comparison", attribute, group)
            models = [
                numbers.figure_and_interval(*path, "models", name, "balanced_accuracy")
                for name in ("teacher", "student")
            ]
            images = numbers.show(*path, "models", "student", "accuracy", "n")
            rows.append(
                [
                    f"{show_name(head_attribute(attribute))}: {show_name(group)}",
                    images,
                    *models,
                    _show_difference(numbers, *path),
                ]
            )
    if not rows:
        return ""
    caption = (
        f"Balanced accuracy of both networks on the same {numbers.get('compression', 'part')} images, by site and "
        "group, with 95 % intervals; the difference is small minus large."
    )
    table = render_table(caption, ["Group", "Images", "Large", "Small", "Difference"], rows)
    return f"<h3>Small against large network</h3>\n{table}"


def _show_difference(numbers: Numbers, *path: str) -> str:
    where = (*path, "differences", "balanced_accuracy")
    if numbers.get(*where)["value"] is None:
        return f"n/a ({escape(numbers.get(*where)['reason'])})"
    interval = numbers.interval(*where, signed=True)
    return f"{numbers.show_signed(*where, 'value')}{interval}"


def _render_phases(numbers: Numbers) -> str:
    rows = [
        [_PHASES[phase["phase"]], numbers.show("compression", "phases", index, "seconds", digits=1)]
        for index, phase in enumerate(numbers.get("compression", "phases"))
    ]
    rows += [
        [
            f"Distillation after round {numbers.show('compression', 'earlier', index, 'round')}, where the next began",
            numbers.show("compression", "earlier", index, "seconds", digits=1),
        ]
        for index in range(len(numbers.get("compression", "earlier")))
    ]
    rows.append(["All at the end", numbers.show("compression", "seconds", digits=1)])
    return f"<h3>What it took</h3>\n{render_table('Seconds of each phase.', ['Phase', 'Seconds'], rows)}"


def _render_training(numbers: Numbers) -> str:
    path = ("compression", "training")
    history: list[DistilledStep] = numbers.get(*path, "history")
    keys = [key for key in ("step", "round", "train_loss", "held_out_loss", "agreement") if history and
            history[0][key] is not None]  # fmt: skip
    rows = [[numbers.show(*path, "history", index, key) for key in keys] for index in range(len(history))]
    names = {"step": "Step", "round": "Round", "train_loss": "Loss", "held_out_loss": "Loss, held out",
             "agreement": "Decides like the large one"}  # fmt: skip
    notes = "".join(f"<p>{escape(note)}</p>" for note in numbers.get(*path, "notes"))
    if not rows:
        return notes
    table = render_table("Course of the distillation.", [names[key] for key in keys], rows)
    return notes + render_fold("Course of the distillation", table)

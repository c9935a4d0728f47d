"""How the run went: curves, rounds, composition of the sites and participation."""

from collections.abc import Sequence

from fedmed.report.drawing.markup import Cell, Numbers, Table, show_name
from fedmed.report.drawing.palette import make_legend, series_css
from fedmed.report.drawing.plots import MOST_SINGLE_LINES, draw_loss, draw_validation
from fedmed.report.drawing.templates import fill, render_macro
from fedmed.report.drawing.wording import count, label_figure
from fedmed.report.schema.document import LeftOut, RoundEntry, SiteParticipation
from fedmed.report.sections.values import Values
from fedmed.storage.statuses import STATUSES, find_status

SHOWN_SITES = 20
MOST_REASONS = 3
ROUNDS_PER_GROUP = 10


def describe_rounds(numbers: Numbers) -> Values:
    """Return the curves over the rounds and the table of rounds."""
    history: list[RoundEntry] = numbers.get("history")
    return {
        "drawings": [_draw_loss(numbers), _draw_validation(numbers)] if len(history) > 1 else [],
        "table": _list_rounds(numbers) if history else None,
    }


def _draw_loss(numbers: Numbers) -> Values:
    history: list[RoundEntry] = numbers.get("history")
    rounds, losses = [record["round"] for record in history], [record["loss"] for record in history]
    caption = "Training loss, averaged over the sites that took part. The dashed line is the chosen round."
    return {"drawing": draw_loss(rounds, losses, numbers.get("chosen_round")), "caption": caption}


def _draw_validation(numbers: Numbers) -> Values:
    history: list[RoundEntry] = numbers.get("history")
    key: str = numbers.get("course_figure")
    names = sorted({site for record in history for site in record["validation"]["sites"]})
    sites = [[record["validation"]["sites"].get(name, {}).get(key) for record in history] for name in names]
    pooled = [record["validation"]["pooled"].get(key) for record in history]
    chosen = numbers.get("chosen_round")
    drawing = draw_validation([record["round"] for record in history], pooled, sites, label_figure(key), chosen)
    lines = "Thin lines: one for each site."
    if len(names) > MOST_SINGLE_LINES:
        shown = "the band is the middle half and the dotted lines are the best and the worst."
        lines = f"Of {count(len(names), 'site')}, {shown}"
    caption = (
        f"{label_figure(key)} on the validation images. Thick line: pooled. {lines if len(names) > 1 else ''} "
        "The dashed line is the chosen round."
    )
    return {"drawing": drawing, "caption": caption}


def _list_rounds(numbers: Numbers) -> Table:
    keys = [key for key in ("balanced_accuracy", "accuracy", "macro_f1") if _has_pooled(numbers, key)]
    with_rate = any(record["learning_rate"] is not None for record in numbers.get("history"))
    rows: list[list[Cell]] = []
    for index in range(len(numbers.get("history"))):
        path: tuple[str | int, ...] = ("history", index)
        rows.append(
            [
                numbers.show(*path, "round"),
                numbers.show(*path, "loss"),
                *([numbers.show(*path, "learning_rate", digits=5)] if with_rate else []),
                *(
                    numbers.show(*path, "validation", "pooled", key)
                    if key in numbers.get(*path, "validation", "pooled")
                    else "n/a"
                    for key in keys
                ),
                numbers.show(*path, "accepted_sites"),
                numbers.show(*path, "coverage_images"),
                numbers.show(*path, "wall_s", digits=1),
            ]
        )
    columns = ["Round", "Training loss", *(["Learning rate"] if with_rate else []), *map(label_figure, keys)]
    columns += ["Sites averaged", "Share of images", "Seconds"]
    return Table("Rounds with the pooled validation figures.", columns, rows)


def _has_pooled(numbers: Numbers, key: str) -> bool:
    return any(key in record["validation"]["pooled"] for record in numbers.get("history"))


def describe_composition(numbers: Numbers) -> Values | None:
    """Return the images of the sites by class, None where class counts stay at the sites."""
    composition: dict[str, dict[str, dict[str, int]]] | None = numbers.get("composition")
    if not composition:
        return None

    def size(name: str) -> int:
        return sum(composition[name]["train"].values())

    names, is_long = sorted(composition), len(composition) > SHOWN_SITES
    if is_long:
        names.sort(key=lambda name: (-size(name), name))
    return {
        "legend": make_legend(numbers.get("classes")),
        "most": SHOWN_SITES if is_long else None,
        "table": _list_composition(numbers, names[:SHOWN_SITES]),
        "folded": _list_composition(numbers, names[SHOWN_SITES:]) if is_long else None,
        "rest": f"The other {count(len(names) - SHOWN_SITES, 'site')}",
    }


def _list_composition(numbers: Numbers, names: Sequence[str]) -> Table:
    classes = numbers.get("classes")
    rows: list[list[Cell]] = []
    for site in names:
        parts = numbers.get("composition", site)
        cells = [
            fill(" / ").join(
                numbers.show("composition", site, part, name)
                for part in ("train", "validation", "test")
                if part in parts
            )
            for name in classes
        ]
        mix = render_macro("mix", _place_mix([parts["train"][name] for name in classes]))
        rows.append([show_name(site), mix, *cells])
    caption = "Bars: shares of the classes in the training images. Numbers: images for training / validation / test."
    return Table(caption, ["Site", "Training images", *map(show_name, classes)], rows, "counts")


def _place_mix(counts: Sequence[int]) -> list[tuple[str, str, str]]:
    """Return CSS classes, left end and width of the bar's parts, in percent."""
    total, left, parts = max(sum(counts), 1), 0.0, []
    for index, number in enumerate(counts):
        width = 100 * number / total
        parts.append((series_css(index), f"{left:.2f}", f"{width:.2f}"))
        left += width
    return parts


def describe_participation(numbers: Numbers) -> Values | None:
    """Return who took part in which round, each site's share, and why it was left out."""
    sites: dict[str, SiteParticipation] = numbers.get("participation", "sites")
    if not sites:
        return None
    seen = {status for site in sites.values() for status in site["statuses"]}
    statuses = [*(status for status in STATUSES if status in seen), *sorted(seen - set(STATUSES))]
    names, is_long = sorted(sites), len(sites) > SHOWN_SITES
    if is_long:
        names.sort(key=lambda name: (-sites[name]["missed_rounds"], name))
    sent, received = (int(numbers.get("participation", f"bytes_{way}_sites")) for way in ("to", "from"))
    return {
        "statuses": [find_status(status) for status in statuses],
        "is_long": is_long,
        "table": _list_participation(numbers, names[:SHOWN_SITES]),
        "folded": _list_participation(numbers, names[SHOWN_SITES:]) if is_long else None,
        "rest": f"The other {count(len(names) - SHOWN_SITES, 'site')}",
        # What travelled in all rounds together; tables and requests are some KiB beside it.
        "sent": f"{sent:,}",
        "received": f"{received:,}",
        "with_bytes": bool(sent or received),
    }


def _list_participation(numbers: Numbers, names: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for site in names:
        path = ("participation", "sites", site)
        rows.append(
            [
                show_name(site),
                numbers.show(*path, "accepted_rounds"),
                numbers.show(*path, "missed_rounds"),
                numbers.show(*path, "mean_share"),
                render_macro("statuses", _group_statuses(numbers.get(*path, "statuses"))),
                render_macro("lines", _list_reasons(numbers.get(*path, "reasons"))),
            ]
        )
    columns = [
        "Site",
        "Rounds taken part",
        "Rounds missed",
        "Mean share of the model",
        "Rounds, from the first",
        "Left out or limited",
    ]
    caption = "The share is the site's weight in the averaged model, over all rounds; a missed round counts as 0."
    return Table(caption, columns, rows, "participation")


def _group_statuses(statuses: Sequence[str]) -> list[str]:
    symbols = "".join(find_status(status).symbol for status in statuses)
    return [symbols[start : start + ROUNDS_PER_GROUP] for start in range(0, len(symbols), ROUNDS_PER_GROUP)]


def _list_reasons(reasons: Sequence[LeftOut]) -> list[str]:
    lines = [
        f"{entry['status']} in round {format_ranges(entry['rounds'])}: {entry['reason']}"
        for entry in reasons[:MOST_REASONS]
    ]
    if len(reasons) > MOST_REASONS:
        lines.append(f"{len(reasons) - MOST_REASONS} more in report.json")
    return lines


def format_ranges(rounds: Sequence[int]) -> str:
    """Return sorted numbers with runs joined: ``[1, 3, 4, 5]`` is ``1, 3 to 5``."""
    runs: list[list[int]] = []
    for number in rounds:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)

"""How the run went: curves, rounds, composition of the sites and participation."""

from collections.abc import Sequence

from fedmed.report.drawing.markup import (
    Numbers,
    escape,
    render_figure,
    render_fold,
    render_legend,
    render_section,
    render_table,
    show_name,
)
from fedmed.report.drawing.palette import series_css
from fedmed.report.drawing.plots import MOST_SINGLE_LINES, draw_loss, draw_validation
from fedmed.report.drawing.wording import count, label_figure
from fedmed.report.schema.document import LeftOut, RoundEntry, SiteParticipation
from fedmed.storage.statuses import STATUSES, find_status

SHOWN_SITES = 20
MOST_REASONS = 3
ROUNDS_PER_GROUP = 10


def render_rounds(numbers: Numbers) -> str:
    """Return the curves over the rounds and the folded table of rounds."""
    history: list[RoundEntry] = numbers.get("history")
    if not history:
        return render_section("rounds", "Training over the rounds", "<p>No round is recorded.</p>")
    if len(history) == 1:
        return render_section("rounds", "Training over the rounds", _list_rounds(numbers))
    figures = f'<div class="grid">{_render_loss(numbers)}{_render_validation(numbers)}</div>'
    return render_section(
        "rounds", "Training over the rounds", figures, render_fold("All rounds", _list_rounds(numbers))
    )


def _render_loss(numbers: Numbers) -> str:
    history: list[RoundEntry] = numbers.get("history")
    svg = draw_loss([record["round"] for record in history], [r["loss"] for r in history], numbers.get("chosen_round"))
    return render_figure(
        svg, "Training loss, averaged over the sites that took part. The dashed line is the chosen round."
    )


def _render_validation(numbers: Numbers) -> str:
    history: list[RoundEntry] = numbers.get("history")
    key: str = numbers.get("course_figure")
    names = sorted({site for record in history for site in record["validation"]["sites"]})
    sites = [[record["validation"]["sites"].get(name, {}).get(key) for record in history] for name in names]
    pooled = [record["validation"]["pooled"].get(key) for record in history]
    chosen = numbers.get("chosen_round")
    svg = draw_validation([record["round"] for record in history], pooled, sites, label_figure(key), chosen)
    lines = "Thin lines: one for each site."
    if len(names) > MOST_SINGLE_LINES:
        shown = "the band is the middle half and the dotted lines are the best and the worst."
        lines = f"Of {count(len(names), 'site')}, {shown}"
    caption = (
        f"{label_figure(key)} on the validation images. Thick line: pooled. {lines if len(names) > 1 else ''} "
        "The dashed line is the chosen round."
    )
    return render_figure(svg, caption)


def _list_rounds(numbers: Numbers) -> str:
    keys = [key for key in ("balanced_accuracy", "accuracy", "macro_f1") if _has_pooled(numbers, key)]
    with_rate = any(record["learning_rate"] is not None for record in numbers.get("history"))
    rows = []
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
    return render_table("Rounds with the pooled validation figures.", columns, rows)


def _has_pooled(numbers: Numbers, key: str) -> bool:
    return any(key in record["validation"]["pooled"] for record in numbers.get("history"))


def render_composition(numbers: Numbers) -> str:
    """Return the images of the sites by class, or nothing where class counts stay at the sites."""
    composition: dict[str, dict[str, dict[str, int]]] | None = numbers.get("composition")
    if not composition:
        return ""

    def size(name: str) -> int:
        return sum(composition[name]["train"].values())

    names = sorted(composition)
    tables = [_list_composition(numbers, names[:SHOWN_SITES] if len(names) <= SHOWN_SITES else [])]
    if len(names) > SHOWN_SITES:
        ranked = sorted(names, key=lambda name: (-size(name), name))
        caption = f"The other {count(len(names) - SHOWN_SITES, 'site')}"
        tables = [
            f"<p>The {SHOWN_SITES} sites with the most training images come first.</p>",
            _list_composition(numbers, ranked[:SHOWN_SITES]),
            render_fold(caption, _list_composition(numbers, ranked[SHOWN_SITES:])),
        ]
    return render_section("composition", "Composition of the sites", render_legend(numbers.get("classes")), *tables)


def _list_composition(numbers: Numbers, names: Sequence[str]) -> str:
    classes = numbers.get("classes")
    rows = []
    for site in names:
        parts = numbers.get("composition", site)
        cells = [
            " / ".join(
                numbers.show("composition", site, part, name)
                for part in ("train", "validation", "test")
                if part in parts
            )
            for name in classes
        ]
        rows.append([show_name(site), _draw_mix([parts["train"][name] for name in classes]), *cells])
    caption = "Bars: shares of the classes in the training images. Numbers: images for training / validation / test."
    return render_table(caption, ["Site", "Training images", *map(show_name, classes)], rows, "counts")


def _draw_mix(counts: Sequence[int]) -> str:
    total, left, bars = max(sum(counts), 1), 0.0, []
    for index, number in enumerate(counts):
        width = 100 * number / total
        bars.append(f'<rect class="{series_css(index)}" x="{left:.2f}" y="0" width="{width:.2f}" height="10"/>')
        left += width
    return f'<svg class="mix" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(bars)}</svg>'


def render_participation(numbers: Numbers) -> str:
    """Return who took part in which round, each site's share, and why it was left out."""
    sites: dict[str, SiteParticipation] = numbers.get("participation", "sites")
    if not sites:
        return ""
    seen = {status for site in sites.values() for status in site["statuses"]}
    statuses = [*(status for status in STATUSES if status in seen), *sorted(seen - set(STATUSES))]
    legend = "".join(f"<li>{_explain_status(status)}</li>" for status in statuses)
    names = sorted(sites)
    if len(names) <= SHOWN_SITES:
        tables = [_list_participation(numbers, names)]
    else:
        names.sort(key=lambda name: (-sites[name]["missed_rounds"], name))
        rest = _list_participation(numbers, names[SHOWN_SITES:])
        tables = [
            "<p>The sites that missed most rounds come first.</p>",
            _list_participation(numbers, names[:SHOWN_SITES]),
            render_fold(f"The other {count(len(names) - SHOWN_SITES, 'site')}", rest),
        ]
    return render_section(
        "participation", "Participation", f'<ul class="legend">{legend}</ul>', *tables, _say_bytes(numbers)
    )


def _say_bytes(numbers: Numbers) -> str:
    """Return what travelled in all rounds together; tables and requests are some KiB beside it."""
    sent, received = (int(numbers.get("participation", f"bytes_{way}_sites")) for way in ("to", "from"))
    if not sent and not received:
        return ""
    return f"<p>Models sent to sites: {sent:,} bytes. Updates received: {received:,} bytes.</p>"


def _explain_status(status: str) -> str:
    row = find_status(status)
    return f'<span class="rounds-key">{row.symbol}</span> {escape(row.word)}: {escape(row.meaning)}'


def _list_participation(numbers: Numbers, names: Sequence[str]) -> str:
    rows = []
    for site in names:
        path = ("participation", "sites", site)
        rows.append(
            [
                show_name(site),
                numbers.show(*path, "accepted_rounds"),
                numbers.show(*path, "missed_rounds"),
                numbers.show(*path, "mean_share"),
                _draw_statuses(numbers.get(*path, "statuses")),
                _list_reasons(numbers.get(*path, "reasons")),
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
    return render_table(caption, columns, rows, "participation")


def _draw_statuses(statuses: Sequence[str]) -> str:
    symbols = [find_status(status).symbol for status in statuses]
    groups = [
        f"<span>{''.join(symbols[start : start + ROUNDS_PER_GROUP])}</span>"
        for start in range(0, len(symbols), ROUNDS_PER_GROUP)
    ]
    return f'<span class="rounds" aria-hidden="true">{" ".join(groups)}</span>'


def _list_reasons(reasons: Sequence[LeftOut]) -> str:
    lines = [
        f"{escape(entry['status'])} in round {format_ranges(entry['rounds'])}: {escape(entry['reason'])}"
        for entry in reasons[:MOST_REASONS]
    ]
    if len(reasons) > MOST_REASONS:
        lines.append(f"{len(reasons) - MOST_REASONS} more in report.json")
    return "<br>".join(lines)


def format_ranges(rounds: Sequence[int]) -> str:
    """Return sorted numbers with runs joined: ``[1, 3, 4, 5]`` is ``1, 3 to 5``."""
    runs: list[list[int]] = []
    for number in rounds:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)

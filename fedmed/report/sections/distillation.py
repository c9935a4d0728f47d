"""The page's part on the distillation from a teacher: how near the features came, and what the prompt has learned."""

from fedmed.report.drawing.fairness_plots import draw_course
from fedmed.report.drawing.markup import (
    Numbers,
    escape,
    format_number,
    render_figure,
    render_fold,
    render_key,
    render_section,
    render_table,
    show_name,
)
from fedmed.report.schema.document import Band, DistillationEntry, DistillationRound

MOST_ROWS = 40


def render_distillation(numbers: Numbers) -> str:
    """Return the section on the distillation, or nothing where there was none."""
    told: DistillationEntry | None = numbers.get("distillation")
    if told is None:
        return ""
    teacher = told["teacher"]
    name = f"the frozen public network {escape(teacher.get('name', 'unknown'))}"
    name += f" ({escape(teacher.get('source', 'unknown'))})"
    if teacher.get("source") == "self":
        name = "the global model of the round before, which is not FoPro-KD"
    first, last = numbers.show("distillation", "rounds", 0, "ekd"), _show_last(numbers)
    return render_section(
        "distillation",
        "Distillation from a teacher",
        f"<p>The sites learned from {name}. The distance between their projected features "
        f"and the teacher's, from 0 (same direction) to 4 (opposite), was {first} in the first round and {last} in the "
        "last. A small distance is no proof of a better model: compare with a run without a teacher.</p>",
        _render_gains(numbers),
        render_fold("Sites in the last round", _render_sites(numbers)),
    )


def _show_last(numbers: Numbers) -> str:
    return numbers.show("distillation", "rounds", len(numbers.get("distillation", "rounds")) - 1, "ekd")


def _render_gains(numbers: Numbers) -> str:
    """Return the gain of the averaged prompt, a reconstruction, over the rounds by band of frequencies."""
    rounds: list[DistillationRound] = numbers.get("distillation", "rounds")
    bands: list[Band] | None = numbers.get("distillation", "bands")
    if bands is None:
        return "<p>There was no Fourier prompt with one gain for all images.</p>"
    gains = [record["gains"] or [None] * len(bands) for record in rounds]
    shown = [index for index in range(len(bands)) if any(own[index] is not None for own in gains)]
    lines = [[own[index] for own in gains] for index in shown]
    description = "Gain of the Fourier prompt over the rounds, one line for each band of frequencies."
    chosen = numbers.get("chosen_round")
    svg = draw_course([record["round"] for record in rounds], lines, "Gain", chosen, description)
    caption = (
        "What the averaged Fourier prompt (a reconstruction) does to the image that the teacher sees: above 1 it "
        "raises the frequencies of a band, below 1 it lowers them. Bands in shares of the highest "
        "frequency of the image."
    )
    return render_figure(svg, caption, render_key([_name_band(bands[index]) for index in shown]))


def _name_band(band: Band) -> str:
    return f"{format_number(band['low'])} to {format_number(band['high'])}"


def _render_sites(numbers: Numbers) -> str:
    rounds: list[DistillationRound] = numbers.get("distillation", "rounds")
    bands: list[Band] | None = numbers.get("distillation", "bands")
    last = len(rounds) - 1
    names = list(rounds[last]["sites"])[:MOST_ROWS]
    columns = ["Site", "Distance", *(f"Gain {_name_band(band)}" for band in bands or [])]
    rows = []
    for name in names:
        path = ("distillation", "rounds", last, "sites", name)
        told = numbers.get(*path, "gains") or []
        gains = [numbers.show(*path, "gains", i) if i < len(told) else "not told" for i in range(len(bands or []))]
        rows.append([show_name(name), numbers.show(*path, "ekd"), *gains])
    more = f" The first {MOST_ROWS} sites." if len(rounds[last]["sites"]) > MOST_ROWS else ""
    return render_table(
        f"Distance of features and gain of the site's own prompt. Sites with few images keep theirs.{more}",
        columns,
        rows,
    )

"""The page's part on the distillation from a teacher: how near the features came, and what the prompt has learned."""

from fedmed.report.drawing.fairness_plots import draw_course
from fedmed.report.drawing.markup import Cell, Numbers, Table, format_number, show_name
from fedmed.report.drawing.palette import make_key
from fedmed.report.schema.document import Band, DistillationEntry, DistillationRound
from fedmed.report.sections.values import Values

MOST_ROWS = 40


def describe_distillation(numbers: Numbers) -> Values | None:
    """Return the section on the distillation, None where there was none."""
    told: DistillationEntry | None = numbers.get("distillation")
    if told is None:
        return None
    teacher = told["teacher"]
    return {
        "teacher": teacher.get("name", "unknown"),
        "source": teacher.get("source", "unknown"),
        "last": len(told["rounds"]) - 1,
        "gains": _draw_gains(numbers),
        "sites": _list_sites(numbers),
    }


def _draw_gains(numbers: Numbers) -> Values | None:
    """Return the gain of the averaged prompt, a reconstruction, over the rounds by band of frequencies."""
    rounds: list[DistillationRound] = numbers.get("distillation", "rounds")
    bands: list[Band] | None = numbers.get("distillation", "bands")
    if bands is None:
        return None
    gains = [record["gains"] or [None] * len(bands) for record in rounds]
    shown = [index for index in range(len(bands)) if any(own[index] is not None for own in gains)]
    lines = [[own[index] for own in gains] for index in shown]
    description = "Gain of the Fourier prompt over the rounds, one line for each band of frequencies."
    chosen = numbers.get("chosen_round")
    drawing = draw_course([record["round"] for record in rounds], lines, "Gain", chosen, description)
    return {"drawing": drawing, "key": make_key([_name_band(bands[index]) for index in shown])}


def _name_band(band: Band) -> str:
    return f"{format_number(band['low'])} to {format_number(band['high'])}"


def _list_sites(numbers: Numbers) -> Table:
    rounds: list[DistillationRound] = numbers.get("distillation", "rounds")
    bands: list[Band] | None = numbers.get("distillation", "bands")
    last = len(rounds) - 1
    names = list(rounds[last]["sites"])[:MOST_ROWS]
    columns = ["Site", "Distance", *(f"Gain {_name_band(band)}" for band in bands or [])]
    rows: list[list[Cell]] = []
    for name in names:
        path = ("distillation", "rounds", last, "sites", name)
        told = numbers.get(*path, "gains") or []
        gains = [numbers.show(*path, "gains", i) if i < len(told) else "not told" for i in range(len(bands or []))]
        rows.append([show_name(name), numbers.show(*path, "ekd"), *gains])
    more = f" The first {MOST_ROWS} sites." if len(rounds[last]["sites"]) > MOST_ROWS else ""
    caption = f"Distance of features and gain of the site's own prompt. Sites with few images keep theirs.{more}"
    return Table(caption, columns, rows)

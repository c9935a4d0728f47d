"""Dot-and-interval plots as tables: a row has its name, its numbers, and a drawing on an axis shared by all rows.

A table rather than a picture, so that long names wrap, a screen reader reads the numbers, and a page break falls
between two rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedmed.report.drawing.markup import format_number
from fedmed.report.schema.figures import Drawn

STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)
MOST_TICKS = 6
SMALLEST_SPAN = 0.02


@dataclass(frozen=True)
class ForestRow:
    """One row of the plot.

    Attributes
    ----------
    heading : str
        HTML of the row's name.
    cells : sequence of str
        HTML of the cells between name and drawing.
    figure : dict or None
        ``value`` and ``interval`` as in ``report.json``; None where there is nothing to draw.
    """

    heading: str
    cells: Sequence[str]
    figure: Drawn | None


@dataclass(frozen=True)
class Axis:
    """A range of values and its labelled ticks."""

    low: float
    high: float
    step: float

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 100; values beyond an end lie on it."""
        return 100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    @property
    def ticks(self) -> list[float]:
        """The labelled values, the ends included."""
        return [self.low + index * self.step for index in range(round((self.high - self.low) / self.step) + 1)]


def make_axis(figures: Sequence[Drawn | None], reference: float | None) -> Axis:
    """Return the shortest axis with round ends that holds all figures, their intervals and the reference."""
    values = [] if reference is None else [reference]
    for figure in figures:
        if figure is not None and figure["value"] is not None:
            values += [figure["value"], *(figure["interval"] or ())]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < SMALLEST_SPAN:
        low, high = low - SMALLEST_SPAN / 2, high + SMALLEST_SPAN / 2
    step = next(step for step in (*STEPS, math.inf) if _count_steps(low, high, step) < MOST_TICKS)
    if math.isinf(step):
        step = (high - low) / (MOST_TICKS - 2)
    # Sums of rounded numbers may exceed a tick by their last digit.
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)


def _count_steps(low: float, high: float, step: float) -> int:
    return 0 if math.isinf(step) else math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9)


def render_forest(
    caption: str, columns: Sequence[str], parts: Sequence[tuple[str, Sequence[ForestRow]]], reference: float | None
) -> str:
    """Return a dot-and-interval plot.

    Parameters
    ----------
    caption : str
        HTML of the caption, which says what the dashed line is.
    columns : sequence of str
        HTML of the column headings, the last one that of the drawing.
    parts : sequence of (str, sequence of ForestRow)
        HTML of each part's heading, which may be empty, and its rows.
    reference : float or None
        Where to draw the dashed line.
    """
    axis = make_axis([row.figure for _, rows in parts for row in rows], reference)
    head = "".join(f'<th scope="col">{column}</th>' for column in columns[:-1])
    head += f'<th scope="col" class="drawn">{columns[-1]}{_draw_axis(axis)}</th>'
    body = "\n".join(_render_part(title, rows, len(columns), axis, reference) for title, rows in parts)
    return (
        f'<div class="scroll" tabindex="0"><table class="forest"><caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n{body}</table></div>"
    )


def _render_part(title: str, rows: Sequence[ForestRow], width: int, axis: Axis, reference: float | None) -> str:
    heading = f'<tr><th scope="rowgroup" colspan="{width}" class="part">{title}</th></tr>\n' if title else ""
    lines = "\n".join(
        f'<tr><th scope="row">{row.heading}</th>{"".join(f"<td>{cell}</td>" for cell in row.cells)}'
        f'<td class="drawn">{draw_row(row.figure, axis, reference)}</td></tr>'
        for row in rows
    )
    return f"<tbody>\n{heading}{lines}\n</tbody>"


def _draw_axis(axis: Axis) -> str:
    decimals = max(0, -math.floor(math.log10(axis.step) + 1e-9)) + (1 if axis.step == 0.25 else 0)
    labels = "".join(
        f'<span style="left:{axis.place(tick):.1f}%">{format_number(round(tick, 9) + 0.0, decimals)}</span>'
        for tick in axis.ticks
    )
    return f'<span class="axis" aria-hidden="true">{labels}</span>'


def draw_row(figure: Drawn | None, axis: Axis, reference: float | None) -> str:
    """Return the drawing of one row: grid, dashed reference, interval as a line and value as a dot."""
    # Strokes keep their width when the drawing is stretched; a stroke of no length with round ends is a dot.
    marks = [f'<path class="grid-line" d="M{axis.place(tick):.1f} 0V20"/>' for tick in axis.ticks]
    if reference is not None:
        marks.append(f'<path class="reference" d="M{axis.place(reference):.1f} 0V20"/>')
    if figure is not None and figure["value"] is not None:
        if figure["interval"] is not None:
            low, high = (axis.place(end) for end in figure["interval"])
            marks.append(f'<path class="whisker" d="M{low:.1f} 10H{high:.1f}"/>')
        marks.append(f'<path class="dot" d="M{axis.place(figure["value"]):.1f} 10h0"/>')
    return f'<svg class="row" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{"".join(marks)}</svg>'

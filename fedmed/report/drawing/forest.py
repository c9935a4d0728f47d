"""Dot-and-interval plots as tables: a row has its name, its numbers, and a drawing on an axis shared by all rows.

A table rather than a picture, so that long names wrap, a screen reader reads the numbers, and a page break falls
between two rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedmed.report.drawing.markup import Cell, format_number
from fedmed.report.drawing.templates import render_macro
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
        The row's name.
    cells : sequence of str
        The cells between name and drawing.
    figure : dict or None
        ``value`` and ``interval`` as in ``report.json``; None where there is nothing to draw.
    """

    heading: Cell
    cells: Sequence[Cell]
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
    caption: Cell, columns: Sequence[Cell], parts: Sequence[tuple[Cell, Sequence[ForestRow]]], reference: float | None
) -> Markup:
    """Return a dot-and-interval plot.

    Parameters
    ----------
    caption : str
        What the dashed line is.
    columns : sequence of str
        The column headings, the last one that of the drawing.
    parts : sequence of (str, sequence of ForestRow)
        Each part's heading, which may be empty, and its rows.
    reference : float or None
        Where to draw the dashed line.
    """
    axis = make_axis([row.figure for _, rows in parts for row in rows], reference)
    drawn = [
        (title, [(row.heading, row.cells, draw_row(row.figure, axis, reference)) for row in rows])
        for title, rows in parts
    ]
    return render_macro("forest", caption, columns, _label_axis(axis), drawn)


def _label_axis(axis: Axis) -> list[tuple[str, str]]:
    """Return place in percent and text of each label."""
    decimals = max(0, -math.floor(math.log10(axis.step) + 1e-9)) + (1 if axis.step == 0.25 else 0)
    return [(f"{axis.place(tick):.1f}", format_number(round(tick, 9) + 0.0, decimals)) for tick in axis.ticks]


def draw_row(figure: Drawn | None, axis: Axis, reference: float | None) -> Markup:
    """Return the drawing of one row: grid, dashed reference, interval as a line and value as a dot."""
    # Strokes keep their width when the drawing is stretched; a stroke of no length with round ends is a dot.
    paths = [("grid-line", f"M{axis.place(tick):.1f} 0V20") for tick in axis.ticks]
    if reference is not None:
        paths.append(("reference", f"M{axis.place(reference):.1f} 0V20"))
    if figure is not None and figure["value"] is not None:
        if figure["interval"] is not None:
            low, high = (axis.place(end) for end in figure["interval"])
            paths.append(("whisker", f"M{low:.1f} 10H{high:.1f}"))
        paths.append(("dot", f"M{axis.place(figure['value']):.1f} 10h0"))
    return render_macro("forest_row", paths)

"""Drawings of the fairness part as SVG, in the manner of ``figures.py``."""

import textwrap
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmed.report.drawing.palette import NUM_COLOURS
from fedmed.report.drawing.plots import HEIGHT_IN, INK, SERIES, WIDTH_IN, finish_rounds, render_drawing, to_array

LONGEST_NAME = 34
MARKERS_ON_A_LINE = 8
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # fedmed.report.drawing.palette.SYMBOLS are the same as text

FrontPoint = tuple[str, float | None, tuple[float, float] | None, float | None, tuple[float, float] | None]
"""Name; value and interval across; value and interval upwards."""


def draw_course(
    rounds: Sequence[int], lines: Sequence[Sequence[float | None]], label: str, chosen: int, description: str
) -> Markup:
    """Return lines over the rounds as SVG, drawn as the macro ``key`` names them.

    Parameters
    ----------
    rounds : sequence of int, (R,)
        Numbers of the rounds.
    lines : sequence of sequences, (G, R)
        One line for each group or attribute; None leaves a gap.
    label : str
        Name of the figure.
    chosen : int
        The round to mark.
    description : str
        What a screen reader says instead of the drawing.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        # A few markers on every line tell it apart without colours; each line starts at another round.
        distance = max(1, len(rounds) // MARKERS_ON_A_LINE)
        for index, values in enumerate(lines):
            axes.plot(
                rounds,
                to_array(values),
                color=SERIES[index % NUM_COLOURS],
                linewidth=1.6,
                marker=MARKERS[index % len(MARKERS)],
                markersize=6,
                markevery=(index % distance, distance),
            )
        finish_rounds(axes, label, chosen)

    return render_drawing(draw, f"course {description}", description, WIDTH_IN, HEIGHT_IN)


def draw_front(points: Sequence[FrontPoint], x_label: str, y_label: str, *, standalone: bool = False) -> Markup:
    """Return options as points with their intervals in both directions, as SVG.

    Parameters
    ----------
    points : sequence of (name, x, x_interval, y, y_interval)
        An option without a value in either direction is listed and not drawn.
    x_label, y_label : str
        Names of the two figures, with the direction that is better.
    standalone : bool
        Whether the SVG is a file of its own.

    Notes
    -----
    Every option has a number beside its dot, and a colour; the list of names is beside the plot.
    """
    height = max(HEIGHT_IN, 0.9 + 0.24 * len(points))

    def draw(figure: Figure) -> None:
        axes, names = figure.subplots(1, 2, width_ratios=[3, 2])
        for index, point in enumerate(points):
            _plot_point(axes, index, point)
        axes.set(xlabel=x_label, ylabel=textwrap.fill(y_label, LONGEST_NAME))
        axes.margins(0.12)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=5))
        names.set_axis_off()
        for index, (name, x, _, y, _) in enumerate(points):
            known = x is not None and y is not None
            line = f"{index + 1}  {_shorten_name(name)}{'' if known else ' (n/a)'}"
            place = 1 - (index + 0.5) / max(len(points), 12)
            names.text(0.06, place, line, ha="left", va="center", fontsize=10, color=INK)
            if known:
                names.plot([0.0], [place], "o", color=SERIES[index % NUM_COLOURS], markersize=6, clip_on=False)
        names.set(xlim=(0, 1), ylim=(0, 1))

    description = f"{y_label} against {x_label}, of {len(points)} options with their intervals: " + "; ".join(
        _describe_point(index, point) for index, point in enumerate(points)
    )
    return render_drawing(draw, "front", description, 1.45 * WIDTH_IN, height, standalone=standalone)


def _plot_point(axes: Axes, index: int, point: FrontPoint) -> None:
    _, x, x_interval, y, y_interval = point
    if x is None or y is None:
        return
    colour = SERIES[index % NUM_COLOURS]
    if x_interval is not None:
        axes.plot(x_interval, [y, y], color=colour, linewidth=1.4)
    if y_interval is not None:
        axes.plot([x, x], y_interval, color=colour, linewidth=1.4)
    axes.plot([x], [y], "o", color=colour, markersize=7)
    axes.annotate(str(index + 1), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=10, color=INK)


def _describe_point(index: int, point: FrontPoint) -> str:
    name, x, x_interval, y, y_interval = point
    across, upwards = _say_value(x, x_interval), _say_value(y, y_interval)
    return f"{index + 1} {name}: {across} across, {upwards} upwards"


def _say_value(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval is not None else "")


def _shorten_name(name: str) -> str:
    # Matplotlib measures text with its own font and warns of every letter that this font lacks.
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name)
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 3] + "..."

"""Curves as SVG for the page. Only this file and ``fairness_figures.py`` know matplotlib.

Names from outside never enter a drawing: legends are HTML beside it. Colours are the page's CSS variables, so that a
drawing follows the page into the dark.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmed.report.drawing.palette import LIGHT, NUM_COLOURS

WIDTH_IN, HEIGHT_IN = 5.6, 3.7
SQUARE_IN = 5.2
MOST_SINGLE_LINES = 12
MARKERS_UP_TO = 30

# Stand-ins that matplotlib accepts; _inline_svg turns them into CSS variables.
INK, MUTED, LINE, RANGE = "#010001", "#010002", "#010003", "#010004"
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", RANGE: "range"}
SERIES = [f"#0200{index:02x}" for index in range(NUM_COLOURS)]
_VARIABLES |= {stand_in: f"c{index}" for index, stand_in in enumerate(SERIES)}
_STROKES = ["solid", "dashed", "dotted"]

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
}


def draw_loss(rounds: Sequence[int], loss: Sequence[float | None], chosen: int) -> Markup:
    """Return the training loss over the rounds (length R each) as SVG."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _plot_line(axes, rounds, to_array(loss), SERIES[0], width=2.0)
        finish_rounds(axes, "Training loss", chosen)

    return render_drawing(draw, "loss", "Training loss over the rounds.", WIDTH_IN, HEIGHT_IN)


def draw_validation(
    rounds: Sequence[int],
    pooled: Sequence[float | None],
    sites: Sequence[Sequence[float | None]],
    label: str,
    chosen: int,
) -> Markup:
    """Return a validation figure over the rounds as SVG.

    Parameters
    ----------
    rounds : sequence of int, (R,)
        Numbers of the rounds.
    pooled : sequence of float or None, (R,)
        The figure over all sites' images, a thick line.
    sites : sequence of sequences, (S, R)
        The figure of each site: a thin line each, and for many sites the range and the middle half instead.
    label : str
        Name of the figure.
    chosen : int
        The round to mark.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        by_site = np.array([to_array(values) for values in sites]).reshape(len(sites), len(rounds))
        if len(sites) > MOST_SINGLE_LINES:
            _plot_spread(axes, rounds, by_site)
        elif len(sites) > 1:
            for values in by_site:
                _plot_line(axes, rounds, values, MUTED, width=0.8)
        _plot_line(axes, rounds, to_array(pooled), SERIES[0], width=2.4)
        finish_rounds(axes, label, chosen)

    return render_drawing(draw, "validation", f"{label} on the validation images over the rounds.", WIDTH_IN, HEIGHT_IN)


def draw_roc(curves: Sequence[tuple[int, Sequence[float], Sequence[float]]]) -> Markup:
    """Return ROC curves as SVG, from (index of the class, false positive rates, true positive rates)."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle="dashed")
        for index, fpr, tpr in curves:
            stroke = _STROKES[index // NUM_COLOURS % len(_STROKES)]
            axes.plot(fpr, tpr, color=SERIES[index % NUM_COLOURS], linewidth=1.8, linestyle=stroke)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="1 - specificity", ylabel="Sensitivity")

    return render_drawing(draw, "roc", "ROC curve of each class against all others.", SQUARE_IN, SQUARE_IN)


def draw_reliability(
    n: Sequence[float], confidence: Sequence[float | None], accuracy: Sequence[float | None], name: str = "after"
) -> Markup:
    """Return a reliability diagram as SVG: share of right answers over stated confidence, and images per bin.

    Parameters
    ----------
    n, confidence, accuracy : sequences, (15,)
        Images, mean confidence and share of right answers of 15 equal bins of the confidence; ``None`` in empty bins.
    name : str
        ``before`` or ``after`` the temperature, so that ids of two diagrams of a page differ.
    """

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        edges = np.linspace(0.0, 1.0, len(n) + 1)
        filled = np.array([count > 0 for count in n])
        upper.bar(edges[:-1][filled], to_array(accuracy)[filled], 1 / len(n), align="edge", color=RANGE)
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle="dashed")
        upper.plot(to_array(confidence)[filled], to_array(accuracy)[filled], "o", color=SERIES[0], markersize=4)
        upper.set(ylabel="Share right", ylim=(0, 1.02), xlim=(0, 1))
        lower.bar(edges[:-1], n, 1 / len(n), align="edge", color=MUTED)
        lower.set(xlabel="Stated confidence", ylabel="Images")

    description = f"Share of right answers over the stated confidence, {name} the temperature."
    return render_drawing(draw, f"reliability {name}", description, SQUARE_IN, SQUARE_IN)


def to_array(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return values with NaN for those that are missing."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _plot_line(axes: Axes, rounds: Sequence[int], values: Any, colour: str, width: float) -> None:
    # A lone round has no line to draw, and a gap leaves single points.
    marker = "o" if len(rounds) <= MARKERS_UP_TO else None
    axes.plot(rounds, values, color=colour, linewidth=width, marker=marker, markersize=1.6 * width)


def _plot_spread(axes: Axes, rounds: Sequence[int], by_site: Any) -> None:
    kept = [index for index in range(len(rounds)) if np.isfinite(by_site[:, index]).any()]
    quantiles = np.nanquantile(by_site[:, kept], [0.0, 0.25, 0.75, 1.0], axis=0)
    shown = np.array(rounds)[kept]
    axes.fill_between(shown, quantiles[1], quantiles[2], color=RANGE, linewidth=0)
    for values in (quantiles[0], quantiles[3]):
        axes.plot(shown, values, color=MUTED, linewidth=0.9, linestyle="dotted")


def finish_rounds(axes: Axes, label: str, chosen: int) -> None:
    """Mark the chosen round and name the axes."""
    axes.axvline(chosen, color=SERIES[3], linewidth=1.2, linestyle="dashed")
    axes.text(chosen, 1.01, "chosen", transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set(xlabel="Round", ylabel=label)


def render_drawing(
    draw: Any, name: str, description: str, width: float, height: float, *, standalone: bool = False
) -> Markup:
    """Return what ``draw`` makes of an empty figure as SVG.

    Parameters
    ----------
    draw : callable
        Draws into the matplotlib figure that it is given.
    name : str
        Name of the drawing, so that ids inside it are the same in every run.
    description : str
        What a screen reader says instead of the drawing.
    width, height : float
        In inches.
    standalone : bool
        Whether the SVG is a file of its own: with a name space and with the colours of the light page.
    """
    # A user's own matplotlib settings must not change a report.
    with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(width, height))
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=not standalone, metadata={"Date": None})
    # names from outside are not in it, but for the description, which is escaped
    return Markup(_inline_svg(file.getvalue(), description, standalone=standalone))  # noqa: S704


def _inline_svg(text: str, description: str, *, standalone: bool) -> str:
    """Strip a stand-alone SVG to what an HTML page needs: no prologue, metadata, global style or unused id."""
    opening = re.search(r"<svg[^>]*>", text)
    assert opening is not None, "matplotlib wrote no svg element"
    view_box = re.search(r'viewBox="[^"]*"', opening.group())
    assert view_box is not None, "matplotlib wrote no viewBox"
    body = text[opening.end() :].replace("xlink:href", "href")
    body = re.sub(
        r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", body, flags=re.DOTALL
    )
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', body))
    referenced = {name for pair in used for name in pair if name}
    body = re.sub(r' id="([^"]*)"', lambda match: match.group() if match.group(1) in referenced else "", body)
    body = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r'="[^"]*"', _shorten_numbers, body)
    for stand_in, variable in _VARIABLES.items():
        body = body.replace(stand_in, LIGHT[variable] if standalone else f"var(--{variable})")
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    space = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" stroke-linejoin="round" ' if standalone else ""
    return f'<svg {space}class="plot" {view_box.group()} role="img" aria-label="{escape(description)}">{body}'


def _shorten_numbers(attribute: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match.group()):.2f}", attribute.group())

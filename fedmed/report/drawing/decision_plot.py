"""The decision curve as SVG for the page."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from fedmed.report.drawing.plots import HEIGHT_IN, MUTED, RANGE, SERIES, WIDTH_IN, render_drawing
from fedmed.report.schema.clinical import CurveEntry

MOST_SITES = 12
"""Lines of single sites; of more sites none is drawn."""


def draw_decision(
    thresholds: Sequence[float],
    whole: CurveEntry,
    sites: Sequence[CurveEntry],
    chosen: tuple[float, float | None] | None,
) -> Markup:
    """Return net benefit over the threshold as SVG.

    Parameters
    ----------
    thresholds : sequence of float, (T,)
        Probabilities.
    whole : CurveEntry
        Of all sites: a thick line, with what merged bins leave open around it, and an alert for every image dashed.
    sites : sequence of CurveEntry
        Of each site: a thin line each.
    chosen : (float, float or None), optional
        Probability of the operating point, which is marked, and its net benefit, which is drawn as a dot.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.fill_between(thresholds, whole["low"], whole["high"], color=RANGE, linewidth=0)
        for one in sites if len(sites) <= MOST_SITES else ():
            axes.plot(thresholds, one["value"], color=MUTED, linewidth=0.8)
        axes.axhline(0, color=MUTED, linewidth=1.0)
        axes.plot(thresholds, whole["all"], color=SERIES[3], linewidth=1.4, linestyle="dashed")
        axes.plot(thresholds, whole["value"], color=SERIES[0], linewidth=2.4)
        if chosen is not None and thresholds[0] <= chosen[0] <= thresholds[-1]:
            axes.axvline(chosen[0], color=SERIES[3], linewidth=1.2, linestyle="dotted")
            axes.text(
                chosen[0], 1.01, "chosen", transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=10
            )
            if chosen[1] is not None:
                axes.plot([chosen[0]], [chosen[1]], color=SERIES[3], marker="o", markersize=5)
        top = max(*whole["value"], whole["all"][0], 0.02)
        axes.set(
            xlim=(0, 1), ylim=(-0.3 * top, 1.15 * top), xlabel="Threshold of the probability", ylabel="Net benefit"
        )

    return render_drawing(draw, "decision", "Net benefit over the threshold of the probability.", WIDTH_IN, HEIGHT_IN)

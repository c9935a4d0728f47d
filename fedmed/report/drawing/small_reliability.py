"""Small reliability diagrams, many on a page: SVG by hand, since matplotlib takes a fifth of a second for each."""

from collections.abc import Iterator

from markupsafe import Markup

from fedmed.report.drawing.templates import render_macro
from fedmed.report.schema.figures import Reliability

_SIDE = 100.0
_LEFT, _TOP, _RIGHT, _BELOW = 36, 6, 8, 34
_TICKS = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
_LARGEST, _SMALLEST = 5.0, 1.6


def draw_small_reliability(before: Reliability | None, after: Reliability, description: str) -> Markup:
    """Return a small reliability diagram as SVG: dots after the temperature, and crosses before it.

    Parameters
    ----------
    before, after : dict
        ``n``, ``confidence`` and ``accuracy`` of 15 bins; ``before`` is None where there is no such model. The area of
        a mark grows with the images in the bin.
    description : str
        What a screen reader says instead of the drawing.
    """
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BELOW
    crosses = [] if before is None else [_draw_cross(*mark) for mark in _place_marks(before)]
    dots = [tuple(f"{value:.1f}" for value in mark) for mark in _place_marks(after)]
    return render_macro("small_reliability", f"{width:g}", f"{height:g}", description, _draw_frame(), crosses, dots)


def _place_marks(bins: Reliability) -> Iterator[tuple[float, float, float]]:
    """Yield place (across, downwards) and radius of every bin that has images."""
    largest = max(bins["n"])
    for number, confidence, accuracy in zip(bins["n"], bins["confidence"], bins["accuracy"], strict=True):
        if number and confidence is not None and accuracy is not None:
            radius = max(_SMALLEST, _LARGEST * (number / largest) ** 0.5)
            yield _LEFT + _SIDE * confidence, _TOP + _SIDE * (1 - accuracy), radius


def _draw_cross(x: float, y: float, radius: float) -> str:
    side = f"{2 * radius:.1f}"
    return f"M{x - radius:.1f} {y - radius:.1f}l{side} {side}m0 -{side}l-{side} {side}"


def _draw_frame() -> dict[str, object]:
    """Return grid, labels (across, downwards, anchor, text), the diagonal, and where the upright label stands."""
    right, bottom = _LEFT + _SIDE, _TOP + _SIDE
    grid, labels = [], []
    for value, label in _TICKS:
        x, y = _LEFT + _SIDE * value, bottom - _SIDE * value
        grid.append(f"M{x:g} {_TOP}V{bottom:g}M{_LEFT} {y:g}H{right:g}")
        labels.append((f"{x:g}", f"{bottom + 13:g}", "middle", label))
        labels.append((f"{_LEFT - 5}", f"{y + 3.5:g}", "end", label))
    labels.append((f"{_LEFT + _SIDE / 2:g}", f"{bottom + 29:g}", "middle", "Stated confidence"))
    return {
        "grid": grid,
        "labels": labels,
        "diagonal": f"M{_LEFT} {bottom:g}L{right:g} {_TOP}",
        "turn": f"translate(10 {_TOP + _SIDE / 2:g}) rotate(-90)",
    }

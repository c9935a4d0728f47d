"""Small reliability diagrams, many on a page: SVG by hand, since matplotlib takes a fifth of a second for each."""

from collections.abc import Iterator

from fedmed.report.drawing.markup import escape
from fedmed.report.schema.figures import Reliability

_SIDE = 100.0
_LEFT, _TOP, _RIGHT, _BELOW = 36, 6, 8, 34
_TICKS = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
_LARGEST, _SMALLEST = 5.0, 1.6


def draw_small_reliability(before: Reliability | None, after: Reliability, description: str) -> str:
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
    crosses = "" if before is None else "".join(_draw_cross(*mark) for mark in _place_marks(before))
    dots = "".join(_draw_dot(*mark) for mark in _place_marks(after))
    return (
        f'<svg class="plot small-plot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(description)}">{_draw_frame()}{crosses}{dots}</svg>'
    )


def _place_marks(bins: Reliability) -> Iterator[tuple[float, float, float]]:
    """Yield place (across, downwards) and radius of every bin that has images."""
    largest = max(bins["n"])
    for number, confidence, accuracy in zip(bins["n"], bins["confidence"], bins["accuracy"], strict=True):
        if number and confidence is not None and accuracy is not None:
            radius = max(_SMALLEST, _LARGEST * (number / largest) ** 0.5)
            yield _LEFT + _SIDE * confidence, _TOP + _SIDE * (1 - accuracy), radius


def _draw_dot(x: float, y: float, radius: float) -> str:
    return f'<circle class="after" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'


def _draw_cross(x: float, y: float, radius: float) -> str:
    side = f"{2 * radius:.1f}"
    start = f"{x - radius:.1f} {y - radius:.1f}"
    return f'<path class="before" d="M{start}l{side} {side}m0 -{side}l-{side} {side}"/>'


def _draw_frame() -> str:
    right, bottom = _LEFT + _SIDE, _TOP + _SIDE
    marks = []
    for value, label in _TICKS:
        x, y = _LEFT + _SIDE * value, bottom - _SIDE * value
        marks.append(f'<path class="grid-line" d="M{x:g} {_TOP}V{bottom:g}M{_LEFT} {y:g}H{right:g}"/>')
        marks.append(f'<text x="{x:g}" y="{bottom + 13:g}" text-anchor="middle">{label}</text>')
        marks.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:g}" text-anchor="end">{label}</text>')
    centre = _TOP + _SIDE / 2
    return (
        f'{"".join(marks)}<path class="reference" d="M{_LEFT} {bottom:g}L{right:g} {_TOP}"/>'
        f'<text x="{_LEFT + _SIDE / 2:g}" y="{bottom + 29:g}" text-anchor="middle">Stated confidence</text>'
        f'<text transform="translate(10 {centre:g}) rotate(-90)" text-anchor="middle">Share right</text>'
    )

"""Values of the document as the templates show them. Every number is marked with its place in ``report.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedmed.report.drawing.templates import fill, render_macro

DIGITS = 3
_MEANS = {"balanced_accuracy": "sensitivity", "sensitivity": "sensitivity", "auc": "auc"}
"""Means over the classes that have a value, and the figure that has these by class."""
EMPTY = Markup("")
Cell = str | Markup
"""Text, or what has been drawn."""
Rows = Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table as the macro ``table`` of ``macros.html`` draws it: it scrolls inside its own box.

    Attributes
    ----------
    caption : str
        What the table shows.
    columns : sequence of str
        The headings.
    rows : sequence of sequence of str
        The cells; the first cell of a row is its heading.
    css : str
        Further CSS classes.
    """

    caption: Cell
    columns: Sequence[Cell]
    rows: Rows
    css: str = ""


def show_name(text: object) -> Markup:
    """Return a name from outside, kept apart from the direction of writing around it."""
    return render_macro("name", str(text))


def format_number(value: float, digits: int = DIGITS) -> str:
    """Return an integer with thousands separators, and any other number with ``digits`` decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


class Numbers:
    """Shows values of the document, each marked with its JSON pointer (RFC 6901) in ``data-key``.

    Parameters
    ----------
    document : mapping
        What ``report.json`` holds.
    """

    def __init__(self, document: Mapping[str, object]) -> None:
        self.document = document

    def get(self, *path: str | int) -> Any:
        """Return the value at ``path``."""
        value: Any = self.document
        for part in path:
            value = value[part]
        return value

    def show(self, *path: str | int, digits: int = DIGITS, missing: str = "n/a") -> Markup:
        """Return the number at ``path``, marked; ``missing`` stands in for a value that is not there."""
        value = self.get(*path)
        return _mark(missing if value is None else format_number(value, digits), *path)

    def count(self, *path: str | int, noun: str = "image") -> Markup:
        """Return the number at ``path``, marked, with what it counts: ``1 image``, ``n/a images``."""
        return fill("{} {}", self.show(*path), noun if self.get(*path) == 1 else f"{noun}s")

    def show_signed(self, *path: str | int) -> Markup:
        """Return the number at ``path``, marked, a positive one with its sign."""
        value = self.get(*path)
        return _mark(f"{'+' if value > 0 else ''}{format_number(value)}", *path)

    def show_chance(self, *path: str | int) -> Markup:
        """Return the p-value at ``path`` with "p =" before it, and ``p < 0.001`` where three decimals would be 0."""
        value = self.get(*path)
        if value is None:
            return EMPTY
        return render_macro("chance", "p < 0.001" if value < 0.0005 else fill("p = {}", self.show(*path)))

    def figure(self, *path: str | int, like: str = "") -> Markup:
        """Return the value of the figure at ``path``, or ``n/a`` with the reason.

        The classes that it is over are not told if they are those of the figure ``like`` beside it.
        """
        figure = self.get(*path)
        shown = self.show(*path, "value", missing=f"n/a ({figure.get('reason', 'not defined')})")
        left_out = self._list_left_out(*path)
        if like and like != path[-1] and left_out == self._list_left_out(*path[:-1], like):
            return shown
        if not left_out or figure["value"] is None:
            return shown
        has_pooled = figure.get("pooled") is not None
        pooled = fill("; all together over the same: {}", self.show(*path, "pooled")) if has_pooled else EMPTY
        return join([shown, render_macro("over_classes", left_out, len(self.get("classes")), pooled)])

    def _list_left_out(self, *path: str | int) -> list[str]:
        """Return the classes that a figure leaves out: that are not told, or of which there is no image."""
        told, key = self.get(*path).get("over_classes"), path[-1]
        if told is None and key in _MEANS:
            by_class = self.get(*path[:-1]).get(_MEANS[key], {}).get("by_class", {})
            told = [name for name, entry in by_class.items() if entry["value"] is not None]
        return [str(name) for name in self.get("classes") if name not in told] if told else []

    def interval(self, *path: str | int, signed: bool = False, key: str = "interval") -> Markup:
        """Return the interval of the figure at ``path``, or nothing where it has none."""
        if self.get(*path).get(key) is None:
            return EMPTY
        low, high = ((self.show_signed if signed else self.show)(*path, key, side) for side in (0, 1))
        return render_macro("interval", fill("{} to {}", low, high))

    def figure_and_interval(self, *path: str | int, drawn: bool = False, like: str = "") -> Markup:
        """Return :meth:`figure` with the interval and, if ``drawn``, its :meth:`strip`, each on a line of its own."""
        return join([self.figure(*path, like=like), self.interval(*path), self.strip(*path) if drawn else EMPTY])

    def strip(self, *path: str | int, largest: float = 1.0) -> Markup:
        """Return a small drawing of the value (tick) and its interval (bar) on the range from 0 to ``largest``."""
        figure = self.get(*path)
        if figure["value"] is None:
            return EMPTY
        low, high = figure["interval"] or (figure["value"], figure["value"])
        left, right, tick = (100 * min(max(value / largest, 0.0), 1.0) for value in (low, high, figure["value"]))
        return render_macro("strip", f"{left:.1f}", f"{max(right - left, 0.5):.1f}", f"{max(tick - 0.75, 0.0):.1f}")


def _mark(text: str, *path: str | int) -> Markup:
    return render_macro("num", make_pointer(*path), text)


def make_pointer(*path: str | int) -> str:
    """Return the JSON pointer of ``path``, for example ``/figures/accuracy/value``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def join(parts: Sequence[Cell], between: Cell = "") -> Markup:
    """Return parts one after another; those that are text are escaped."""
    return Markup.escape(between).join(parts)

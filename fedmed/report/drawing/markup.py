"""Small pieces of HTML. Every text from outside goes through :func:`escape`; every number comes from the document."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from fedmed.report.drawing.palette import NUM_COLOURS, SYMBOLS, series_css

DIGITS = 3
Rows = Sequence[Sequence[str]]


def escape(text: object) -> str:
    """Return ``text`` as HTML text that is also safe inside a quoted attribute."""
    return html.escape(str(text), quote=True)


def show_name(text: object) -> str:
    """Return a name from outside, kept apart from the direction of writing around it."""
    return f"<bdi>{escape(text)}</bdi>"


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

    def show(self, *path: str | int, digits: int = DIGITS, missing: str = "n/a") -> str:
        """Return the number at ``path`` as marked HTML; ``missing`` stands in for a value that is not there."""
        value = self.get(*path)
        text = escape(missing) if value is None else format_number(value, digits)
        return f'<span class="num" data-key="{escape(make_pointer(*path))}">{text}</span>'

    def show_signed(self, *path: str | int) -> str:
        """Return the number at ``path`` as marked HTML, a positive one with its sign."""
        sign = "+" if self.get(*path) > 0 else ""
        text = f"{sign}{format_number(self.get(*path))}"
        return f'<span class="num" data-key="{escape(make_pointer(*path))}">{text}</span>'

    def show_chance(self, *path: str | int) -> str:
        """Return the p-value at ``path`` with "p =" before it, and ``p < 0.001`` where three decimals would be 0."""
        value = self.get(*path)
        if value is None:
            return ""
        text = "p &lt; 0.001" if value < 0.0005 else f"p = {self.show(*path)}"
        return f'<span class="chance">{text}</span>'

    def figure(self, *path: str | int) -> str:
        """Return the value of the figure at ``path``, or ``n/a`` with the reason."""
        reason = self.get(*path).get("reason", "not defined")
        return self.show(*path, "value", missing=f"n/a ({reason})")

    def interval(self, *path: str | int, signed: bool = False, key: str = "interval") -> str:
        """Return the interval of the figure at ``path``, or nothing where it has none."""
        if self.get(*path).get(key) is None:
            return ""
        low, high = ((self.show_signed if signed else self.show)(*path, key, side) for side in (0, 1))
        return f'<span class="interval">{low} to {high}</span>'

    def figure_and_interval(self, *path: str | int, drawn: bool = False) -> str:
        """Return the value with the interval and, if ``drawn``, its :meth:`strip`, each on a line of its own."""
        return f"{self.figure(*path)}{self.interval(*path)}{self.strip(*path) if drawn else ''}"

    def strip(self, *path: str | int, largest: float = 1.0) -> str:
        """Return a small drawing of the value (tick) and its interval (bar) on the range from 0 to ``largest``."""
        figure = self.get(*path)
        if figure["value"] is None:
            return ""
        low, high = figure["interval"] or (figure["value"], figure["value"])
        left, right, tick = (100 * min(max(value / largest, 0.0), 1.0) for value in (low, high, figure["value"]))
        return (
            '<svg class="strip" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            '<rect class="track" x="0" y="4.5" width="100" height="1"/>'
            f'<rect class="range" x="{left:.1f}" y="3" width="{max(right - left, 0.5):.1f}" height="4"/>'
            f'<rect class="tick" x="{max(tick - 0.75, 0.0):.1f}" y="0" width="1.5" height="10"/></svg>'
        )


def make_pointer(*path: str | int) -> str:
    """Return the JSON pointer of ``path``, for example ``/figures/accuracy/value``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def render_table(caption: str, columns: Sequence[str], rows: Rows, css: str = "") -> str:
    """Return a table that scrolls inside its own box.

    Parameters
    ----------
    caption : str
        HTML of the caption.
    columns : sequence of str
        HTML of the column headings.
    rows : sequence of sequence of str
        HTML of the cells; the first cell of a row is its heading.
    css : str
        Further CSS classes of the table.
    """
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="{css}"><caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def render_fold(summary: str, content: str, *, printed: bool = False) -> str:
    """Return ``content`` folded away under ``summary``, both HTML; ``printed`` content is unfolded on paper."""
    css = ' class="printed"' if printed else ""
    return f"<details{css}><summary>{summary}</summary>\n{content}\n</details>"


def render_section(anchor: str, heading: str, *content: str) -> str:
    """Return a section of the page with its heading."""
    body = "\n".join(part for part in content if part)
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-h">\n<h2 id="{anchor}-h">{heading}</h2>\n{body}\n</section>'
    )


def render_figure(svg: str, caption: str, legend: str = "") -> str:
    """Return a drawing with its caption and legend, all HTML."""
    return f"<figure>{svg}{legend}<figcaption>{caption}</figcaption></figure>"


def render_legend(names: Sequence[str]) -> str:
    """Return the key from the colours and strokes of :mod:`fedmed.report.drawing.palette` to names."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line x1="1" y1="4" x2="23" y2="4" '
        f'class="series {series_css(index)}"/></svg>{show_name(name)}</li>'
        for index, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def render_key(names: Sequence[str]) -> str:
    """Return the key from the colours and markers of lines to names, which are HTML."""
    items = "".join(
        f'<li><span class="symbol s{index % NUM_COLOURS}">{SYMBOLS[index % len(SYMBOLS)]}</span>{name}</li>'
        for index, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'

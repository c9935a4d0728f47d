"""Colours of the page, apart for most kinds of colour vision (Okabe and Ito 2008), in light and in dark."""

from collections.abc import Sequence

NUM_COLOURS = 8

LIGHT = {
    "ink": "#1c2128",
    "muted": "#57606a",
    "line": "#d4d9df",
    "paper": "#ffffff",
    "shade": "#8a94a0",
    "panel": "#f5f7f9",
    "link": "#005a9c",
    "warn": "#7a4a00",
    "warn-paper": "#fff4dc",
    "range": "#9cc7e3",
    "c0": "#0072b2",
    "c1": "#e69f00",
    "c2": "#009e73",
    "c3": "#d55e00",
    "c4": "#cc79a7",
    "c5": "#56b4e9",
    "c6": "#7f7f7f",
    "c7": "#b8a800",
}

DARK = LIGHT | {
    "ink": "#e6e9ed",
    "muted": "#a3adb8",
    "line": "#3b434c",
    "paper": "#14181d",
    "shade": "#6b7580",
    "panel": "#1d232a",
    "link": "#7cc0f0",
    "warn": "#ffd58a",
    "warn-paper": "#3a2d12",
    "range": "#2f6d94",
    "c0": "#4aa3dc",
    "c7": "#f0e442",
}

# One for each colour, so that no line is known by its colour alone.
SYMBOLS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")

NUM_SHADES = 11
_SHADE_FULL = (77, 156, 201)


def shade_colour(step: int) -> str:
    """Return the background of a confusion matrix's cell, from white (0) to a blue (10) that carries black."""
    share = step / (NUM_SHADES - 1)
    return "#" + "".join(f"{round(255 + share * (full - 255)):02x}" for full in _SHADE_FULL)


def series_css(index: int) -> str:
    """Return the CSS classes of a class by its index: eight colours, then the same with other strokes."""
    return f"c{index % NUM_COLOURS} d{index // NUM_COLOURS % 3}"


def make_legend(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return CSS classes and name of each class, for the macro ``legend``."""
    return [(series_css(index), name) for index, name in enumerate(names)]


def make_key(names: Sequence[str]) -> list[tuple[int, str, str]]:
    """Return colour, marker and name of each line, for the macro ``key``."""
    return [(index % NUM_COLOURS, SYMBOLS[index % len(SYMBOLS)], name) for index, name in enumerate(names)]

"""The page's part on shift: how far the images of sites differ, and which lie outside."""

from collections.abc import Sequence

from markupsafe import Markup

from fedmed.report.drawing.markup import EMPTY, Cell, Numbers, Table, show_name
from fedmed.report.drawing.templates import fill, render_macro
from fedmed.report.drawing.wording import count
from fedmed.report.schema.shift import ShiftEntry
from fedmed.report.sections.values import Values

SHOWN_SITES = 20
LABELS = {
    "mean_shift": "Shift of the mean",
    "spread_ratio": "Ratio of spreads",
    "distance": "Distance over all layers",
}


def describe_shift(numbers: Numbers) -> Values | None:
    """Return the section on shift, None where nothing is known."""
    if numbers.document.get("shift") is None:
        return None
    entry: ShiftEntry = numbers.get("shift")
    ranked = sorted(entry["sites"], key=lambda site: (not entry["sites"][site]["outside"], -_far(entry, site), site))
    rest = ranked[SHOWN_SITES:]
    return {
        "sites": count(len(ranked), "site"),
        "by_chance": entry["by_chance"] is not None,
        "outside": entry["outside"],
        "most": SHOWN_SITES,
        "table": _list_sites(numbers, ranked[:SHOWN_SITES]),
        "folded": _list_sites(numbers, rest) if rest else None,
        "rest": f"The other {count(len(rest), 'site')}",
    }


def _far(entry: ShiftEntry, site: str) -> float:
    return entry["sites"][site]["distance"]


def _list_sites(numbers: Numbers, sites: Sequence[str]) -> Table:
    usual: list[Cell] = ["Usual range", *(_show_range(numbers, key) for key in LABELS)]
    rows: list[list[Cell]] = [[show_name(site), *(_show_site(numbers, site, key) for key in LABELS)] for site in sites]
    caption = fill(
        "Statistics of round {}; the bar is the usual range, the mark the site, and each scale goes from the lowest to "
        "the highest number of the column. Sites outside come first, then the farthest.",
        numbers.show("shift", "round"),
    )
    return Table(caption, ["Site", *LABELS.values()], [usual, *rows])


def _show_range(numbers: Numbers, key: str) -> Cell:
    path = ("shift", "ranges", key)
    if numbers.get(*path, "low") is None:
        return "not known"
    return fill("{} to {}", numbers.show(*path, "low"), numbers.show(*path, "high"))


def _show_site(numbers: Numbers, site: str, key: str) -> Markup:
    path = ("shift", "sites", site)
    is_outside = key in numbers.get(*path, "outside")
    flag = fill(" {}", render_macro("flag", "outside", True)) if is_outside else EMPTY
    return numbers.show(*path, key) + flag + _draw(numbers, site, key)


def _draw(numbers: Numbers, site: str, key: str) -> Markup:
    """Return a small drawing of a site's number on the scale of all, with the usual range."""
    usual = numbers.get("shift", "ranges", key)
    known = [one[key] for one in numbers.get("shift", "sites").values()]
    low, high = (usual[end] if usual[end] is not None else usual["median"] for end in ("low", "high"))
    least, most = min(*known, low), max(*known, high)
    width = (most - least) or 1.0
    left, right, tick = (
        100 * (value - least) / width for value in (low, high, numbers.get("shift", "sites", site, key))
    )
    return render_macro("strip", f"{left:.1f}", f"{max(right - left, 0.5):.1f}", f"{max(tick - 0.75, 0.0):.1f}")

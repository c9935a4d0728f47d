"""The page's part on shift: how far the images of sites differ, and which lie outside."""

from fedmed.report.drawing.markup import Numbers, escape, render_fold, render_section, render_table, show_name
from fedmed.report.drawing.wording import count
from fedmed.report.schema.shift import ShiftEntry

SHOWN_SITES = 20
LABELS = {
    "mean_shift": "Shift of the mean",
    "spread_ratio": "Ratio of spreads",
    "distance": "Distance over all layers",
}
_EXPLAINED = (
    "From the statistics of the BatchNorm layers, which sites send with their updates anyway; no image and no number "
    "of a patient is in them. The shift of the mean is that of the first layer in standard deviations: colour and "
    "brightness. The ratio of spreads is that of the first layer, too: below 1 the images have less contrast, above 1 "
    "more. The distance over all layers also grows where a site has other diseases or devices."
)


def render_shift(numbers: Numbers) -> str:
    """Return the section, or nothing where nothing is known."""
    if numbers.document.get("shift") is None:
        return ""
    entry: ShiftEntry = numbers.get("shift")
    ranked = sorted(entry["sites"], key=lambda site: (not entry["sites"][site]["outside"], -_far(entry, site), site))
    tables = [_list_sites(numbers, ranked[:SHOWN_SITES])]
    if len(ranked) > SHOWN_SITES:
        rest = ranked[SHOWN_SITES:]
        tables.append(render_fold(f"The other {count(len(rest), 'site')}", _list_sites(numbers, rest)))
    return render_section(
        "shift",
        "How far do the images of the sites differ?",
        f"<p>{_say(numbers)}</p>",
        f"<p>{_EXPLAINED}</p>",
        *tables,
    )


def _far(entry: ShiftEntry, site: str) -> float:
    return entry["sites"][site]["distance"]


def _say(numbers: Numbers) -> str:
    entry: ShiftEntry = numbers.get("shift")
    number = count(len(entry["sites"]), "site")
    if entry["by_chance"] is None:
        return f"With {number} nobody can say what is usual, so the numbers are only shown."
    chance = (
        "If all sites were alike, this rule would still mark at least one with a chance of "
        f"{numbers.show('shift', 'by_chance', digits=2)}"
    )
    rule = "beyond the median of the sites plus or minus 3 x 1.4826 median absolute deviations"
    if not entry["outside"]:
        return f"None of {number} lies outside the usual range ({rule}). {chance}."
    named = ", ".join(show_name(site) for site in entry["outside"][:SHOWN_SITES])
    return (
        f"Outside the usual range of {number}: <strong>{named}</strong> ({rule}). {chance}. Look at images of such a "
        "site, and at its figures above: a shift is no fault by itself."
    )


def _list_sites(numbers: Numbers, sites: list[str]) -> str:
    rows = []
    for site in sites:
        own = numbers.get("shift", "sites", site)
        cells = [
            numbers.show("shift", "sites", site, key)
            + (' <strong class="flag">outside</strong>' if key in own["outside"] else "")
            + _draw(numbers, site, key)
            for key in LABELS
        ]
        rows.append([show_name(site), *cells])
    usual = [
        "not known" if numbers.get("shift", "ranges", key, "low") is None
        else f"{numbers.show('shift', 'ranges', key, 'low')} to {numbers.show('shift', 'ranges', key, 'high')}"
        for key in LABELS
    ]  # fmt: skip
    caption = (
        f"Statistics of round {numbers.show('shift', 'round')}; the bar is the usual range, the mark the site, and "
        "each scale goes from the lowest to the highest number of the column. Sites outside come first, then the "
        "farthest."
    )
    return render_table(caption, ["Site", *map(escape, LABELS.values())], [["Usual range", *usual], *rows])


def _draw(numbers: Numbers, site: str, key: str) -> str:
    """Return a small drawing of a site's number on the scale of all, with the usual range."""
    usual = numbers.get("shift", "ranges", key)
    known = [one[key] for one in numbers.get("shift", "sites").values()]
    low, high = (usual[end] if usual[end] is not None else usual["median"] for end in ("low", "high"))
    least, most = min(*known, low), max(*known, high)
    width = (most - least) or 1.0
    left, right, tick = (
        100 * (value - least) / width for value in (low, high, numbers.get("shift", "sites", site, key))
    )
    return (
        '<svg class="strip" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="4.5" width="100" height="1"/>'
        f'<rect class="range" x="{left:.1f}" y="3" width="{max(right - left, 0.5):.1f}" height="4"/>'
        f'<rect class="tick" x="{max(tick - 0.75, 0.0):.1f}" y="0" width="1.5" height="10"/></svg>'
    )

"""The page's part on fairness: findings in sentences, then tables, then plots."""

from collections.abc import Sequence

from markupsafe import Markup

from fedmed.fairness.figures.groups import is_crossing, order_groups
from fedmed.report.drawing.forest import ForestRow, render_forest
from fedmed.report.drawing.markup import EMPTY, Cell, Numbers, Table, join, show_name
from fedmed.report.drawing.templates import fill, render_macro
from fedmed.report.drawing.wording import (
    LIKE,
    SAME_CLASSES,
    SUBSET_FIGURES,
    count,
    head_attribute,
    label_attribute,
    label_figure,
    name_direction,
)
from fedmed.report.figures.fairness import LEADING_GAPS
from fedmed.report.schema.figures import FigureEntries, FigureEntry, GapEntry
from fedmed.report.sections.fairness_course import draw_courses
from fedmed.report.sections.fairness_findings import list_findings
from fedmed.report.sections.patients import has_patients, head_ids, show_patients
from fedmed.report.sections.results import is_ranked
from fedmed.report.sections.values import Values

MOST_GROUPS = 12
OPEN_ATTRIBUTES = 4
MAIN_GAPS = (
    "gap_balanced_accuracy",
    "gap_accuracy",
    "worst_group_balanced_accuracy",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    "demographic_parity_difference",
    "gap_ece",
)
SITE = "site"


def describe_fairness(numbers: Numbers) -> Values | None:
    """Return the section on fairness, None where no site has answered."""
    if not numbers.get("groups"):
        return None
    return {
        "part": numbers.get("fairness_part"),
        "findings": list_findings(numbers),
        "overview": _draw_overview(numbers, crossings=False),
        "crossings": _draw_overview(numbers, crossings=True),
        "gaps": _list_gap_overview(numbers),
    }


def describe_group_figures(numbers: Numbers) -> Values | None:
    """Return all figures and gaps by group, and their course over the rounds, for the appendix."""
    if not numbers.get("groups"):
        return None
    return {
        "attributes": [
            _describe_attribute(numbers, attribute, index) for index, attribute in enumerate(numbers.get("groups"))
        ],
        "courses": draw_courses(numbers),
    }


def _draw_overview(numbers: Numbers, *, crossings: bool) -> Markup | None:
    """Return the dot-and-interval plot of balanced accuracy by group of every attribute, or of every crossing."""
    pooled = _find_pooled(numbers)
    parts = [
        (show_name(head_attribute(attribute)), _list_rows(numbers, attribute))
        for attribute, groups in numbers.get("groups").items()
        if groups and is_crossing(attribute) == crossings
    ]
    if not parts:
        return None
    known = pooled["value"] is not None
    caption = (
        "Balanced accuracy by group, with 95 % intervals"
        + ("; the dashed line is all images together." if known else ".")
        + f" Of an attribute with more than {MOST_GROUPS} groups, the lowest and the highest."
    )
    patients = [head_ids(numbers)] if has_patients(numbers) else []
    columns = ["Group", "Images", *patients, "Balanced accuracy", "Value and interval drawn"]
    return render_forest(caption, columns, parts, pooled["value"])


def _find_pooled(numbers: Numbers) -> FigureEntry:
    key = "figures" if numbers.get("fairness_part") == "test" else "validation"
    figure: FigureEntry = numbers.get(key, "balanced_accuracy")
    return figure


def _list_rows(numbers: Numbers, attribute: str) -> list[ForestRow]:
    rows = []
    for group in _pick_ends(numbers, attribute):
        path = ("groups", attribute, group, "balanced_accuracy")
        cells = [
            numbers.show(*path, "n", missing="n/a"),
            *([show_patients(numbers, "groups", attribute, group)] if has_patients(numbers) else []),
            numbers.figure_and_interval(*path),
        ]
        rows.append(ForestRow(show_name(group), cells, numbers.get(*path)))
    return rows


def _rank_groups(numbers: Numbers, attribute: str) -> list[str]:
    """Return the groups, sites by balanced accuracy and others by size or name: bands of age are in order.

    Sites of different classes are ordered by name, too.
    """
    groups: dict[str, FigureEntries] = numbers.get("groups", attribute)
    if attribute == SITE and is_ranked(numbers):
        return sorted(groups, key=lambda name: (_value_of(groups[name]) is None, _value_of(groups[name]) or 0.0, name))
    return order_groups(groups)


def _pick_ends(numbers: Numbers, attribute: str) -> list[str]:
    """Return the groups to draw: all, or the lowest and the highest of many."""
    names, groups = _rank_groups(numbers, attribute), numbers.get("groups", attribute)
    if len(names) <= MOST_GROUPS:
        return names
    known = sorted(
        (name for name in names if _value_of(groups[name]) is not None), key=lambda name: _value_of(groups[name]) or 0.0
    )
    kept = {*known[: MOST_GROUPS // 2], *known[-(MOST_GROUPS // 2) :]}
    return [name for name in names if name in kept]


def _value_of(figures: FigureEntries) -> float | None:
    return figures["balanced_accuracy"]["value"]


def _list_gap_overview(numbers: Numbers) -> Table:
    rows: list[list[Cell]] = []
    for attribute, gaps in numbers.get("gaps").items():
        flagged = numbers.get("findings", attribute, "flagged_figures")
        for key in dict.fromkeys([*LEADING_GAPS, *flagged]):
            if key in gaps:
                name = show_name(f"{head_attribute(attribute)}: {label_figure(key).lower()}")
                rows.append([name, *_list_gap_cells(numbers, attribute, key)])
    caption = (
        "Gaps between the best and the worst group, with 95 % intervals. Expected: the mean gap from chance and case "
        "mix if all groups had the same chances in each class. Groups without a known value, and hidden ones, are left "
        "out. Adjusted p: for all gaps that can be flagged; that of a figure with a mean is that of the mean. A gap is "
        "flagged up to the limit, which allows for all attributes."
    )
    columns = ["Attribute and gap", "Gap", "Expected", "Adjusted p", "Verdict", "Lowest", "Highest"]
    return Table(caption, columns, rows, "gaps")


def _list_gap_cells(numbers: Numbers, attribute: str, key: str) -> list[Cell]:
    path = ("gaps", attribute, key)
    gap: GapEntry = numbers.get(*path)
    is_same = gap["worst_group"] == gap["best_group"]  # all groups have the same
    value, chance = numbers.figure_and_interval(*path), _show_optional(numbers, *path, "chance")
    if gap["mean"] is not None:
        interval = numbers.interval(*path, key="mean_interval")
        value = fill("worst class {}mean {}{}", value, numbers.show(*path, "mean"), interval)
        lines = [fill("worst class {}", chance), fill("mean {}", _show_optional(numbers, *path, "chance_mean"))]
        chance = render_macro("lines", lines)
    return [
        value,
        chance,
        _show_adjusted(numbers, *path),
        _show_verdict(gap["flagged"]),
        *(_show_group(None if is_same else gap[end]) for end in ("worst_group", "best_group")),
    ]


def _show_adjusted(numbers: Numbers, *path: str) -> Markup:
    """Return the adjusted p-value and its limit; of gaps that cannot be flagged there is none."""
    chance = numbers.show_chance(*path, "family_p")
    if not chance or numbers.get(*path).get("limit") is None:
        return chance
    return join([chance, render_macro("interval", fill("limit {}", numbers.show(*path, "limit")))])


def _show_optional(numbers: Numbers, *path: str) -> Markup:
    return EMPTY if numbers.get(*path) is None else numbers.show(*path)


def _show_verdict(flagged: bool | None) -> Cell:
    if flagged is None:
        return "not tested"
    return render_macro("flag", "flagged", True) if flagged else "not flagged"


def _show_group(group: str | None) -> Cell:
    return "" if group is None else show_name(group)


def _describe_attribute(numbers: Numbers, attribute: str, index: int) -> Values:
    """Return figures and gaps of an attribute; crossings, and all after the first few, are folded away."""
    on_sites_table = attribute == SITE and numbers.get("fairness_part") == "test"
    names = _rank_groups(numbers, attribute)
    first = names if len(names) <= MOST_GROUPS else _pick_ends(numbers, attribute)
    rest = [name for name in names if name not in first]
    return {
        "name": label_attribute(attribute),
        "is_folded": " x " in attribute or index >= OPEN_ATTRIBUTES,
        "groups": None if on_sites_table else _list_groups(numbers, attribute, first),
        "other_groups": _list_groups(numbers, attribute, rest) if rest and not on_sites_table else None,
        "rest": f"The other {count(len(rest), 'group')}",
        "gaps": _list_gaps(numbers, attribute),
    }


def _list_groups(numbers: Numbers, attribute: str, names: Sequence[str]) -> Table:
    withheld = any(numbers.get("groups", attribute, name, "balanced_accuracy")["n_withheld"] for name in names)
    rows: list[list[Cell]] = []
    for name in names:
        path = ("groups", attribute, name)
        rows.append(
            [
                show_name(name),
                numbers.show(*path, "accuracy", "n"),
                *([show_patients(numbers, "groups", attribute, name)] if has_patients(numbers) else []),
                *([numbers.show(*path, "balanced_accuracy", "n_withheld")] if withheld else []),
                *(
                    numbers.figure_and_interval(*path, key, drawn=key == "balanced_accuracy", like=LIKE.get(key, ""))
                    for key in SUBSET_FIGURES
                    if key in numbers.get(*path)
                ),
            ]
        )
    patients = [head_ids(numbers)] if has_patients(numbers) else []
    columns = ["Group", "Images", *patients, *(["Rows withheld"] if withheld else []), *SUBSET_FIGURES.values()]
    caption = "Figures by group, all sites together, with 95 % intervals; the scales go from 0 to 1."
    caption += SAME_CLASSES if any("(over" in str(row) for row in rows) else ""
    if withheld:
        caption += " Rows withheld: classes of a site that it keeps back because too few images are in them."
    return Table(caption, columns, rows)


def _list_gaps(numbers: Numbers, attribute: str) -> Table | None:
    """Return all gaps of an attribute, the main ones first; None where there are none."""
    gaps: dict[str, GapEntry] = numbers.get("gaps").get(attribute, {})
    keys = [*(key for key in MAIN_GAPS if key in gaps), *(key for key in gaps if key not in MAIN_GAPS)]
    if not keys:
        return None
    with_skipped = any(gaps[key]["skipped"] for key in keys)
    caption = fill("All gaps by {}.", show_name(label_attribute(attribute)))
    rows: list[list[Cell]] = []
    for key in keys:
        path = ("gaps", attribute, key)
        cells = _list_gap_cells(numbers, attribute, key)
        skipped = [numbers.show(*path, "skipped")] if with_skipped else []
        rows.append([label_figure(key), cells[0], name_direction(gaps[key]["better"]), *cells[1:], *skipped])
    columns = ["Figure", "Value", "Direction", "Expected", "Adjusted p", "Verdict", "Lowest", "Highest"]
    if with_skipped:
        columns.append("Skipped")
        caption += " Skipped: comparisons for which a group has no image of the class."
    return Table(caption, columns, rows, "gaps")

"""The page's part on fairness: findings in sentences, then tables, then plots."""

from collections.abc import Sequence

from fedmed.fairness.figures.groups import order_groups
from fedmed.report.drawing.markup import Numbers, render_fold, render_section, render_table, show_name
from fedmed.report.drawing.wording import (
    SUBSET_FIGURES,
    count,
    head_attribute,
    label_attribute,
    label_figure,
    name_direction,
)
from fedmed.report.figures.fairness import LEADING_GAPS
from fedmed.report.schema.figures import FigureEntries, FigureEntry, GapEntry
from fedmed.report.sections.fairness_course import render_course
from fedmed.report.sections.fairness_findings import list_findings
from fedmed.report.sections.forest import ForestRow, render_forest

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


def render_fairness(numbers: Numbers) -> str:
    """Return the section on fairness, or nothing where no site has answered."""
    if not numbers.get("groups"):
        return ""
    findings = "".join(f"<li>{finding}</li>" for finding in list_findings(numbers))
    return render_section(
        "fairness",
        "Fairness: sites and patient groups",
        f"<p>{_explain(numbers)}</p>",
        f'<h3>Findings</h3>\n<ul class="findings">{findings}</ul>',
        _render_overview(numbers),
        _render_gap_overview(numbers),
        *_render_attributes(numbers),
        render_course(numbers),
    )


def _explain(numbers: Numbers) -> str:
    part = numbers.get("fairness_part")
    rest = "" if part == "test" else " The run is still going on; the test images are scored at its end."
    return (
        f"Groups are compared on the {part} images.{rest} Small groups differ by chance alone, so every gap stands "
        "beside the gap that chance would give if all groups had the same chances of a right answer. A gap is flagged "
        "when chance alone would give one as large in fewer than 1 of 20 such reports, all attributes of this page "
        "taken into account. A gap that is not flagged may still be real: few images can hide it."
    )


def _render_overview(numbers: Numbers) -> str:
    """Return the dot-and-interval plot of balanced accuracy by group of every attribute."""
    pooled = _find_pooled(numbers)
    parts = [
        (show_name(head_attribute(attribute)), _list_rows(numbers, attribute)) for attribute in numbers.get("groups")
    ]
    known = pooled["value"] is not None
    caption = (
        "Balanced accuracy by group, with 95 % intervals"
        + ("; the dashed line is all images together." if known else ".")
        + f" Of an attribute with more than {MOST_GROUPS} groups, the lowest and the highest."
    )
    columns = ["Group", "Images", "Balanced accuracy", "Value and interval drawn"]
    forest = render_forest(caption, columns, parts, pooled["value"])
    return f"<h3>Every group with its interval</h3>\n{forest}"


def _find_pooled(numbers: Numbers) -> FigureEntry:
    key = "figures" if numbers.get("fairness_part") == "test" else "validation"
    figure: FigureEntry = numbers.get(key, "balanced_accuracy")
    return figure


def _list_rows(numbers: Numbers, attribute: str) -> list[ForestRow]:
    rows = []
    for group in _pick_ends(numbers, attribute):
        path = ("groups", attribute, group, "balanced_accuracy")
        cells = [numbers.show(*path, "n", missing="n/a"), f"{numbers.figure(*path)}{numbers.interval(*path)}"]
        rows.append(ForestRow(show_name(group), cells, numbers.get(*path)))
    return rows


def _rank_groups(numbers: Numbers, attribute: str) -> list[str]:
    """Return the groups, sites by balanced accuracy and others by size or name: bands of age are in order."""
    groups: dict[str, FigureEntries] = numbers.get("groups", attribute)
    if attribute == SITE:
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


def _render_gap_overview(numbers: Numbers) -> str:
    rows = []
    for attribute, gaps in numbers.get("gaps").items():
        flagged = numbers.get("findings", attribute, "flagged_figures")
        for key in dict.fromkeys([*LEADING_GAPS, *flagged]):
            if key in gaps:
                name = f"{show_name(head_attribute(attribute))}: {label_figure(key).lower()}"
                rows.append([name, *_list_gap_cells(numbers, attribute, key)])
    caption = (
        "Gaps between the best and the worst group, with 95 % intervals. By chance: the mean gap if all groups had the "
        "same chances. Groups without a known value, and hidden ones, are left out. The p-value of a figure with a "
        "mean is that of the mean."
    )
    columns = ["Attribute and gap", "Gap", "By chance", "p-value", "Verdict", "Lowest", "Highest"]
    return f"<h3>Gaps and chance</h3>\n{render_table(caption, columns, rows, 'gaps')}"


def _list_gap_cells(numbers: Numbers, attribute: str, key: str) -> list[str]:
    path = ("gaps", attribute, key)
    gap: GapEntry = numbers.get(*path)
    value, chance = numbers.figure_and_interval(*path), _show_optional(numbers, *path, "chance")
    if gap["mean"] is not None:
        interval = numbers.interval(*path, key="mean_interval")
        value = f"worst class {value}mean {numbers.show(*path, 'mean')}{interval}"
        chance = f"worst class {chance}<br>mean {_show_optional(numbers, *path, 'chance_mean')}"
    return [
        value,
        chance,
        numbers.show_chance(*path, "p_value"),
        _say_verdict(gap["flagged"]),
        _name_group(gap["worst_group"]),
        _name_group(gap["best_group"]),
    ]


def _show_optional(numbers: Numbers, *path: str) -> str:
    return "" if numbers.get(*path) is None else numbers.show(*path)


def _say_verdict(flagged: bool | None) -> str:
    if flagged is None:
        return "not tested"
    return '<strong class="flag">flagged</strong>' if flagged else "not flagged"


def _name_group(group: str | None) -> str:
    return "" if group is None else show_name(group)


def _render_attributes(numbers: Numbers) -> list[str]:
    """Return figures and gaps of each attribute; crossings, and all after the first few, are folded away."""
    parts = []
    for index, attribute in enumerate(numbers.get("groups")):
        name = show_name(label_attribute(attribute))
        content = f"<h3>By {name}</h3>\n{_render_groups(numbers, attribute)}{_render_gaps(numbers, attribute)}"
        folded = " x " in attribute or index >= OPEN_ATTRIBUTES
        parts.append(render_fold(f"By {name}: all figures", content, printed=True) if folded else content)
    return parts


def _render_groups(numbers: Numbers, attribute: str) -> str:
    if attribute == SITE and numbers.get("fairness_part") == "test":
        return '<p>The figures of every site are under <a href="#sites">Results by site</a>.</p>'
    names = _rank_groups(numbers, attribute)
    if len(names) <= MOST_GROUPS:
        return _list_groups(numbers, attribute, names)
    first = _pick_ends(numbers, attribute)
    rest = [name for name in names if name not in first]
    fold = render_fold(f"The other {count(len(rest), 'group')}", _list_groups(numbers, attribute, rest))
    return _list_groups(numbers, attribute, first) + fold


def _list_groups(numbers: Numbers, attribute: str, names: Sequence[str]) -> str:
    withheld = any(numbers.get("groups", attribute, name, "balanced_accuracy")["n_withheld"] for name in names)
    rows = []
    for name in names:
        path = ("groups", attribute, name)
        rows.append(
            [
                show_name(name),
                numbers.show(*path, "accuracy", "n"),
                *([numbers.show(*path, "balanced_accuracy", "n_withheld")] if withheld else []),
                *(
                    numbers.figure_and_interval(*path, key, drawn=key == "balanced_accuracy")
                    for key in SUBSET_FIGURES
                    if key in numbers.get(*path)
                ),
            ]
        )
    columns = ["Group", "Images", *(["Rows withheld"] if withheld else []), *SUBSET_FIGURES.values()]
    caption = "Figures by group, all sites together, with 95 % intervals; the scales go from 0 to 1."
    if withheld:
        caption += " Rows withheld: classes of a site that it keeps back because too few images are in them."
    return render_table(caption, columns, rows)


def _render_gaps(numbers: Numbers, attribute: str) -> str:
    gaps = numbers.get("gaps").get(attribute, {})
    keys = [*(key for key in MAIN_GAPS if key in gaps), *(key for key in gaps if key not in MAIN_GAPS)]
    if not keys:
        return ""
    name = show_name(label_attribute(attribute))
    return render_fold(
        f"All gaps by {name}", _list_gaps(numbers, attribute, keys, f"All gaps by {name}."), printed=True
    )


def _list_gaps(numbers: Numbers, attribute: str, keys: Sequence[str], caption: str) -> str:
    gaps: dict[str, GapEntry] = numbers.get("gaps", attribute)
    with_skipped = any(gaps[key]["skipped"] for key in keys)
    rows = []
    for key in keys:
        path = ("gaps", attribute, key)
        cells = _list_gap_cells(numbers, attribute, key)
        skipped = [numbers.show(*path, "skipped")] if with_skipped else []
        rows.append([label_figure(key), cells[0], name_direction(gaps[key]["better"]), *cells[1:], *skipped])
    columns = ["Figure", "Value", "Direction", "By chance", "p-value", "Verdict", "Lowest", "Highest"]
    if with_skipped:
        columns.append("Skipped")
        caption += " Skipped: comparisons for which a group has no image of the class."
    return render_table(caption, columns, rows, "gaps")

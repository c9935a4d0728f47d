"""Gaps between groups, and the figures of groups, over the rounds."""

from collections.abc import Sequence

from markupsafe import Markup

from fedmed.report.drawing.fairness_plots import draw_course
from fedmed.report.drawing.markup import Numbers, show_name
from fedmed.report.drawing.palette import make_key
from fedmed.report.drawing.templates import fill
from fedmed.report.drawing.wording import label_attribute, label_figure
from fedmed.report.schema.document import RoundEntry
from fedmed.report.sections.values import Values

MOST_LINES = 8
MOST_ATTRIBUTES = 4
SITE = "site"


def draw_courses(numbers: Numbers) -> list[Values]:
    """Return the gaps over the rounds, and the validation figure of each group of the attributes."""
    history: list[RoundEntry] = numbers.get("history")
    if len(history) < 2:
        return []
    gaps = _draw_gap_course(numbers)
    return [*([] if gaps is None else [gaps]), *_draw_group_courses(numbers)]


def _draw_gap_course(numbers: Numbers) -> Values | None:
    history: list[RoundEntry] = numbers.get("history")
    figure = f"gap_{numbers.get('course_figure')}"
    candidates = [figure, "gap_balanced_accuracy", "gap_accuracy"]
    gaps = [record["validation"]["gaps"] for record in history]
    key = next((key for key in candidates if any(key in own for by in gaps for own in by.values())), None)
    if key is None:
        return None
    attributes = [name for name in numbers.get("groups") if any(key in by.get(name, {}) for by in gaps)][:MOST_LINES]
    lines = [[by.get(name, {}).get(key) for by in gaps] for name in attributes]
    description = f"{label_figure(key)} between groups over the rounds, one line for each attribute."
    svg = _draw_lines(numbers, lines, key, description)
    caption = (
        f"{label_figure(key)} between the groups of each attribute, on the validation images. Small groups have a "
        "gap by chance in every round; what tells is a line that rises."
    )
    return {"drawing": svg, "caption": caption, "key": make_key([label_attribute(name) for name in attributes])}


def _draw_lines(numbers: Numbers, lines: Sequence[Sequence[float | None]], key: str, description: str) -> Markup:
    rounds = [record["round"] for record in numbers.get("history")]
    return draw_course(rounds, lines, label_figure(key), numbers.get("chosen_round"), description)


def _draw_group_courses(numbers: Numbers) -> list[Values]:
    history: list[RoundEntry] = numbers.get("history")
    key: str = numbers.get("course_figure")
    drawings: list[Values] = []
    for attribute in [name for name in numbers.get("groups") if name != SITE and " x " not in name][:MOST_ATTRIBUTES]:
        by_round = [record["validation"]["groups"].get(attribute, {}) for record in history]
        sizes: dict[str, float] = {}
        for own in by_round:
            for group, values in own.items():
                sizes[group] = max(sizes.get(group, 0), values["n"] or 0)
        largest = sorted(sorted(sizes, key=lambda group: -sizes[group])[:MOST_LINES])
        lines = [[own.get(group, {}).get(key) for own in by_round] for group in largest]
        if not any(value is not None for line in lines for value in line):
            continue
        title = label_attribute(attribute)
        description = f"{label_figure(key)} by {title} over the rounds, one line for each group."
        svg = _draw_lines(numbers, lines, key, description)
        more = f" The {MOST_LINES} largest groups." if len(sizes) > MOST_LINES else ""
        caption = fill("{} by {}, on the validation images.{}", label_figure(key), show_name(title), more)
        drawings.append({"drawing": svg, "caption": caption, "key": make_key(largest)})
    return drawings

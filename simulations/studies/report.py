"""A study's tables: ``table.json`` with every number, ``table.md`` and ``table.html`` to read."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from markupsafe import Markup

from fedmed.report.drawing import markup as drawing
from fedmed.report.drawing.fairness_plots import FrontPoint, draw_front
from fedmed.report.drawing.forest import ForestRow, render_forest
from fedmed.report.drawing.markup import Cell, Numbers
from fedmed.report.drawing.templates import fill, render_macro, render_template
from fedmed.report.page import DrawnSection, wrap_page
from fedmed.report.schema.figures import Drawn
from fedmed.storage.atomic_files import write_text_atomically
from simulations.studies.figures import label_study_figure
from simulations.studies.study import Progress, Study
from simulations.studies.table import ArmTable, Difference, Estimate, Front, Table, build_table

_DIRECTIONS = {"up": "higher is better", "down": "lower is better", None: ""}
READING = (
    "Values are means over the seeds of the test figures of each run's chosen model, with 95 % intervals (Student's t, "
    "seeds minus one degrees of freedom). Differences are arm minus baseline, paired by seed. 'By site' is the mean of "
    "the sites' own differences, paired by seed and site, over the sites that have the figure in all of these runs; "
    "its interval speaks of further seeds and further sites (two-way analysis of variance with random effects, "
    "Satterthwaite's degrees of freedom, never narrower than over seeds or sites alone). 'Better' and 'worse' say that "
    "an interval excludes 0; no interval is adjusted for the number of arms and figures, so one in twenty excludes 0 "
    "by chance. 'Undecided' does not mean equal: a few seeds can only show large differences. 'Missing' is an arm that "
    "shares no finished seed with the baseline."
)
_MISSING = "missing"
_NO_FRONT: Front = {"x": "", "y": []}


def write_tables(study: Study, progress: Progress) -> Path:
    """Write the tables of what there is so far into the folder of the results, each file atomically.

    Returns
    -------
    Path
        ``table.html``.
    """
    table = build_table(study, progress)
    study.results.mkdir(parents=True, exist_ok=True)
    write_text_atomically(study.results / "table.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    front = table["front"] or _NO_FRONT
    for number, figure in enumerate(front["y"], start=1):
        write_text_atomically(study.results / f"front-{number}.svg", _draw(table, front["x"], figure, standalone=True))
    write_text_atomically(study.results / "table.md", render_markdown(table))
    page = study.results / "table.html"
    write_text_atomically(page, render_page(table))
    return page


def describe_state(planned: int, done: int, wall_s: float) -> str:
    """Return how much of a study is done, in words."""
    took = f"{done} of {planned} cells done, which took {timedelta(seconds=round(wall_s))} together."
    return took if done == planned else f"Incomplete: {took}"


def describe_findings(table: Table) -> list[str]:
    """Return one sentence for each figure: how many arms are better or worse than the baseline, and which."""
    sentences = []
    others = {name: arm for name, arm in table["arms"].items() if name != table["baseline"]}
    for figure in table["figures"]:
        verdicts = {name: arm["differences"][figure]["verdict"] for name, arm in others.items()}
        parts = []
        for verdict in ("better", "worse"):
            names = [name for name, found in verdicts.items() if found == verdict]
            parts.append(f"{', '.join(names) or 'no arm'} {'is' if len(names) < 2 else 'are'} {verdict}")
        parts.append(f"{sum(verdict == 'undecided' for verdict in verdicts.values())} undecided")
        missing = [name for name, verdict in verdicts.items() if verdict == _MISSING]
        if missing:
            parts.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        sentences.append(f"{label_study_figure(figure)}: against {table['baseline']}, {', '.join(parts)}.")
    return sentences


def describe_problems(table: Table) -> list[str]:
    """Return one sentence for each cell that did not finish, and each figure that is n/a in some cells."""
    return [
        *(f"{name} did not finish: {reason}" for name, reason in table["failed"].items()),
        *(
            f"{label_study_figure(figure)} is n/a in {', '.join(f'{name} ({why})' for name, why in cells.items())}."
            for figure, cells in table["not_defined"].items()
        ),
    ]


def render_markdown(table: Table) -> str:
    """Return the table as Markdown."""
    figures = table["figures"]
    lines = [f"# {table['name']}", "", table["description"], ""] if table["description"] else [f"# {table['name']}", ""]
    lines += [f"**{_state(table)}**", ""]
    lines += [f"- {sentence}" for sentence in (*describe_problems(table), *describe_findings(table))]
    lines += ["", *_markdown_row(["arm", "seeds", *(_label(table, figure) for figure in figures)], head=True)]
    for name, arm in table["arms"].items():
        cells = [_estimate(arm["figures"][figure]) if arm["seeds"] else _MISSING for figure in figures]
        lines += _markdown_row([f"{name}: {arm['description']}", _count_seeds(table, arm), *cells])
    for figure in figures:
        lines += ["", f"## {_label(table, figure)}, minus {table['baseline']}", ""]
        lines += _markdown_row(["arm", "difference", "", "by site", ""], head=True)
        for name, found in _differences(table, figure).items():
            sites = found["sites"]
            by_site = [_estimate(sites, sign=True), sites["verdict"]] if sites else ["n/a", ""]
            own = [_estimate(found, sign=True), found["verdict"]]
            lines += _markdown_row([name, *([_MISSING, "", "", ""] if found["verdict"] == _MISSING else own + by_site)])
    front = table["front"] or _NO_FRONT
    for number, figure in enumerate(front["y"], start=1):
        alt = f"{label_study_figure(figure)} against {label_study_figure(front['x'])}"
        lines += ["", f"![{alt}](front-{number}.svg)"]
    return "\n".join([*lines, "", READING, ""])


def render_page(table: Table) -> str:
    """Return the table as one self-contained HTML page; its numbers are marked with their place in ``table.json``."""
    numbers = Numbers({**table})
    fronts = _list_fronts(table)
    sections = [
        _draw_section("arms", "Arms", table=_list_arms(table, numbers)),
        *_draw_differences(table, numbers),
        *([_draw_section("front", "Accuracy and fairness", figures=fronts)] if fronts else []),
        _draw_section("reading", "How to read this", text=READING),
    ]
    return wrap_page(
        "study.html",
        f"Study {table['name']}",
        synthetic=table["synthetic"],
        sections=sections,
        description=table["description"],
        state=_state(table),
        sentences=[*describe_problems(table), *describe_findings(table)],
    )


def _draw_section(
    anchor: str,
    title: str,
    *,
    table: drawing.Table | None = None,
    forest: Markup | None = None,
    figures: Sequence[Mapping[str, Cell]] = (),
    text: str = "",
) -> DrawnSection:
    body = render_template("study_section.html", table=table, forest=forest, figures=figures, text=text)
    return DrawnSection(anchor, title, body)


def _list_arms(table: Table, numbers: Numbers) -> drawing.Table:
    rows: list[list[Cell]] = [
        [
            render_macro("lines", [name, arm["description"]]),
            _count_seeds(table, arm),
            *(
                _marked(numbers, "arms", name, "figures", figure) if arm["seeds"] else _MISSING
                for figure in table["figures"]
            ),
        ]
        for name, arm in table["arms"].items()
    ]
    columns = ["Arm", "Seeds", *(_label(table, figure) for figure in table["figures"])]
    return drawing.Table("Mean over the seeds with its 95 % interval, pooled test images.", columns, rows)


def _draw_differences(table: Table, numbers: Numbers) -> list[DrawnSection]:
    sections = []
    for number, figure in enumerate(table["figures"]):
        rows = []
        for name, found in _differences(table, figure).items():
            path = ("arms", name, "differences", figure)
            sites = found["sites"]
            by_site = fill("{} {}", _marked(numbers, *path, "sites"), sites["verdict"]) if sites else "n/a"
            bounds = found["interval"]
            interval = None if bounds is None else (bounds[0], bounds[1])
            drawn: Drawn = {"value": found["value"], "interval": interval}
            rows.append(ForestRow(name, [_marked(numbers, *path), found["verdict"], by_site], drawn))
        caption = f"Arm minus {table['baseline']}, {_DIRECTIONS[table['better'][figure]]}; dashed: no difference."
        columns = ["Arm", "Difference", "Verdict", "By site", "Difference drawn"]
        forest = render_forest(caption, columns, [("", rows)], 0.0)
        sections.append(_draw_section(f"difference-{number}", label_study_figure(figure), forest=forest))
    return sections


def _list_fronts(table: Table) -> list[Mapping[str, Cell]]:
    front = table["front"]
    if front is None:
        return []
    across = label_study_figure(front["x"])
    return [
        {
            "drawing": _draw(table, front["x"], figure),
            "caption": (
                f"{label_study_figure(figure)} against {across}: mean over the seeds, with 95 % intervals in both "
                "directions."
            ),
        }
        for figure in front["y"]
    ]


def _draw(table: Table, x: str, figure: str, *, standalone: bool = False) -> Markup:
    points: list[FrontPoint] = []
    for name, arm in table["arms"].items():
        across, upwards = arm["figures"][x], arm["figures"][figure]
        points.append((name, across["value"], _pair(across), upwards["value"], _pair(upwards)))
    return draw_front(points, _label(table, x), _label(table, figure), standalone=standalone)


def _pair(estimate: Estimate) -> tuple[float, float] | None:
    interval = estimate["interval"]
    return None if interval is None else (interval[0], interval[1])


def _state(table: Table) -> str:
    text = describe_state(table["cells_planned"], table["cells_done"], table["wall_s"])
    if table["stale"]:
        text += f" The settings of {', '.join(table['stale'])} have changed since: these are to be run again."
    return text


def _count_seeds(table: Table, arm: ArmTable) -> str:
    return f"{len(arm['seeds'])} of {len(table['seeds'])}"


def _differences(table: Table, figure: str) -> dict[str, Difference]:
    return {name: arm["differences"][figure] for name, arm in table["arms"].items() if name != table["baseline"]}


def _label(table: Table, figure: str) -> str:
    direction = _DIRECTIONS[table["better"][figure]]
    return f"{label_study_figure(figure)}, {direction}" if direction else label_study_figure(figure)


def _marked(numbers: Numbers, *path: str) -> Markup:
    return numbers.show(*path, "value") + numbers.interval(*path)


def _estimate(estimate: Estimate, *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    if estimate["value"] is None:
        return "n/a"
    if estimate["interval"] is None:
        return format(estimate["value"], form)
    low, high = estimate["interval"]
    return f"{estimate['value']:{form}} [{low:{form}}, {high:{form}}]"


def _markdown_row(cells: Sequence[str], *, head: bool = False) -> list[str]:
    row = "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return [row, "|" + " --- |" * len(cells)] if head else [row]

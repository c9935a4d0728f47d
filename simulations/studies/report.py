"""A study's tables: ``table.json`` with every number, ``table.md`` and ``table.html`` to read."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from fedmed.report.drawing.fairness_plots import FrontPoint, draw_front
from fedmed.report.drawing.markup import Numbers, escape, render_figure, render_section, render_table
from fedmed.report.page import render_banners, wrap_page
from fedmed.report.schema.figures import Drawn
from fedmed.report.sections.forest import ForestRow, render_forest
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
    sentences = [*describe_problems(table), *describe_findings(table)]
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    reading = render_section("reading", "How to read this", f"<p>{escape(READING)}</p>")
    body = "\n".join(
        [_render_arms(table, numbers), *_render_differences(table, numbers), _render_fronts(table), reading]
    )
    title = f"Study {escape(table['name'])}"
    header = f"""{render_banners(table["synthetic"])}
<h1>{title}</h1>
<p>{escape(table["description"])}</p>
<p class="summary">{escape(_state(table))}</p>
<ul>{items}</ul>"""
    return wrap_page(title, header, body)


def _render_arms(table: Table, numbers: Numbers) -> str:
    rows = [
        [
            f"{escape(name)}<br>{escape(arm['description'])}",
            _count_seeds(table, arm),
            *(
                _marked(numbers, "arms", name, "figures", figure) if arm["seeds"] else _MISSING
                for figure in table["figures"]
            ),
        ]
        for name, arm in table["arms"].items()
    ]
    columns = ["Arm", "Seeds", *(escape(_label(table, figure)) for figure in table["figures"])]
    caption = "Mean over the seeds with its 95 % interval, pooled test images."
    return render_section("arms", "Arms", render_table(caption, columns, rows))


def _render_differences(table: Table, numbers: Numbers) -> list[str]:
    sections = []
    for number, figure in enumerate(table["figures"]):
        rows = []
        for name, found in _differences(table, figure).items():
            path = ("arms", name, "differences", figure)
            by_site = f"{_marked(numbers, *path, 'sites')} {found['sites']['verdict']}" if found["sites"] else "n/a"
            bounds = found["interval"]
            interval = None if bounds is None else (bounds[0], bounds[1])
            drawn: Drawn = {"value": found["value"], "interval": interval}
            rows.append(ForestRow(escape(name), [_marked(numbers, *path), found["verdict"], by_site], drawn))
        caption = (
            f"Arm minus {escape(table['baseline'])}, {_DIRECTIONS[table['better'][figure]]}; dashed: no difference."
        )
        columns = ["Arm", "Difference", "Verdict", "By site", "Difference drawn"]
        forest = render_forest(caption, columns, [("", rows)], 0.0)
        sections.append(render_section(f"difference-{number}", escape(label_study_figure(figure)), forest))
    return sections


def _render_fronts(table: Table) -> str:
    front = table["front"]
    if front is None:
        return ""
    across = escape(label_study_figure(front["x"]))
    drawings = [
        render_figure(
            _draw(table, front["x"], figure),
            f"{escape(label_study_figure(figure))} against {across}: mean over the seeds, with 95 % intervals in both "
            "directions.",
        )
        for figure in front["y"]
    ]
    return render_section("front", "Accuracy and fairness", *drawings)


def _draw(table: Table, x: str, figure: str, *, standalone: bool = False) -> str:
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


def _marked(numbers: Numbers, *path: str) -> str:
    return f"{numbers.show(*path, 'value')}{numbers.interval(*path)}"


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

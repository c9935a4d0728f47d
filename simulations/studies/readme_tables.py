"""Draw the studies' tables in ``simulations/results/README.md`` anew from the cells' JSON files beside it.

A table stands between two comments. The first names the study and the columns::

    <!-- study fairness: balanced_accuracy | balanced_accuracy minus fedavg | flagged age_band -->
    <!-- end of study -->

====================  =========================================================================================
``FIGURE``            mean over the seeds with its 95 % interval
``FIGURE minus ARM``  difference from the study's baseline, paired by seed, with its 95 % interval
``flagged ATTRIBUTE``  at how many seeds the report flags any gap between the groups of this attribute
====================  =========================================================================================
"""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from fedmed.errors import ConfigError, FedmedError, suggest_nearest
from fedmed.storage.atomic_files import write_text_atomically
from simulations.studies.figures import label_study_figure
from simulations.studies.study import Progress, Study, load_study, read_progress
from simulations.studies.table import Estimate, Table, build_table

README = Path(__file__).resolve().parents[1] / "results" / "README.md"
END = "<!-- end of study -->"
_BLOCK = re.compile(
    rf"^(?P<head><!-- study (?P<study>\S+): (?P<columns>.+?) -->)\n(?P<table>.*?)^{re.escape(END)}$",
    re.MULTILINE | re.DOTALL,
)
_FLAGGED, _MINUS = "flagged ", " minus "


def draw_tables(text: str) -> str:
    """Return a Markdown text with every study's table drawn anew.

    Parameters
    ----------
    text : str
        As it is, with old tables or none.

    Raises
    ------
    ConfigError
        If a comment names a study or a column that there is not, or the text has no such comment.
    """
    if not _BLOCK.search(text):
        raise ConfigError(f"No table's place was found. Needed: '<!-- study NAME: COLUMN | COLUMN -->' and '{END}'.")
    return _BLOCK.sub(lambda found: f"{found['head']}\n{_draw_study(found['study'], found['columns'])}\n{END}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.readme_tables", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE", help=f"default: {README.name} there")
    options = parser.parse_args(arguments)
    try:
        old = options.readme.read_text(encoding="utf-8")
        new = draw_tables(old)
    except OSError as error:
        print(
            f"{options.readme} cannot be read: {error.strerror}. The tables are drawn in a checkout.", file=sys.stderr
        )
        return 1
    except FedmedError as error:
        print(f"{options.readme}: {error}", file=sys.stderr)
        return 1
    if new != old:
        write_text_atomically(options.readme, new)
    print(f"{options.readme}: {'drawn anew' if new != old else 'nothing has changed'}")
    return 0


def _draw_study(name: str, columns: str) -> str:
    study = load_study(Path(name))
    progress = read_progress(study)
    if not progress.results:
        raise ConfigError(f"the study '{name}' has no finished cell in {study.results}. Run it first, or leave it out.")
    table = build_table(study, progress)
    drawn = [_draw_column(column.strip(), study, progress, table) for column in columns.split("|")]
    heads = ["arm", "seeds", *(head for head, _ in drawn)]
    lines = [_row(heads), "|" + " --- |" * len(heads)]
    for arm, found in table["arms"].items():
        seeds = f"{len(found['seeds'])} of {len(table['seeds'])}"
        lines.append(_row([f"`{arm}`: {found['description']}", seeds, *(cells[arm] for _, cells in drawn)]))
    done, planned = table["cells_done"], table["cells_planned"]
    took = timedelta(seconds=round(table["wall_s"]))
    return "\n".join(["", *lines, "", f"{done} of {planned} cells are done; they took {took} hours together.", ""])


def _draw_column(column: str, study: Study, progress: Progress, table: Table) -> tuple[str, dict[str, str]]:
    """Return a column's head, and its cell for every arm."""
    arms, config = table["arms"], study.config
    if column.startswith(_FLAGGED):
        attribute = column.removeprefix(_FLAGGED)
        return f"Gap flagged ({attribute})", {arm: _count_flagged(progress, arm, attribute) for arm in arms}
    figure, minus, baseline = column.partition(_MINUS)
    allowed = {**{name: name for name in config.all_figures}, **{config.baseline: config.baseline}}
    for name in filter(None, (figure, baseline)):
        if name not in allowed:
            raise ConfigError(
                f"the column '{column}' of the study '{config.name}' names '{name}'.{suggest_nearest(name, allowed)} "
                f"Allowed: {', '.join(config.all_figures)}, each also with '{_MINUS.strip()} {config.baseline}'."
            )
    if minus:
        cells = {arm: _estimate(found["differences"].get(figure), sign=True) for arm, found in arms.items()}
        return f"{label_study_figure(figure)}, minus `{baseline}`", cells
    return label_study_figure(figure), {arm: _estimate(found["figures"][figure]) for arm, found in arms.items()}


def _count_flagged(progress: Progress, arm: str, attribute: str) -> str:
    """Return at how many of an arm's finished seeds a gap between the groups of an attribute is flagged."""
    gaps = [result["gaps"].get(attribute) for (name, _), result in progress.results.items() if name == arm]
    if None in gaps:
        raise ConfigError(f"the arm '{arm}' has no groups of '{attribute}' in its results.")
    flagged = sum(any(gap.get("flagged") for gap in found.values()) for found in gaps if found is not None)
    return f"{flagged} of {len(gaps)}"


def _estimate(estimate: Estimate | None, *, sign: bool = False) -> str:
    if estimate is None:
        return ""
    form = "+.3f" if sign else ".3f"
    if estimate["value"] is None:
        return "n/a"
    value = format(estimate["value"], form)
    if estimate["interval"] is None:
        return value
    low, high = estimate["interval"]
    return f"{value} ({low:{form}} to {high:{form}})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

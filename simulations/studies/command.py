"""The command behind ``--study``: does the cells that are left, one after another, and draws the tables."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedmed.data import list_classes
from fedmed.errors import FedmedError
from fedmed.processes import single_instance
from simulations.simulation import check_settings
from simulations.studies.cell import CellRunner, OnRounds
from simulations.studies.figures import check_class_groups
from simulations.studies.report import describe_state, write_tables
from simulations.studies.results import CellResult
from simulations.studies.study import Cell, Study, cells_left, load_study, read_progress, save_result

Runner = Callable[[Cell, OnRounds], CellResult]
"""Runs one cell and returns its result; raises a FedmedError if it does not finish."""

RUN_FOLDERS = Path("runs") / "studies"


class StudyListener(Protocol):
    """Is told how a study goes on."""

    def on_cell(self, cell: Cell, done: int, mean_s: float | None) -> None:
        """Take note that a cell begins; ``done`` are finished, and took ``mean_s`` seconds each."""

    def on_rounds(self, rounds: int) -> None:
        """Take note that so many rounds of the cell are closed."""

    def on_text(self, text: str) -> None:
        """Tell something."""


def run_study_command(options: argparse.Namespace) -> int:
    """Run a study, or draw its tables alone, and return the exit code.

    Raises
    ------
    FedmedError
        If the study cannot begin.
    """
    study = load_study(options.study, options.overrides, options.out)
    if not options.table:
        for cell in {cell.arm: cell for cell in study.cells}.values():
            where = f"{study.source}: arm '{cell.arm}'"
            check_settings(cell.config, where)
            if study.config.class_groups:
                check_class_groups(study.config.class_groups, list_classes(cell.config.data), where)
        folder = RUN_FOLDERS / study.config.name
        with (
            single_instance(folder / ".lock", f"The study '{study.config.name}' in {folder}"),
            make_listener(len(study.cells)) as listener,
        ):
            run_cells(study, CellRunner(folder, keep=options.keep), listener)
    progress = read_progress(study)
    page = write_tables(study, progress)
    print(f"{describe_state(progress.planned, len(progress.results), progress.wall_s)}\ntable: {page}")
    for (arm, seed), reason in progress.failed.items():
        print(f"{arm}-{seed} did not finish: {reason}", file=sys.stderr)
    return 0 if options.table or progress.is_complete else 1


def run_cells(study: Study, runner: Runner, listener: StudyListener) -> None:
    """Do the cells that are left; one that fails is noted, and the others go on.

    Parameters
    ----------
    study : Study
        Its settings.
    runner : callable
        Runs one cell.
    listener : StudyListener
        Is told what happens.
    """
    progress = read_progress(study)
    if progress.stale:
        listener.on_text(
            f"The settings of {len(progress.stale)} cells have changed since they were run; they are run again: "
            f"{', '.join(progress.stale)}."
        )
    for cell in cells_left(study, progress):
        done = read_progress(study)
        listener.on_cell(cell, len(done.results), done.wall_s / len(done.results) if done.results else None)
        try:
            result = runner(cell, listener.on_rounds)
        except FedmedError as error:
            save_result(study, cell, {"failed": str(error)})
            listener.on_text(f"{cell.name} did not finish: {error}")
        else:
            save_result(study, cell, result)
            listener.on_text(f"{cell.name}: {_describe_result(result)}")
        write_tables(study, read_progress(study))


@contextmanager
def make_listener(num_cells: int) -> Iterator[StudyListener]:
    """Yield a progress bar on a terminal, and plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainListener(num_cells)
        return
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        yield BarListener(num_cells, progress)


class PlainListener:
    """Prints a line for every cell."""

    def __init__(self, num_cells: int) -> None:
        self._num_cells = num_cells

    def on_cell(self, cell: Cell, done: int, mean_s: float | None) -> None:
        """Say which cell begins and how long the rest will take."""
        self.on_text(_describe_start(cell, done, self._num_cells, mean_s))

    def on_rounds(self, rounds: int) -> None:
        """Say nothing: the cell's own log has its rounds."""

    def on_text(self, text: str) -> None:
        """Print the text."""
        print(text, file=sys.stderr, flush=True)


class BarListener:
    """Draws one bar over all cells."""

    def __init__(self, num_cells: int, progress: Progress) -> None:
        self._num_cells, self._progress = num_cells, progress
        self._task = progress.add_task("", total=float(num_cells))
        self._done, self._rounds, self._text = 0, 1, ""

    def on_cell(self, cell: Cell, done: int, mean_s: float | None) -> None:
        """Show the new cell."""
        self._done, self._rounds = done, cell.config.rounds
        self._text = _describe_start(cell, done, self._num_cells, mean_s)
        self.on_rounds(0)

    def on_rounds(self, rounds: int) -> None:
        """Move the bar by a part of a cell."""
        self._progress.update(
            self._task,
            completed=self._done + min(1.0, rounds / self._rounds),
            description=f"{self._text}  round {rounds}/{self._rounds}",
        )

    def on_text(self, text: str) -> None:
        """Print the text above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)


def _describe_start(cell: Cell, done: int, num_cells: int, mean_s: float | None) -> str:
    left = "" if mean_s is None else f"  about {timedelta(seconds=round((num_cells - done) * mean_s))} left"
    return f"{done}/{num_cells} cells  {cell.name}{left}"


def _describe_result(result: CellResult) -> str:
    value = result["figures"].get("balanced_accuracy", {}).get("value")
    return f"balanced accuracy {'n/a' if value is None else f'{value:.3f}'}  {result['wall_s']:.0f} s"

"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedmed.protocol.kinds import Bar, describe_phase, find_phase
from fedmed.storage.history import RoundRecord
from fedmed.storage.statuses import find_status
from server.rounds.progress import Listener

_SPANS = {"train": (0.0, 0.9), "evaluate": (0.9, 0.1)}
"""Where in a round's part of the bar a phase begins, and its share; training is most of a round's work."""


@contextmanager
def make_listener(num_rounds: int, beginning: str = "preparing the data") -> Iterator[Listener]:
    """Yield the listener that fits the terminal, and clean up after it.

    Parameters
    ----------
    num_rounds : int
        Rounds of the run.
    beginning : str
        What goes on until the first phase.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainListener(num_rounds)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        yield BarListener(num_rounds, progress, beginning)


class BarListener:
    """Draws one bar over all rounds.

    Parameters
    ----------
    num_rounds : int
        Rounds of the run.
    progress : Progress
        Where to draw.
    beginning : str
        What the bar says before the first phase.
    """

    def __init__(self, num_rounds: int, progress: Progress, beginning: str) -> None:
        self._num_rounds, self._progress = num_rounds, progress
        self._task: TaskID = progress.add_task(beginning, total=float(num_rounds), figures="")
        self._round, self._phase, self._num_sites, self._num_done = 0, "", 0, 0
        self._bar: Bar = "rounds"
        self._moves: Bar | None = None
        self._alone = 0

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        """Show the new phase; the rounds of the sites' own models have a bar of their own."""
        known, moved = find_phase(phase), self._moves
        self._moves = None if known is None else known.bar
        if self._moves is not None and self._moves != self._bar:
            self._bar, self._alone = self._moves, 0
            self._progress.reset(self._task, total=float(self._num_rounds))
        if moved == "local":
            self._alone = self._round
        self._round, self._phase, self._num_sites, self._num_done = round_number, phase, num_sites, 0
        self._draw()

    def on_answer(self, site: str, problem: str | None) -> None:
        """Move the bar by one site; a problem comes as a note, too."""
        self._num_done += 1
        self._draw()

    def on_round(self, record: RoundRecord) -> None:
        """Print the closed round above the bar."""
        self._progress.console.print(describe_round(record, self._num_rounds), highlight=False)
        self._progress.update(self._task, completed=record.round, figures=_describe_figures(record))

    def on_info(self, text: str) -> None:
        """Print the text above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)

    def on_note(self, text: str) -> None:
        """Print the text above the bar."""
        self._progress.console.print(text, style="yellow", highlight=False, markup=False)

    def _draw(self) -> None:
        done = self._num_done / max(1, self._num_sites)
        begin, share = _SPANS.get(self._phase, (0.0, 0.0))
        before, part = self._round - 1 if self._moves == "rounds" else self._round, begin + share * done
        if self._moves == "local":  # a call may be for several rounds
            before, part = self._alone, (self._round - self._alone) * done
        asked = f"{self._num_done}/{self._num_sites} sites" if self._num_sites else "at the server"
        self._progress.update(
            self._task,
            completed=before + part,
            description=f"round {self._round}/{self._num_rounds} {describe_phase(self._phase)}: {asked}",
        )


class PlainListener:
    """Prints a line for every phase that ends a wait, for logs and pipes.

    Parameters
    ----------
    num_rounds : int
        Rounds of the run.
    """

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._seconds: list[float] = []

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        """Say what takes time outside the rounds."""
        known, title = find_phase(phase), describe_phase(phase)
        bar = None if known is None else known.bar
        if bar == "local":
            _print(f"{title}: up to round {round_number}/{self._num_rounds}, {num_sites} sites")
        elif bar is None:
            _print(f"{title}: {num_sites} sites" if num_sites else f"{title}: at the server")

    def on_answer(self, site: str, problem: str | None) -> None:
        """Print nothing: a problem comes as a note, too."""

    def on_round(self, record: RoundRecord) -> None:
        """Print the closed round and how long the rest will take."""
        self._seconds.append(record.wall_s)
        left = (self._num_rounds - record.round) * sum(self._seconds) / len(self._seconds)
        _print(f"{describe_round(record, self._num_rounds)}  {timedelta(seconds=round(left))} left")

    def on_info(self, text: str) -> None:
        """Print the text."""
        _print(text)

    def on_note(self, text: str) -> None:
        """Print the text."""
        _print(text)


def describe_round(record: RoundRecord, num_rounds: int) -> str:
    """Return one line about a closed round."""
    statuses = [line.status for line in record.participation]
    missed = sum(find_status(status).missed for status in statuses)
    left_out = f", {missed} left out" if missed else ""
    return (
        f"round {record.round}/{num_rounds}  {_describe_figures(record)}  "
        f"{statuses.count('accepted')} sites{left_out}  {record.wall_s:.1f} s"
    )


def _describe_figures(record: RoundRecord) -> str:
    accuracy = record.validation.pooled.get("balanced_accuracy")
    return f"loss {_format(record.loss)}  balanced accuracy {_format(accuracy)}"


def _format(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

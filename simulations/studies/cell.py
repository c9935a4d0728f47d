"""One cell of a study: a simulation in a process of its own, and what is kept of its report."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar, cast

from pydantic import JsonValue

from fedmed.config.files import dump_config
from fedmed.errors import FedmedError
from fedmed.processes import Child, child_environment
from fedmed.storage.atomic_files import write_text_atomically
from fedmed.storage.history import read_history
from fedmed.storage.run_folder import RunFolder
from simulations.studies.figures import BY_CLASS
from simulations.studies.results import (
    BenefitDifference,
    CellResult,
    Figure,
    Gap,
    Part,
    ShortReport,
    SiteBenefit,
    SiteFigure,
)
from simulations.studies.study import Cell

OnRounds = Callable[[int], None]
"""Is told how many rounds of a cell are closed."""

_POLL_S = 0.5
_GRACE_S = 30.0
_DIGITS = 6
_VERDICTS = ("better", "worse", "undecided", "unknown")
Kept = TypeVar("Kept", Part, SiteFigure, Figure, Gap, BenefitDifference)
Figures = Mapping[str, JsonValue]
"""Figures of a report by name; some of their groups hold numbers beside them."""


class ReportedEnvironment(TypedDict, total=False):
    """What a report says of the software."""

    versions: dict[str, str]


class ReportedSite(TypedDict):
    """What a report says of a site."""

    test: Figures


class ReportedBenefit(TypedDict, total=False):
    """What a report says of the benefit for a site."""

    verdict: str | None
    differences: dict[str, Figures]


class Report(TypedDict):
    """What a study looks at in a ``report.json``."""

    environment: ReportedEnvironment
    synthetic: bool
    classes: list[str]
    rounds: int
    chosen_round: int
    figures: Figures
    sites: dict[str, ReportedSite]
    groups: NotRequired[dict[str, dict[str, Figures]]]
    gaps: NotRequired[dict[str, Figures]]
    benefit: NotRequired[dict[str, ReportedBenefit]]
    benefit_summary: NotRequired[dict[str, list[str]]]


class CellFailedError(FedmedError):
    """The run of a cell did not finish; the text is what it said."""


class CellRunner:
    """Runs cells one after another, each in a child process with the whole machine.

    Parameters
    ----------
    folder : Path
        Where the run folders lie.
    keep : bool
        Whether the run folder of a finished cell stays.
    """

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        self._folder, self._keep = folder.absolute(), keep

    def __call__(self, cell: Cell, on_rounds: OnRounds) -> CellResult:
        """Run a cell, or go on with it where it was stopped, and return its result.

        Raises
        ------
        CellFailedError
            With what the run said.
        """
        stem = f"{cell.name}-{cell.digest[:8]}"
        run = RunFolder(self._folder / stem)
        clock_file, log_file = self._folder / f"{stem}.wall_s", self._folder / f"{stem}.log"
        spent = _read_seconds(clock_file)
        if not _is_finished(run):
            self._folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            try:
                code, said = self._run_child(cell, run, log_file, on_rounds)
            finally:
                spent += time.monotonic() - began
                write_text_atomically(clock_file, f"{spent:.1f}\n")
            if not _is_finished(run):
                raise CellFailedError(f"{said or f'The process ended with exit code {code}.'} Log: {log_file}")
        result: CellResult = {**_collect(run), "wall_s": round(spent, 1)}
        if not self._keep:
            shutil.rmtree(run.path)
            for file in (clock_file, log_file, run.path.with_suffix(".yaml")):
                file.unlink(missing_ok=True)
        return result

    def _run_child(self, cell: Cell, run: RunFolder, log_file: Path, on_rounds: OnRounds) -> tuple[int, str]:
        """Return the exit code and the last words of the simulation's process."""
        source = run.path.with_suffix(".yaml")
        write_text_atomically(source, dump_config(cell.config))
        started = any(run.checkpoints.glob("round_*"))
        what = ["--resume", str(run.path)] if started else ["--config", str(source), "--out", str(run.path)]
        child = Child(
            f"cell {cell.name}",
            [sys.executable, "-m", "simulations.run", *what, "--parent", str(os.getpid())],
            log_file,
            child_environment(self._folder / "flwr"),
        )
        child.start()
        try:
            while (code := child.poll()) is None:
                on_rounds(len(read_history(run.history_file)) if run.history_file.is_file() else 0)
                time.sleep(_POLL_S)
        finally:
            child.stop(_GRACE_S)
        return code, " ".join(child.tail(4).split())


def shorten_report(report: Report) -> ShortReport:
    """Return what a study keeps of a ``report.json``: all figures of the test, by class for all images and by site."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": report["environment"].get("versions", {}),
        "synthetic": report["synthetic"],
        "classes": report["classes"],
        "rounds": report["rounds"],
        "chosen_round": report["chosen_round"],
        "figures": _shorten(report["figures"], Figure),
        "sites": {site: _shorten(parts["test"], SiteFigure) for site, parts in report["sites"].items()},
        "groups": {
            attribute: {group: _shorten(figures, Part) for group, figures in groups.items()}
            for attribute, groups in report.get("groups", {}).items()
        },
        "gaps": {attribute: _shorten(gaps, Gap) for attribute, gaps in report.get("gaps", {}).items()},
        "benefit": {site: _shorten_benefit(found) for site, found in report.get("benefit", {}).items()},
        "benefit_summary": {name: report.get("benefit_summary", {}).get(name, []) for name in _VERDICTS},
    }


def _shorten(figures: Figures, kind: type[Kept]) -> dict[str, Kept]:
    """Return what ``kind`` names of every figure, leaving out what is null, with numbers rounded."""
    return {
        name: cast(Kept, dict(_choose_parts(name, figure, kind.__annotations__)))
        for name, figure in figures.items()
        if isinstance(figure, dict) and "value" in figure
    }


def _choose_parts(name: str, figure: dict[str, JsonValue], keys: Iterable[str]) -> Iterator[tuple[str, JsonValue]]:
    """Yield the named parts of a figure; of its classes the values alone, null where a class has none."""
    for key in keys:
        part = figure.get(key)
        if key != "by_class":
            if part is not None:
                yield key, _round(part)
        elif name in BY_CLASS and key in figure:
            yield key, {label: _round(_need_mapping(found)["value"]) for label, found in _need_mapping(part).items()}


def _shorten_benefit(found: ReportedBenefit) -> SiteBenefit:
    differences = found.get("differences", {})
    return {
        "verdict": found.get("verdict"),
        "differences": {other: _shorten(figures, BenefitDifference) for other, figures in differences.items()},
    }


def _need_mapping(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise TypeError(f"found {value!r} where names and values are expected")
    return value


def _round(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and math.isfinite(value):
        return round(value, _DIGITS)
    return [_round(part) for part in value] if isinstance(value, list) else value


def _collect(run: RunFolder) -> ShortReport:
    file = run.report / "report.json"
    try:
        return shorten_report(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CellFailedError(f"The report {file} is not what was expected: {error!r}. Remove {run.path}.") from error


def _is_finished(run: RunFolder) -> bool:
    """Return whether the simulation has gone to its end; the model is the last that it writes."""
    return run.finished_file.is_file() and (run.report / "report.json").is_file()


def _read_seconds(file: Path) -> float:
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0

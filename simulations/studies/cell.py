"""One cell of a study: a simulation in a process of its own, and what is kept of its report."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmed.config.files import dump_config
from fedmed.errors import FedmedError
from fedmed.processes import Child, child_environment
from fedmed.storage.atomic_files import write_text_atomically
from fedmed.storage.history import read_history
from fedmed.storage.run_folder import RunFolder
from simulations.studies.figures import BY_CLASS
from simulations.studies.study import Cell

OnRounds = Callable[[int], None]
"""Is told how many rounds of a cell are closed."""

_POLL_S = 0.5
_GRACE_S = 30.0
_DIGITS = 6
_VERDICTS = ("better", "worse", "undecided", "unknown")
_FIGURE = ("value", "interval", "n", "better")
_PART = ("value", "interval", "n")
_GAP = ("value", "interval", "mean", "better", "p_value", "chance", "flagged", "worst_group")
_DIFFERENCE = ("value", "interval", "p_value", "verdict")


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

    def __call__(self, cell: Cell, on_rounds: OnRounds) -> dict[str, Any]:
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
        result = _collect(run) | {"wall_s": round(spent, 1)}
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


def shorten_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a study keeps of a ``report.json``: all figures of the test, by class for all images and by site."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": report["environment"].get("versions", {}),
        "synthetic": report["synthetic"],
        "classes": report["classes"],
        "rounds": report["rounds"],
        "chosen_round": report["chosen_round"],
        "figures": _shorten_with_classes(report["figures"], _FIGURE),
        "sites": {site: _shorten_with_classes(parts["test"], _PART) for site, parts in report["sites"].items()},
        "groups": {
            attribute: {group: _shorten(figures, _PART) for group, figures in groups.items()}
            for attribute, groups in report.get("groups", {}).items()
        },
        "gaps": {attribute: _shorten(gaps, _GAP) for attribute, gaps in report.get("gaps", {}).items()},
        "benefit": {site: _shorten_benefit(found) for site, found in report.get("benefit", {}).items()},
        "benefit_summary": {name: report.get("benefit_summary", {}).get(name, []) for name in _VERDICTS},
    }


def _shorten(figures: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the named parts of every figure, leaving out what is null, with numbers rounded."""
    return {
        name: {key: _round(figure[key]) for key in keys if figure.get(key) is not None}
        for name, figure in figures.items()
        if isinstance(figure, Mapping) and "value" in figure
    }


def _shorten_with_classes(figures: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the named parts of every figure, and its values by class; null where a class has none."""
    shortened = _shorten(figures, keys)
    for name in BY_CLASS:
        if name in shortened and "by_class" in figures[name]:
            by_class = figures[name]["by_class"]
            shortened[name]["by_class"] = {label: _round(found["value"]) for label, found in by_class.items()}
    return shortened


def _shorten_benefit(found: Mapping[str, Any]) -> dict[str, Any]:
    differences = found.get("differences", {})
    return {
        "verdict": found.get("verdict"),
        "differences": {other: _shorten(figures, _DIFFERENCE) for other, figures in differences.items()},
    }


def _round(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return round(value, _DIGITS)
    return [_round(part) for part in value] if isinstance(value, list) else value


def _collect(run: RunFolder) -> dict[str, Any]:
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

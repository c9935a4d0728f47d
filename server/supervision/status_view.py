"""``status.json`` of a run folder, read and shown: ``flower-server --status``."""

import contextlib
import json
import os
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import NotRequired, TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmed.errors import RunFolderError
from fedmed.protocol.kinds import describe_phase

STATUS_FILE = "status.json"
ENDED = {"finished", "stopped", "failed"}
_TITLES = ("site", "connected", "last seen", "joined", "last round", "status", "share", "rounds", "model")


class Presence(TypedDict):
    """What is known of a site's connection."""

    connected: bool
    last_seen: str | None
    joined: bool
    problem: str | None
    """Why its last answer was none; None where it was one."""


class Participation(TypedDict):
    """A site's part in the rounds, as the history says."""

    last_round: int | None
    last_status: str | None
    last_share: float | None
    rounds_taken: int


class SiteStatus(Presence, Participation):
    """How one site stands."""

    collected: bool


class Status(TypedDict):
    """How a federation stands: what ``status.json`` holds and ``--status --json`` prints."""

    state: str
    round: int
    rounds: int
    chosen_round: NotRequired[int | None]
    """Whose model is tested and released; only once that is known."""
    phase: str | None
    asked: int
    """Sites in this phase."""
    answered: int
    sites: dict[str, SiteStatus]
    message: str
    updated: str
    pid: int
    process_started: int | None
    running: NotRequired[bool]
    """Whether that process is still there; only :func:`read_status` says so, not the file."""


def read_status(run_dir: Path) -> Status:
    """Return what ``status.json`` of a run folder says, and whether the server is running.

    Raises
    ------
    RunFolderError
        If the server was never started on this folder, or the file cannot be read.
    """
    path = run_dir / STATUS_FILE
    try:
        status: Status | None = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(
            f"There is no {STATUS_FILE} in '{run_dir}': no flower-server has been started with this run_dir yet."
        ) from None
    except OSError as error:
        raise RunFolderError(
            f"'{path}' cannot be read: {error.strerror}. Ask as the user who runs flower-server."
        ) from error
    except ValueError:
        status = None
    if not isinstance(status, dict) or not isinstance(status.get("pid"), int) or "sites" not in status:
        raise RunFolderError(f"'{path}' is damaged. Start flower-server again; it writes a new one.")
    status["running"] = _is_running(status["pid"], status.get("process_started"))
    if not status["running"]:
        for entry in status["sites"].values():
            entry["connected"] = False
    return status


def render_status(status: Status, now: datetime | None = None, width: int = 110) -> str:
    """Return a status as text for a person.

    Parameters
    ----------
    status : Status
        Of :func:`read_status`.
    now : datetime, optional
        The present; default: the clock.
    width : int
        Columns of the text.
    """
    now = now or datetime.now(UTC)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for title in _TITLES:
        table.add_column(title, justify="right" if title in {"last round", "share", "rounds"} else "left")
    for name, entry in status["sites"].items():
        share = entry.get("last_share")
        table.add_row(
            Text(name),
            "yes" if entry["connected"] else "no",
            _describe_age(entry["last_seen"], now),
            "yes" if entry["joined"] else "no",
            "-" if entry["last_round"] is None else str(entry["last_round"]),
            Text(entry["last_status"] or "-"),
            "-" if share is None else f"{share:.0%}",
            str(entry["rounds_taken"]),
            "collected" if entry["collected"] else "-",
        )
    text = StringIO()
    console = Console(file=text, width=width, color_system=None, highlight=False)
    console.print(Text(_describe_state(status, now)))
    if status["message"]:
        console.print(Text(status["message"]))
    console.print(table)
    for name, entry in status["sites"].items():
        if entry.get("problem") and str(entry["problem"]) not in status["message"]:  # told above
            console.print(Text(f"{name}: {entry['problem']}"))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _describe_state(status: Status, now: datetime) -> str:
    state, rounds = status["state"], f"round {status['round']} of {status['rounds']}"
    updated = _describe_age(status["updated"], now)
    if status["phase"]:
        rounds += f", {describe_phase(status['phase'])}"
        if status["asked"]:  # no site is, while the server itself computes
            rounds += f": {status['answered']} of {status['asked']} sites have answered"
    if status.get("chosen_round") is not None:
        rounds = f"{status['round']} rounds; round {status['chosen_round']} was chosen"
    if state in ENDED:
        is_chosen = state == "finished" and status.get("chosen_round") is not None
        return f"finished after {rounds} ({updated})" if is_chosen else f"{state} ({updated}), {rounds}"
    if not status["running"]:
        return f"ended without a word after {rounds} (last sign of life {updated}). Start flower-server again to go on."
    if state == "waiting for release":
        state += ' (flower-server --config FILE --release --by "NAME OF A PERSON")'
    shown = rounds if state == "round" else f"{state}, {rounds}"
    return f"{shown} (process {status['pid']}, updated {updated})"


def _describe_age(stamp: str | None, now: datetime) -> str:
    if not stamp:
        return "never"
    age = max(now - datetime.fromisoformat(stamp), timedelta())
    seconds = round(age.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _is_running(pid: int, started: int | None) -> bool:
    """Return whether a process is there, and is not another one to which the system gave the same number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it belongs to somebody else
    return started is None or process_start(pid) == started


def process_start(pid: int) -> int | None:
    """Return when a process was started, in the kernel's ticks since boot; None if it is gone or that is not known."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        # The name, in brackets, is the only field that may hold a space; the start is field 22 of all.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    return None


def find_seen(run_dir: Path) -> set[str]:
    """Return the sites that have been connected in a run, none before there is one."""
    try:
        return {name for name, entry in read_status(run_dir)["sites"].items() if entry["last_seen"] is not None}
    except (RunFolderError, KeyError, TypeError, AttributeError):
        return set()

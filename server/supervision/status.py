"""How a federation stands: the file ``status.json`` of a run folder, for ``flower-server --status``.

The supervisor keeps the file; any other process may read it at any time. It holds no secret and nothing about a
patient, and is readable by its owner only. Losing it does no harm, so it is never flushed to the disk, and a disk that
is full does not stop the federation for its sake.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fedmed.errors import FedmedError, RunFolderError
from fedmed.processes import Event
from fedmed.protocol.kinds import KINDS, find_phase
from fedmed.storage.history import RoundRecord, read_history, to_plain_json
from fedmed.storage.run_folder import RunFolder
from server.rounds.progress import WAITING
from server.supervision.status_view import (
    ENDED,
    STATUS_FILE,
    Participation,
    SiteStatus,
    Status,
    process_start,
    read_status,
    render_status,
)

__all__ = ["STATUS_FILE", "State", "StatusFile", "read_status", "render_status"]

State = Literal[
    "starting",
    "waiting for sites",
    "round",
    "testing",
    "proving",
    "waiting for release",
    "releasing",
    "finished",
    "stopped",
    "failed",
]
_REFRESH_S = 5.0
"""Seconds between two writes if nothing but times has changed."""
_NEW_SITE: SiteStatus = {
    "connected": False,
    "last_seen": None,
    "joined": False,
    "last_round": None,
    "last_status": None,
    "last_share": None,
    "rounds_taken": 0,
    "collected": False,
    "problem": None,
}
_logger = logging.getLogger("fedmed.server")


class StatusFile:
    """The writer. Every method takes effect at once.

    Parameters
    ----------
    run_dir : Path
        The run's folder. When sites were last seen is taken over from an earlier process, participation from
        ``history.jsonl``.
    rounds : int
        Rounds of the run.
    sites : iterable of str
        Names of the sites that may take part.
    now : callable
        The time in UTC, for tests.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        rounds: int,
        sites: Iterable[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._run_dir, self._now = run_dir, now
        self._written = float("-inf")
        self._seen = _read_last_seen(run_dir)
        self._content: Status = {
            "state": "starting",
            "round": 0,
            "rounds": rounds,
            "phase": None,
            "asked": 0,
            "answered": 0,
            "sites": {},
            "message": "",
            "updated": "",
            "pid": os.getpid(),
            "process_started": process_start(os.getpid()),
        }
        self.set_sites(sites)

    def set_state(self, state: State, message: str | None = None) -> None:
        """Note what the server is doing; ``message`` is one clear line for a person."""
        self._content["state"] = state
        if state not in {"round", "testing", "proving"}:
            self._content |= {"phase": None, "asked": 0, "answered": 0}
        if message is not None:
            self._content["message"] = message
        if state in {"waiting for release", "releasing", "finished"}:
            self._content["chosen_round"] = _read_chosen(self._run_dir)
            self._count_participation()
        if state in ENDED:
            for entry in self._content["sites"].values():
                entry["connected"] = False
        self._write()

    def set_ended(self, error: BaseException | None = None) -> None:
        """Note why the server ends: None is a good end, Ctrl-C is ``stopped``, everything else ``failed``."""
        if error is None:
            self.set_state("finished")
        elif isinstance(error, KeyboardInterrupt):
            self.set_state("stopped", "Stopped. Everything up to the last closed round is saved.")
        elif isinstance(error, FedmedError):
            self.set_state("failed", str(error))
        else:
            self.set_state("failed", f"An unexpected {type(error).__name__}; the server's output says more.")

    def set_message(self, text: str) -> None:
        """Note the newest line for a person."""
        self._content["message"] = text
        self._write()

    def set_sites(self, names: Iterable[str]) -> None:
        """Note which sites may take part; what is known of the others is forgotten."""
        old = self._content["sites"]
        self._content["sites"] = {
            name: old.get(name) or {**_NEW_SITE, "last_seen": self._seen.get(name)} for name in sorted(names)
        }
        self._count_participation()
        self._write()

    def set_connected(self, names: Iterable[str]) -> None:
        """Note which sites are connected at the moment; call it every few seconds, it is their sign of life."""
        online, changed = set(names), False
        for name, entry in self._content["sites"].items():
            changed |= entry["connected"] != (name in online)
            entry["connected"] = name in online
            if name in online:
                entry["last_seen"] = self._stamp()
        if changed or time.monotonic() - self._written >= _REFRESH_S:
            self._write()

    def set_collected(self, site: str, *, seen: bool = True) -> None:
        """Note that a site has the released model; ``seen`` is whether it said so just now."""
        entry = self._content["sites"].get(site)
        if entry is not None:
            entry["collected"] = True
            if seen:
                entry["last_seen"] = self._stamp()
        self._write()

    def take_event(self, event: Event) -> None:
        """Take an event of the ServerApp, as ``server.rounds.progress.EventListener`` writes it."""
        match event:
            case {"event": "phase", "phase": str(phase), "round": int(number), "num_sites": int(num_sites)}:
                self._take_phase(phase, number, num_sites)
            case {"event": "answer", "site": str(site), "problem": None | str() as problem}:
                self._take_answer(site, problem)
            case {"event": "round", "record": {"round": int(number)}}:
                self._content["round"] = number
                self._count_participation()
            case {"event": "info" | "note", "text": str(text)}:
                self._content["message"] = text
            case _:
                return
        self._write()

    def _take_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        self._content |= {"phase": phase, "asked": num_sites, "answered": 0}
        known = find_phase(phase)
        about_chosen = {"testing", "proving"}  # this is about the chosen round's model, also where sites join then
        if not {self._content["state"], None if known is None else known.state} & about_chosen:
            self._content["round"] = round_number
        if known is not None and known.state is not None:
            self._content["state"] = known.state
            if known.state == "round" and self._content["message"].startswith(WAITING):
                self._content["message"] = ""

    def _take_answer(self, site: str, problem: str | None) -> None:
        self._content["answered"] += 1
        if problem is not None:
            self._content["message"] = f"{site}: {problem}"
        entry = self._content["sites"].get(site)
        if entry is not None:
            entry["last_seen"], entry["problem"] = self._stamp(), problem
            if problem is None:
                entry["joined"] = True
            elif self._content["phase"] == KINDS["query"].phase_name():
                entry["joined"] = False

    def _count_participation(self) -> None:
        """Count anew what the history says: a run that goes on from an older checkpoint has a shorter one."""
        try:
            history = read_history(self._run_dir / "history.jsonl")
        except (RunFolderError, OSError) as error:
            _logger.warning("participation is not up to date: %s", error)
            return
        if history:
            self._content["round"] = max(self._content["round"], history[-1].round)
        sites = self._content["sites"]
        self._content["sites"] = {site: {**entry, **_count_rounds(history, site)} for site, entry in sites.items()}

    def _stamp(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _write(self) -> None:
        self._written = time.monotonic()
        self._content["updated"] = self._stamp()
        path = self._run_dir / STATUS_FILE
        partial = path.with_name(f".{STATUS_FILE}.partial")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o600)
                json.dump(to_plain_json(self._content), file, indent=1)
            os.replace(partial, path)
        except OSError as error:
            _logger.warning("%s could not be written: %s", STATUS_FILE, error.strerror or error)


def _count_rounds(history: Iterable[RoundRecord], site: str) -> Participation:
    """Return a site's newest line of the participation tables, and how many updates of it were accepted."""
    lines = [(record.round, line) for record in history for line in record.participation if line.site == site]
    number, newest = lines[-1] if lines else (None, None)
    return {
        "last_round": number,
        "last_status": None if newest is None else newest.status,
        "last_share": None if newest is None else newest.share,
        "rounds_taken": sum(line.status == "accepted" for _, line in lines),
    }


def _read_chosen(run_dir: Path) -> int | None:
    """Return the round whose model was chosen; None before the end of the rounds."""
    try:
        return int(json.loads(RunFolder(run_dir).finished_file.read_bytes())["chosen_round"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_last_seen(run_dir: Path) -> dict[str, str | None]:
    try:
        return {name: entry["last_seen"] for name, entry in read_status(run_dir)["sites"].items()}
    except (RunFolderError, KeyError, TypeError, AttributeError):
        return {}

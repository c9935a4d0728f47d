"""Writes down what a hospital is asked and answers, so that nobody can fill its log with what is refused.

What is refused at the door is held back until it is known to be refused. The first refusal of a request is written in
full; the same again is counted, and the count is written at most once a minute (``refused_again``). Beyond
:data:`MOST_REFUSED_BYTES` a day of refused and failed messages, one entry says so (``refusals_only_counted``) and the
rest of that day is counted only. Beyond :data:`MOST_BYTES` a day of all messages, every request is refused until the
next day, since nothing may leave unwritten.

::

    state_dir/audit.refused   what is counted and not yet in the log, and the bytes of the day; on the disk before a
                              refusal leaves
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.guard.audit import open_site_audit
from fedmed.errors import PolicyError, tame
from fedmed.storage.atomic_files import encode_json, write_atomically
from fedmed.storage.audit import AuditLog

COUNTS_FILE = "audit.refused"
MOST_REFUSED_BYTES = 2 * 2**20
MOST_BYTES = 64 * 2**20
COUNT_EVERY_S, COUNT_EVERY_S_BEYOND = 60.0, 3600.0
_MOST_DIFFERENT = 50
_OTHERS = "others"
_LONGEST_TEXT = 300

Clock = Callable[[], datetime]


@dataclass
class _Counts:
    """What is remembered of a day's refusals."""

    day: str = ""
    bytes: int = 0
    """Of all messages of the day in the log."""
    refused_bytes: int = 0
    """Of those that were refused or failed."""
    is_full: bool = False
    """Whether the day's bound was reached and told."""
    told: str = ""
    """When counts were last written, ISO 8601."""
    known: dict[str, int] = field(default_factory=dict)
    """Refusal that is in the log, a hash and its text -> how often it came again since the last count."""


class MessageLog:
    """The guard's way to the audit log.

    Parameters
    ----------
    open_audit : callable
        Gives the log; called when there is something to write.
    folder : Path
        Where counts are kept.
    clock : callable
        Gives the time in UTC.
    """

    def __init__(
        self, open_audit: Callable[[], AuditLog], folder: Path, clock: Clock = lambda: datetime.now(UTC)
    ) -> None:
        self._open_audit, self._file, self._clock = open_audit, folder / COUNTS_FILE, clock
        self._held: list[tuple[str, dict[str, Any]]] | None = None
        self._bytes = 0
        self._counts = self._read()

    def open_message(self) -> None:
        """Hold back what is written from now on, until :meth:`accept` or :meth:`close` decide about it."""
        self._held, self._bytes = [], 0
        before, found = self._counts, self._read()  # the other process of this site may have counted meanwhile
        found.bytes = max(before.bytes, found.bytes) if found.day == before.day else found.bytes
        self._counts = found if found.day >= before.day else before
        self._start_day()

    def append(self, event: str, /, **fields: Any) -> None:
        """Append one entry, or hold it back; see :meth:`fedmed.storage.audit.AuditLog.append`."""
        if self._held is not None:
            self._held.append((event, fields))
        else:
            self._write(event, fields)

    def accept(self) -> None:
        """Write what is held back: the message was not refused.

        Raises
        ------
        PolicyError
            If the log has grown so much today that nothing more is answered.
        """
        if self._counts.bytes > MOST_BYTES:
            raise PolicyError(
                f"This site's audit log has grown by {MOST_BYTES >> 20} MiB today, more than any federation needs. "
                "Found a further request, allowed none before the next day (UTC). At the coordinating site, see why it "
                "asks so often."
            )
        self._flush()
        self._tell_counts()

    def close(self, text: str) -> bool:
        """End a message that was refused or has failed: write it down, or count it if it came before.

        Parameters
        ----------
        text : str
            What leaves about it.

        Returns
        -------
        bool
            Whether it was written.
        """
        counts, held = self._counts, self._held
        key = None if held is None else _name(held, text)
        is_written = key is None or (key not in counts.known and not counts.is_full)
        if is_written:
            self._flush()
            counts.refused_bytes += self._bytes
            counts.told = counts.told or self._clock().isoformat()
            if key is not None:
                counts.known[key if len(counts.known) < _MOST_DIFFERENT else _OTHERS] = 0
        elif key is not None:
            place = key if key in counts.known else _OTHERS
            counts.known[place] = counts.known.get(place, 0) + 1
        self._held = None
        if not counts.is_full and counts.refused_bytes > MOST_REFUSED_BYTES:
            counts.is_full = True
            self._write("refusals_only_counted", {"bytes_today": counts.refused_bytes, "until": f"{counts.day}T24:00Z"})
        self._tell_counts()
        self._save()
        return is_written

    def _flush(self) -> None:
        held, self._held = self._held or [], None
        for event, fields in held:
            self._write(event, fields)

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        audit = self._open_audit()
        before = audit.num_bytes
        audit.append(event, **fields)
        number = max(0, audit.num_bytes - before)
        self._bytes += number
        self._counts.bytes += number

    def _tell_counts(self, *, at_once: bool = False) -> None:
        """Write how often refusals came again, if the last time is long enough ago."""
        counts, now = self._counts, self._clock()
        again = {text: number for text, number in counts.known.items() if number}
        every_s = COUNT_EVERY_S_BEYOND if counts.is_full else COUNT_EVERY_S
        last = datetime.fromisoformat(counts.told) if counts.told else None
        if not again or (not at_once and last is not None and (now - last).total_seconds() < every_s):
            return
        entries = [{"text": text.partition(" ")[2] or text, "times": number} for text, number in again.items()]
        self._write("refused_again", {"times": sum(again.values()), "refusals": entries})
        counts.refused_bytes += 0 if counts.is_full else 200 * len(entries)
        counts.told = now.isoformat()
        counts.known = dict.fromkeys(counts.known, 0)
        self._save()

    def _start_day(self) -> None:
        day = self._clock().date().isoformat()
        if self._counts.day != day:
            self._tell_counts(at_once=True)
            self._counts = _Counts(day)

    def _save(self) -> None:
        write_atomically(self._file, json.dumps(asdict(self._counts)).encode())

    def _read(self) -> _Counts:
        return _read_counts(self._file)


def count_unwritten(state_dir: Path) -> int:
    """Return how many refusals are counted that the log does not tell of yet."""
    return sum(_read_counts(state_dir / COUNTS_FILE).known.values())


def _read_counts(file: Path) -> _Counts:
    """Return what is on the disk; a damaged file counts as none."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        values = json.loads(file.read_bytes())
        known = {str(text): int(number) for text, number in values["known"].items()}
        return _Counts(**(values | {"known": known}))
    return _Counts()


def record_refusal(state_dir: Path, kind: str, text: str) -> None:
    """Record what is refused before it reaches the guard.

    Raises
    ------
    FedmedError
        If it cannot be written down.
    """
    log = MessageLog(lambda: open_site_audit(state_dir), state_dir)
    log.open_message()
    log.append("refused", kind=kind, text=text)
    log.close(text)


def _name(held: list[tuple[str, dict[str, Any]]], text: str) -> str:
    """Return under what a refusal is counted: the same request, refused for the same reason, has the same name."""
    asked = next((fields for event, fields in held if event in ("received", "refused")), {})
    told = encode_json([asked.get("kind"), asked.get("request"), text])
    return f"{hashlib.sha256(told.encode()).hexdigest()[:16]} {asked.get('kind')}: {tame(text, _LONGEST_TEXT)}"

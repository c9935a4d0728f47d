"""Whom the SuperLink has refused: told to the person at once, and to the audit log once a minute in one entry.

Anybody on the network can cause refusals, so they must fill neither a terminal nor a log: the same again is counted,
and beyond :data:`MOST_BYTES` a day one entry of the audit log says so, after which there is one with the sum an hour.
The details are in ``link/refused.jsonl``, which the SuperLink keeps small.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fedmed.errors import tame
from fedmed.processes import EventReader, RepeatedLines
from fedmed.storage.audit import AuditLog

AUDIT_EVERY_S, AUDIT_EVERY_S_BEYOND = 60.0, 3600.0
MOST_BYTES = 2**20
"""Of the audit log's entries about refusals in a day."""
_MOST_SOURCES = 20
_MOST_COUNTED = 10_000


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


class Refusals:
    """Reads what the SuperLink writes down.

    Parameters
    ----------
    file : Path
        JSON lines with ``address``, ``fingerprint``, ``reason`` and, of what came several times, ``count``.
    audit : AuditLog
        Takes the sums.
    clock : callable
        Seconds, for tests.
    today : callable
        Name of the day, for tests.
    """

    def __init__(
        self,
        file: Path,
        audit: AuditLog,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], str] = _today,
    ) -> None:
        self._reader, self._audit, self._clock, self._today = EventReader(file), audit, clock, today
        self._lines = RepeatedLines(clock=clock)
        self._count, self._reason = 0, ""
        self._sources: dict[str, None] = {}
        self._next_entry = clock()
        self._day, self._bytes, self._is_full = today(), 0, False

    def read(self) -> list[str]:
        """Return the lines to show of the refusals since the last call."""
        lines = self._lines.poll()
        for event in self._reader.read():
            source = tame(f"{event.get('address')}, key {event.get('fingerprint')}", 120)
            number = event.get("count")
            times = number if isinstance(number, int) and number > 0 else 1
            self._count, self._reason = self._count + times, tame(str(event.get("reason")), 200)
            if len(self._sources) < _MOST_COUNTED:
                self._sources[source] = None
            lines += self._lines.take(f"Refused: {source}: {self._reason}", times)
        if self._clock() >= self._next_entry:
            self.flush()
        return lines

    def flush(self) -> None:
        """Write the sum of what has not been written yet."""
        if not self._count:
            return
        if self._today() != self._day:
            self._day, self._bytes, self._is_full = self._today(), 0, False
        sources = [] if self._is_full else list(self._sources)[:_MOST_SOURCES]
        before = self._audit.num_bytes
        self._audit.append(
            "refused",
            count=self._count,
            num_sources=len(self._sources),
            sources=sources,
            last_reason=self._reason,
        )
        self._bytes += max(0, self._audit.num_bytes - before)
        self._count, self._sources = 0, {}
        if self._bytes > MOST_BYTES and not self._is_full:
            self._is_full = True
            self._audit.append("refusals_only_counted", bytes_today=self._bytes, until=f"{self._day}T24:00Z")
        self._next_entry = self._clock() + (AUDIT_EVERY_S_BEYOND if self._is_full else AUDIT_EVERY_S)

"""Whom the SuperLink has refused: told to the person at once, and to the audit log once a minute in one entry.

Anybody on the network can cause refusals, so they must not make the audit log grow with every one. The details are in
``link/refused.jsonl``, which the SuperLink keeps small.
"""

import time
from collections.abc import Callable
from pathlib import Path

from fedmed.processes import EventReader
from fedmed.storage.audit import AuditLog

AUDIT_EVERY_S = 60.0
_MOST_SOURCES = 20


class Refusals:
    """Reads what the SuperLink writes down.

    Parameters
    ----------
    file : Path
        JSON lines with ``address``, ``fingerprint`` and ``reason``.
    audit : AuditLog
        Takes the sums.
    clock : callable
        Seconds, for tests.
    """

    def __init__(self, file: Path, audit: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader, self._audit, self._clock = EventReader(file), audit, clock
        self._count, self._reason = 0, ""
        self._sources: dict[str, None] = {}
        self._next_entry = clock()

    def read(self) -> list[str]:
        """Return a line for each refusal since the last call."""
        lines = []
        for event in self._reader.read():
            source = f"{event.get('address')}, key {event.get('fingerprint')}"
            self._count, self._reason = self._count + 1, str(event.get("reason"))
            self._sources[source] = None
            lines.append(f"Refused: {source}: {self._reason}")
        if self._clock() >= self._next_entry:
            self.flush()
        return lines

    def flush(self) -> None:
        """Write the sum of what has not been written yet."""
        if self._count:
            sources = list(self._sources)
            self._audit.append(
                "refused",
                count=self._count,
                num_sources=len(sources),
                sources=sources[:_MOST_SOURCES],
                last_reason=self._reason,
            )
            self._count, self._sources = 0, {}
            self._next_entry = self._clock() + AUDIT_EVERY_S

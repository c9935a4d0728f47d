"""Events of a child process: JSON objects, one a line, on its standard output or in a file."""

import json
import queue
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

Event = dict[str, JsonValue]
"""What was told; who reads it looks at ``event``, and at the values that it knows."""


class EventQueue:
    """Takes the lines of a child's standard output; give it to :class:`Child` as ``on_line``."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def __call__(self, line: str) -> None:
        """Take one line; what is no JSON object is passed over."""
        event = _parse(line)
        if event is not None:
            self._events.put(event)

    def read(self) -> Iterator[Event]:
        """Yield the objects that have come in since the last call."""
        while True:
            try:
                yield self._events.get_nowait()
            except queue.Empty:
                return


class EventReader:
    """Reads the JSON lines that are appended to a file from now on; other lines are passed over.

    Parameters
    ----------
    path : Path
        The file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.is_file() else 0
        self._rest = b""

    def read(self) -> Iterator[Event]:
        """Yield the objects that have been appended since the last call; an incomplete line waits for its end."""
        if not self._path.is_file():
            return
        if self._path.stat().st_size < self._offset:  # it was replaced by a new one
            self._offset, self._rest = 0, b""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = _parse(line)
            if event is not None:
                yield event


def _parse(line: str | bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # a writer that was killed leaves half a line
    return event if isinstance(event, dict) else None

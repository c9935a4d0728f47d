"""Read by every Python process at its start: notes where it connects to and which files it writes.

``FEDMED_WATCH`` names the file that takes a line ``CONNECT ADDRESS``, ``LOOKUP NAME`` or ``WRITE PATH`` for each.
"""

import os
import sys
from _thread import get_ident

_LOG = os.environ.get("FEDMED_WATCH", "")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0}
_noting: set[int] = set()  # threads that open the log itself, which is no event to note


def _note(what: str, value: object) -> None:
    line = f"{what} {value}\n".encode(errors="replace")
    descriptor = _open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _open(path: str, flags: int, mode: int) -> int:
    thread = get_ident()
    _noting.add(thread)
    try:
        return os.open(path, flags, mode)
    finally:
        _noting.discard(thread)


def _watch(event: str, arguments: tuple) -> None:
    if get_ident() in _noting:
        return
    if event in ("socket.connect", "socket.sendto"):
        if isinstance(arguments[1], tuple):
            _note("CONNECT", arguments[1][0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if arguments[0] is not None:
            _note("LOOKUP", arguments[0])
    elif event == "open":
        path, mode, flags = arguments
        writes = (flags or 0) & _WRITING or set(mode if isinstance(mode, str) else "") & set("wax+")
        if writes and isinstance(path, str | bytes):
            _note("WRITE", os.path.abspath(os.fsdecode(path)))
    elif event in _CHANGES and isinstance(arguments[_CHANGES[event]], str | bytes):
        _note("WRITE", os.path.abspath(os.fsdecode(arguments[_CHANGES[event]])))


if _LOG:
    sys.addaudithook(_watch)

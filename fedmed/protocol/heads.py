"""Heads of audit logs, countersigned: each side keeps, signed, how far the other's log went.

A request carries, beside what is asked, the head of the server's log and the newest one that the server has of this
site's, signed with ``release.key``; an answer carries the same the other way round, signed with ``site.key``. To cut a
log, to write it anew or to delete it with all that lies beside it is then found by the other side at the next message,
and by whoever compares the two afterwards::

    state_dir/countersigned.jsonl          at a site: what servers have signed
    run_dir/countersigned/SITE.jsonl       at the server: what each site has signed

``release.key`` signs for the server, because every kit already holds its public half: a key of its own would come to
the sites by that very signature. What is signed begins with words that no manifest begins with, so that neither can be
taken for the other.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from fedmed.errors import RunFolderError, WireError
from fedmed.protocol.reading import MessageForm, Sha256
from fedmed.storage.atomic_files import encode_json, explain_write_failure, write_atomically

SITE_FILE, SERVER_FOLDER = "countersigned.jsonl", "countersigned"
_PURPOSE = b"fedmed: heads of audit logs, 1\n"

Side = Literal["server", "site"]
Finding = Literal["own log lacks it", "other log went back", "wrong signature", "unreadable"]
FINDINGS: dict[Finding, str] = {
    "own log lacks it": "its own log does not hold the entry that the other side has countersigned: it was cut, "
    "written anew or deleted",
    "other log went back": "the other side's log is shorter than, or another than, the one that it had before",
    "wrong signature": "the other side's head is not signed with the key that belongs to it",
    "unreadable": "the other side's head cannot be read",
}
"""What a side can find, in words about the side that says so."""


class LogHead(MessageForm):
    """How far a log goes."""

    what: ClassVar[str] = "The head of the audit log"
    length: Annotated[int, Field(ge=0, le=10**12)]
    """Entries."""
    hash: Sha256
    """Of the last one."""


class SignedHeads(MessageForm):
    """How far both logs go, as one side knows it, with its signature."""

    what: ClassVar[str] = "The head of the audit log"
    by: Side
    run: Annotated[str, Field(max_length=100)]
    site: Annotated[str, Field(max_length=100)]
    own: LogHead
    """Of the side that signs, when it signed."""
    seen: LogHead | None = None
    """Of the other side: from the server, what the site told last; from a site, what has just come."""
    before: LogHead | None = None
    """From a site: what the server told it before that."""
    finding: Finding | None = None
    """What is wrong, as the side that signs sees it."""
    signature: Annotated[str, Field(max_length=400)] = ""

    def to_sign(self) -> bytes:
        """Return what is signed."""
        return _PURPOSE + encode_json(self.model_dump(mode="json", exclude={"signature"})).encode()

    def signed(self, signature: str) -> "SignedHeads":
        """Return the same with a signature."""
        return self.model_copy(update={"signature": signature})

    def to_values(self) -> dict[str, JsonValue]:
        """Return the JSON values that travel."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True)
class StoredHeads:
    """What the other side has signed, as it is kept."""

    time: str
    """When it came, ISO 8601 in UTC."""
    heads: SignedHeads
    at: LogHead | None = None
    """How far the own log went then."""

    def list_own(self) -> list[tuple[int, str]]:
        """Return the entries that the own log held: as the other side has signed, and as it was noted."""
        told = (self.at, self.heads.seen, self.heads.before)
        return [(head.length, head.hash) for head in told if head is not None]


def store_heads(file: Path, heads: SignedHeads, at: LogHead | None = None) -> None:
    """Append what the other side has signed, once its signature was checked, and how far the own log goes.

    Raises
    ------
    CheckpointError
        If the disk is full or the file cannot be written.
    """
    line = _to_line(datetime.now(UTC).isoformat(timespec="seconds"), heads, at)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb+") as target:
            size = target.seek(0, os.SEEK_END)
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # by a crash
            target.write((b"\n" if is_torn else b"") + line)
    except OSError as error:
        raise explain_write_failure(file, error) from error


def _to_line(time: str, heads: SignedHeads, at: LogHead | None) -> bytes:
    line: dict[str, JsonValue] = {"time": time, "heads": heads.to_values()}
    line |= {} if at is None else {"at": at.to_values()}
    return encode_json(line).encode() + b"\n"


def read_stored(file: Path) -> Iterator[StoredHeads]:
    """Yield what is kept, oldest first; lines that a crash or a hand has damaged are passed over.

    Raises
    ------
    RunFolderError
        If the file is there and cannot be read.
    """
    try:
        lines = file.read_bytes().splitlines() if file.exists() else []
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror or error}.") from error
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError, WireError):
            values = json.loads(line)
            at = LogHead.read(values["at"]) if "at" in values else None
            yield StoredHeads(str(values["time"]), SignedHeads.read(values["heads"]), at)


def prune_stored(file: Path, moment: datetime) -> None:
    """Remove what was kept before a moment; the newest line always stays.

    Raises
    ------
    RunFolderError, CheckpointError
        If the file cannot be read or written.
    """
    stored = list(read_stored(file))
    left = [one for one in stored[:-1] if datetime.fromisoformat(one.time) >= moment] + stored[-1:]
    if len(left) < len(stored):
        lines = (_to_line(one.time, one.heads, one.at) for one in left)
        write_atomically(file, b"".join(lines))
        file.chmod(0o600)


def went_back(before: LogHead | None, now: LogHead) -> bool:
    """Return whether a log cannot be the one that it was: it is shorter, or as long with another end."""
    return before is not None and (now.length < before.length or (now.length == before.length and now != before))

"""An append-only log of who sent and received what, chained by hashes.

Every line is one JSON object in canonical form (keys sorted, no spaces)::

    {"event": …, "fields": {…}, "hash": …, "prev": …, "sequence": 1, "time": …}

``hash`` is the SHA-256 of the object without it, ``prev`` the hash of the line before (64 zeros for the first). To
change, remove or move a line therefore breaks the chain from there on. To cut off the end, or to write the whole log
anew, does not; but whoever keeps a hash (a checkpoint, another hospital) can demand that the log still holds it.

A crash can leave the last line incomplete. The next writer moves these bytes to ``NAME.torn`` beside the log and
records that with an entry ``torn_line_removed``. Several processes may append; a lock keeps their lines apart.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from fedmed.errors import FormatError, RunFolderError
from fedmed.formats import AUDIT_LOG
from fedmed.storage.atomic_files import encode_json, sync_path

GENESIS = "0" * 64
"""Head of an empty log."""

_KEYS = {"event", "fields", "hash", "prev", "sequence", "time"}


@dataclass(frozen=True)
class AuditReport:
    """Result of :func:`verify_audit`.

    Attributes
    ----------
    ok : bool
        Whether the whole chain holds, and holds the expected head.
    num_entries : int
        Sound entries, counted up to the first bad line.
    first_bad_line : int or None
        From 1; None if every line is sound.
    reason : str or None
        What is wrong, as a sentence.
    head : str
        Hash of the last sound entry.
    """

    ok: bool
    num_entries: int
    first_bad_line: int | None
    reason: str | None
    head: str


class AuditLog:
    """The writer of a log; opening an existing one continues its chain.

    Parameters
    ----------
    path : Path
        The file, made if it is missing, readable and writable by its owner only.

    Raises
    ------
    RunFolderError
        If the file cannot be written, or its chain is broken: going on would bury the evidence.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._length = 0
        self._head = GENESIS
        self._num_bytes = 0  # up to where the chain was followed
        with self._locked() as descriptor:
            os.fchmod(descriptor, 0o600)
            sync_path(self.path.parent)
            self._catch_up(descriptor)

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return self._head

    @property
    def length(self) -> int:
        """Number of entries."""
        return self._length

    def append(self, event: str, /, **fields: Any) -> None:
        """Append one entry; it is on the disk when this returns.

        Parameters
        ----------
        event : str
            What happened, for example ``"update_received"``.
        **fields
            Details; plain JSON with finite numbers.

        Raises
        ------
        ValueError
            If a field is not JSON.
        RunFolderError
            If the disk is full, or the file was cut off or damaged since it was opened.
        """
        with self._locked() as descriptor:
            self._catch_up(descriptor)
            self._write(descriptor, event, fields)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file for a moment, alone."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RunFolderError(f"The audit log {self.path} cannot be opened: {error.strerror}.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        except OSError as error:
            raise RunFolderError(
                f"The audit log {self.path} cannot be written: {error.strerror or error}. Nothing goes on without it; "
                "free some space or repair the disk, then start again."
            ) from error
        finally:
            os.close(descriptor)

    def _catch_up(self, descriptor: int) -> None:
        """Follow the chain over lines that were not seen yet: all of them at the start, later those of others."""
        size = os.fstat(descriptor).st_size
        if size < self._num_bytes:
            raise RunFolderError(
                f"The audit log {self.path} was cut off while in use; {self._num_bytes - size} bytes miss."
            )
        torn = b""
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(self._num_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    torn = line
                    break
                reason, digest = _check_line(line[:-1], self._length + 1, self._head)
                if reason:
                    raise RunFolderError(
                        f"The audit log {self.path} is broken in line {self._length + 1}: {reason} Keep the file as "
                        "evidence: move it elsewhere, then start again with a new one."
                    )
                self._advance(digest, len(line))
        if torn:
            self._remove_torn(descriptor, torn)

    def _remove_torn(self, descriptor: int, torn: bytes) -> None:
        """Move an incomplete last line aside and say so in the log."""
        aside = self.path.with_name(self.path.name + ".torn")
        copy = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(copy, torn + b"\n")
            os.fsync(copy)
        finally:
            os.close(copy)
        os.ftruncate(descriptor, self._num_bytes)
        fields: dict[str, JsonValue] = {
            "num_bytes": len(torn),
            "sha256": hashlib.sha256(torn).hexdigest(),
            "moved_to": aside.name,
        }
        self._write(descriptor, "torn_line_removed", fields)

    def _write(self, descriptor: int, event: str, fields: dict[str, JsonValue]) -> None:
        record: dict[str, JsonValue] = {
            "format": AUDIT_LOG.number,
            "sequence": self._length + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "fields": fields,
            "prev": self._head,
        }
        digest = _hash(record)
        line = encode_json({**record, "hash": digest}).encode() + b"\n"
        try:
            _write_all(descriptor, line)
            os.fsync(descriptor)
        except OSError:
            # A half-written line would look like a crash to the next writer.
            os.ftruncate(descriptor, self._num_bytes)
            raise
        self._advance(digest, len(line))

    def _advance(self, digest: str, num_bytes: int) -> None:
        self._length += 1
        self._head = digest
        self._num_bytes += num_bytes


def verify_audit(path: Path, expected_head: str | None = None) -> AuditReport:
    """Check a log without changing it.

    Parameters
    ----------
    path : Path
        The log.
    expected_head : str, optional
        A head that is known from elsewhere, for example from a checkpoint. The log must still hold it; it may have
        grown since. This is what shows that the end was cut off.

    Returns
    -------
    AuditReport
        The verdict. It is not good for a last line that a crash left incomplete, either.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    head, count = GENESIS, 0
    seen = expected_head in (None, GENESIS)
    try:
        with Path(path).open("rb") as file:
            for line in file:
                reason, digest = _check_line(line.removesuffix(b"\n"), count + 1, head)
                if not line.endswith(b"\n"):
                    reason = "The last line is incomplete, as after a crash or a cut."
                if reason:
                    return AuditReport(False, count, count + 1, reason, head)
                head, count = digest, count + 1
                seen = seen or digest == expected_head
    except OSError as error:
        raise RunFolderError(f"The audit log {path} cannot be read: {error.strerror or error}.") from error
    if not seen:
        reason = f"The log does not hold the entry {expected_head}: its end was cut off, or it is another log."
        return AuditReport(False, count, None, reason, head)
    return AuditReport(True, count, None, None, head)


def _check_line(line: bytes, sequence: int, head: str) -> tuple[str | None, str]:
    """Return what is wrong with a line (None if nothing) and its hash."""
    try:
        record = json.loads(line)
        if isinstance(record, dict):
            AUDIT_LOG.check(record.get("format"), f"line {sequence}")
        if not isinstance(record, dict) or record.keys() - {"format"} != _KEYS or encode_json(record).encode() != line:
            return "It is not an entry in the log's form.", ""
    except FormatError as error:
        return str(error), ""
    except (ValueError, RecursionError):
        return "It is not JSON.", ""
    digest = record.pop("hash")
    if digest != _hash(record):
        return "It was changed: its hash does not fit its content.", ""
    if record["prev"] != head or record["sequence"] != sequence:
        return "It does not follow the line before: lines were removed, added or moved.", ""
    return None, digest


def _hash(record: dict[str, JsonValue]) -> str:
    return hashlib.sha256(encode_json(record).encode()).hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

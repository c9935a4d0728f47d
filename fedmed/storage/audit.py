"""An append-only log of who sent and received what, chained by hashes.

Every line is one JSON object in canonical form (keys sorted, no spaces)::

    {"event": …, "fields": {…}, "hash": …, "prev": …, "sequence": 1, "time": …}

``hash`` is the SHA-256 of the object without it, ``prev`` the hash of the line before (64 zeros for the first). To
change, remove or move a line therefore breaks the chain from there on. To cut off the end, or to write the whole log
anew, does not; but whoever keeps a hash (a checkpoint, another hospital) can demand that the log still holds it.

Where the settings say so (``keep``), the oldest lines are deleted. The last entry then tells how far, ``deleted`` with
``audit_log: {"hash": …, "up_to": n}``, and the first line that is left follows that entry; a beginning that is gone
without such an entry is found.

A crash can leave the last line incomplete. The next writer moves these bytes to ``NAME.torn`` beside the log and
records that with an entry ``torn_line_removed``. Several processes may append; a lock keeps their lines apart.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from fedmed.errors import RunFolderError
from fedmed.formats import AUDIT_LOG
from fedmed.storage.atomic_files import atomic_file, encode_json, sync_path
from fedmed.storage.audit_chain import DELETED, GENESIS, NO_BEGINNING, Chain, hash_record

__all__ = ["DELETED", "GENESIS", "AuditLog", "AuditReport", "verify_audit"]


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
        self._chain = Chain()
        self._num_bytes = 0  # up to where the chain was followed
        with self._locked() as descriptor:
            os.fchmod(descriptor, 0o600)
            sync_path(self.path.parent)
            self._catch_up(descriptor)

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return self._chain.head

    @property
    def length(self) -> int:
        """Number of entries, with those that were deleted because they are kept no longer."""
        return self._chain.length

    @property
    def num_bytes(self) -> int:
        """Size of the file, as far as it was followed."""
        return self._num_bytes

    def holds(self, number: int, digest: str) -> bool:
        """Return whether an entry, counted from 1, has a hash; of one that is kept no longer it cannot be told."""
        return self._chain.holds(number, digest)

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

    def delete_before(self, moment: datetime) -> int:
        """Delete the oldest entries, and return how many; the newest always stays.

        No other process may have the log open. An entry :data:`DELETED` says how far it was deleted.

        Parameters
        ----------
        moment : datetime
            With a time zone. Entries from before it are deleted.

        Raises
        ------
        RunFolderError
            As for :meth:`append`.
        """
        with self._locked() as descriptor:
            self._catch_up(descriptor)
            old = _count_before(self.path, moment)
            up_to = self._chain.removed + min(old, self.length - self._chain.removed - 1)
            if up_to <= self._chain.removed:
                return 0
            number = up_to - self._chain.removed
            fields: dict[str, JsonValue] = {"hash": self._chain.hash_of(up_to), "up_to": up_to}
            self._write(descriptor, DELETED, {"audit_log": fields, "entries": number})
            with self.path.open("rb") as source, atomic_file(self.path) as target:
                target.writelines(line for place, line in enumerate(source) if place >= number)
        self.path.chmod(0o600)
        self._chain, self._num_bytes = Chain(), 0
        with self._locked() as descriptor:
            self._catch_up(descriptor)
        return number

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
                reason = self._chain.follow(line[:-1])
                if reason:
                    raise self._broken(self._chain.length - self._chain.removed + 1, reason)
                self._num_bytes += len(line)
        if not self._chain.is_told:
            raise self._broken(1, NO_BEGINNING)
        if torn:
            self._remove_torn(descriptor, torn)

    def _broken(self, line: int, reason: str) -> RunFolderError:
        return RunFolderError(
            f"The audit log {self.path} is broken in line {line}: {reason} Keep the file as evidence: move it "
            "elsewhere, then start again with a new one."
        )

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
            "sequence": self._chain.length + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "fields": fields,
            "prev": self._chain.head,
        }
        digest = hash_record(record)
        line = encode_json({**record, "hash": digest}).encode() + b"\n"
        try:
            _write_all(descriptor, line)
            os.fsync(descriptor)
        except OSError:
            # A half-written line would look like a crash to the next writer.
            os.ftruncate(descriptor, self._num_bytes)
            raise
        self._chain.advance(digest)
        self._num_bytes += len(line)


def _count_before(path: Path, moment: datetime) -> int:
    """Return how many of the first entries are older than a moment."""
    number = 0
    with path.open("rb") as file:
        for line in file:
            if datetime.fromisoformat(json.loads(line)["time"]) >= moment:
                break
            number += 1
    return number


def verify_audit(path: Path, expected_head: str | None = None, expected: Iterable[tuple[int, str]] = ()) -> AuditReport:
    """Check a log without changing it.

    Parameters
    ----------
    path : Path
        The log.
    expected_head : str, optional
        A head that is known from elsewhere, for example from a checkpoint. The log must still hold it; it may have
        grown since. This is what shows that the end was cut off.
    expected : iterable of (int, str)
        Numbers of entries, from 1, and the hashes that they must have; what the other side has countersigned.

    Returns
    -------
    AuditReport
        The verdict. It is not good for a last line that a crash left incomplete, either.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    chain = Chain()
    seen = expected_head in (None, GENESIS)
    try:
        with Path(path).open("rb") as file:
            for line in file:
                before = chain.length - chain.removed
                reason = chain.follow(line.removesuffix(b"\n"))
                if not line.endswith(b"\n"):
                    reason = "The last line is incomplete, as after a crash or a cut."
                if reason:
                    return AuditReport(False, before, before + 1, reason, chain.head)
                seen = seen or chain.head == expected_head
    except OSError as error:
        raise RunFolderError(f"The audit log {path} cannot be read: {error.strerror or error}.") from error
    count = chain.length - chain.removed
    if not chain.is_told:
        return AuditReport(False, 0, 1, NO_BEGINNING, chain.head)
    if not seen:
        reason = f"The log does not hold the entry {expected_head}: its end was cut off, or it is another log."
        return AuditReport(False, count, None, reason, chain.head)
    for number, digest in sorted(expected):
        if not chain.holds(number, digest):
            reason = (
                f"The log does not hold the entry {number} that the other side has countersigned ({digest[:12]}…): its "
                "end was cut off, or it was written anew."
            )
            return AuditReport(False, count, None, reason, chain.head)
    return AuditReport(True, count, None, None, chain.head)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

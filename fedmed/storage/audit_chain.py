"""The chain of an audit log: each line against the one before it; see :mod:`fedmed.storage.audit`."""

import hashlib
import json

from pydantic import JsonValue

from fedmed.errors import FormatError
from fedmed.formats import AUDIT_LOG
from fedmed.storage.atomic_files import encode_json

GENESIS = "0" * 64
"""Head of an empty log."""
DELETED = "deleted"
"""Event with which something is gone because the settings say how long it is kept."""
NO_BEGINNING = "Its beginning is missing, and no entry says that it was deleted."
_KEYS = {"event", "fields", "hash", "prev", "sequence", "time"}


class Chain:
    """What is known of a log up to one of its lines."""

    def __init__(self) -> None:
        self.length, self.head = 0, GENESIS
        self.removed = 0
        """Entries before the first line, which are kept no longer."""
        self.is_told = True
        """Whether an entry says that they were deleted."""
        self._before = GENESIS
        self._hashes = bytearray()

    def follow(self, line: bytes) -> str | None:
        """Go on over a line without its end, or return what is wrong with it."""
        if not self.length:
            self._begin(line)
        reason, digest = _check_line(line, self.length + 1, self.head)
        if reason:
            return reason
        if not self.is_told:
            self.is_told = _find_deleted(line) == (self.removed, self._before)
        self.advance(digest)
        return None

    def advance(self, digest: str) -> None:
        """Note the hash of the next entry."""
        self.length, self.head = self.length + 1, digest
        self._hashes += bytes.fromhex(digest)

    def hash_of(self, number: int) -> str:
        """Return the hash of an entry that is there."""
        start = 32 * (number - self.removed - 1)
        return self._hashes[start : start + 32].hex()

    def holds(self, number: int, digest: str) -> bool:
        """Return whether an entry has a hash; of one that is kept no longer it cannot be told."""
        if number <= self.removed:
            return number > 0 or digest == GENESIS
        return number <= self.length and self.hash_of(number) == digest

    def _begin(self, line: bytes) -> None:
        """Take the place of the first line from itself; an entry has to follow that says why it is not the first."""
        try:
            record = json.loads(line)
            sequence, before = record["sequence"], record["prev"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # said of the line itself
        if isinstance(sequence, int) and sequence > 1 and isinstance(before, str):
            self.length = self.removed = sequence - 1
            self.head = self._before = before
            self.is_told = False


def _find_deleted(line: bytes) -> tuple[int, str] | None:
    """Return up to which entry the log was deleted, and its hash, if a sound line says so."""
    if f'"event":"{DELETED}"'.encode() not in line:
        return None
    record = json.loads(line)
    fields = record["fields"] if record["event"] == DELETED else None
    told = fields.get("audit_log") if isinstance(fields, dict) else None
    return (told["up_to"], told["hash"]) if isinstance(told, dict) and {"up_to", "hash"} <= told.keys() else None


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
    if digest != hash_record(record):
        return "It was changed: its hash does not fit its content.", ""
    if record["prev"] != head or record["sequence"] != sequence:
        return "It does not follow the line before: lines were removed, added or moved.", ""
    return None, digest


def hash_record(record: dict[str, JsonValue]) -> str:
    """Return the hash of an entry without its own."""
    return hashlib.sha256(encode_json(record).encode()).hexdigest()

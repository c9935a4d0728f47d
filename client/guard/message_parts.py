"""What a message holds, part by part, as the audit log and ``--check`` name it: bytes, SHA-256 and keys."""

import hashlib
import json
from typing import NotRequired, TypedDict

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedmed.errors import tame
from fedmed.protocol.messages import MODEL, STYPE
from fedmed.training.network import hash_model

_MOST_KEYS = 40  # of an arriving part, in the audit log


class Part(TypedDict):
    """One part of a message, as the audit log has it."""

    name: str
    bytes: int
    sha256: str | None
    """None for a part of an unknown form."""
    keys: NotRequired[list[str]]
    """Of a request or report."""
    num_keys: NotRequired[int]
    """Where these are only some of them."""


def list_parts(content: RecordDict) -> list[Part]:
    """Return name, bytes and SHA-256 of every part of a message, with the keys of a request or report.

    A part of an unknown form has no digest, and is never accepted or sent.
    """
    return [_describe_part(str(name), record) for name, record in content.items()]


def _describe_part(name: str, record: object) -> Part:
    data, keys = _read_record(record)
    part: Part = {"name": tame(name, 60), "bytes": 0 if data is None else len(data), "sha256": None}
    if data is not None:
        part["sha256"] = hash_model(data) if name == MODEL else hashlib.sha256(data).hexdigest()
    return part if keys is None else {**part, "keys": keys}


def shorten_part(part: Part) -> Part:
    """Return a part that arrived, with no more of its keys than a log should hold."""
    keys = part.get("keys", [])
    return part if len(keys) <= _MOST_KEYS else {**part, "keys": keys[:_MOST_KEYS], "num_keys": len(keys)}


def _read_record(record: object) -> tuple[bytes | None, list[str] | None]:
    """Return the bytes of a record of one of the agreed forms, and the keys of a request or report."""
    if isinstance(record, ConfigRecord) and set(record) == {"json"}:
        text = record["json"]
        keys = _read_keys(text) if isinstance(text, str) else None
        return (None, None) if keys is None else (str(text).encode(), keys)
    if isinstance(record, ArrayRecord) and set(record) == {"bytes"}:
        array = record["bytes"]
        if (array.stype, array.dtype, array.shape) == (STYPE, "uint8", (len(array.data),)):
            return array.data, None
    return None, None


def _read_keys(text: str) -> list[str] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return sorted(values) if isinstance(values, dict) else None

"""What a hospital was asked, as its audit log keeps it: the request as it came, its models as hashes only.

A plan is long and comes with every request, so that it is written down once and named by its hash afterwards::

    {"event": "received", "fields": {…, "request": {"plan": {"sha256": "5f…"}, "round": 3}, "plans": {"5f…": {…}}}}

What is too long for a log, or cannot be read, is kept as its length and SHA-256.
"""

import hashlib
import json
from typing import TypedDict

from flwr.app import ConfigRecord, Message
from pydantic import JsonValue

from fedmed.protocol.kinds import REQUEST
from fedmed.storage.atomic_files import encode_json

MOST_BYTES = 16 * 2**10
"""Of a request, with its plans, that are written down."""
_MOST_PLANS = 64
_DEEPEST = 32
_PLAN, _OTHER = "plan", "other"


class WrittenRequest(TypedDict, total=False):
    """What an entry says of a request."""

    request: JsonValue
    """As it came; a plan as ``{"sha256": …}``."""
    plans: dict[str, JsonValue]
    """Plans that stand in no earlier entry of this process, by hash."""


class RequestWriter:
    """Turns requests into what is written down of them."""

    def __init__(self) -> None:
        self._known: dict[str, None] = {}

    def write(self, message: Message) -> WrittenRequest:
        """Return what is written down of a message's request; nothing if it has none."""
        record = message.content.get(REQUEST) if message.has_content() else None
        text = record.get("json") if isinstance(record, ConfigRecord) else None
        if not isinstance(text, str):
            return {}
        values = _read(text)
        if values is None:
            return {"request": shorten(text)}
        plans: dict[str, JsonValue] = {}
        request: dict[str, JsonValue] = self._take_plan(values, plans)
        other = request.get(_OTHER)
        if isinstance(other, dict):
            request[_OTHER] = self._take_plan(other, plans)
        return {"request": request, **({"plans": plans} if plans else {})}

    def forget(self, written: WrittenRequest) -> None:
        """Take back that plans are written down: the entry was not written after all."""
        for digest in written.get("plans", {}):
            self._known.pop(digest, None)

    def _take_plan(self, values: dict[str, JsonValue], plans: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return values with the hash of their plan in its place."""
        plan = values.get(_PLAN)
        if not isinstance(plan, dict):
            return values
        digest = hash_plan(plan)
        if digest not in self._known:
            plans[digest] = plan
            self._known[digest] = None
            while len(self._known) > _MOST_PLANS:
                self._known.pop(next(iter(self._known)))
        return values | {_PLAN: {"sha256": digest}}


def hash_plan(plan: dict[str, JsonValue]) -> str:
    """Return the SHA-256 of a plan in canonical JSON."""
    return hashlib.sha256(encode_json(plan).encode()).hexdigest()


def shorten(text: str) -> dict[str, JsonValue]:
    """Return length and hash of a text in the place of it."""
    data = text.encode("utf-8", "surrogatepass")
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read(text: str) -> dict[str, JsonValue] | None:
    """Return the values of a request that can be written down again as they are."""
    if len(text) > MOST_BYTES:
        return None
    try:
        values = json.loads(text)
        encode_json(values).encode()  # neither NaN nor lone surrogates
    except (ValueError, RecursionError, TypeError):
        return None
    return values if isinstance(values, dict) and _is_flat(values) else None


def _is_flat(values: JsonValue) -> bool:
    """Return whether values are nested so little that every reader of the log can read them."""
    level = [values]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return not level

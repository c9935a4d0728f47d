"""Who may talk to the SuperLink: sites whose key is known, and a record of everybody else who tried."""

import base64
import binascii
import heapq
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

# Touched internals: names of the headers in which Flower's SuperNode proves who it is, how old such a proof may be, and
# the state that knows the keys. Flower checks its own signature of the time, but only after it has read the whole
# request into memory; ours covers the request, and is checked before.
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from starlette.types import Scope

from fedmed.errors import KeyFileError
from fedmed.formats import SIGNED_REQUEST
from fedmed.keys import fingerprint
from fedmed.protocol.release import SHA256
from fedmed.protocol.signing import (
    BODY_HEADER,
    EMPTY_SHA256,
    FORMAT_HEADER,
    NONCE,
    NONCE_HEADER,
    REFUSALS,
    SIGNATURE_HEADER,
    Problem,
    make_signed_text,
)
from server.superlink.state import DeploymentLinkState

_KEY = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
_TIME = TIMESTAMP_HEADER.encode()
_FORMAT, _SIGNATURE = FORMAT_HEADER.encode(), SIGNATURE_HEADER.encode()
_NONCE, _BODY = NONCE_HEADER.encode(), BODY_HEADER.encode()
_FLOWER_SIGNATURE = FLEET_HTTP_SIGNATURE_HEADER.encode()
_SIGNED = frozenset({_KEY, _TIME, _FORMAT, _SIGNATURE, _NONCE, _BODY, _FLOWER_SIGNATURE})
_OLDEST_S = TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
_LONGEST_TIME, _LONGEST_KEY = 40, 1000
MAX_NONCES_PER_SITE = 8192
_NO_KEY = (KeyError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm, NotImplementedError, KeyFileError)
_QUIET_S = 60.0
_MOST_LINES_A_MINUTE = 100
_LARGEST_RECORD_BYTES = 5 * 2**20

Source = tuple[str, str, str]
"""Address, key and reason of a refusal."""
_OTHERS: Source = ("many", "many", "more sources were refused than are told apart")

log = logging.getLogger("fedmed.superlink")


@dataclass(frozen=True)
class Visitor:
    """Somebody who has sent a request.

    Parameters
    ----------
    fingerprint : str
        Of the key, or ``"none"``.
    node_id : int, optional
        Number of the site; None for somebody who is refused.
    problem : str, optional
        Why it is refused, for the coordinating site.
    refusal : Problem, optional
        The same, as the site is told.
    body_sha256 : str
        What was signed of the body, hexadecimal.
    key : bytes, optional
        Public key of a site that is let in, DER.
    """

    fingerprint: str
    node_id: int | None = None
    problem: str | None = None
    refusal: Problem | None = None
    body_sha256: str = EMPTY_SHA256
    key: bytes | None = field(default=None, repr=False)

    @property
    def number(self) -> int:
        """Number of a site that was let in."""
        assert self.node_id is not None, "others are refused"
        return self.node_id


class UsedNonces:
    """Remembers the numbers that known sites have used, so that a request that was recorded is of no use.

    Each site has a memory of its own, which it cannot fill for others. Where it is full, the oldest is forgotten, and
    from then on everything as old as that is refused; so are requests that were signed before this server began to
    remember.

    Parameters
    ----------
    started : float
        Seconds since 1970; nothing older is accepted.
    most : int
        Numbers that are remembered of a site.
    """

    def __init__(self, started: float, most: int = MAX_NONCES_PER_SITE) -> None:
        self._started, self._most = started, most
        self._heaps: dict[int, list[tuple[float, str]]] = {}
        self._known: dict[int, set[str]] = {}
        self._floors: dict[int, float] = {}
        self._lock = threading.Lock()

    def use(self, node_id: int, nonce: str, signed_at: float) -> Problem | None:
        """Note a number; return why it cannot be used, None if it can.

        Parameters
        ----------
        node_id : int
            A site whose signature was right.
        nonce : str
            The number.
        signed_at : float
            Seconds since 1970, within the window of time that is accepted.
        """
        with self._lock:
            if signed_at <= self._started:
                return "restarted"
            known, heap = self._known.setdefault(node_id, set()), self._heaps.setdefault(node_id, [])
            if nonce in known or signed_at <= self._floors.get(node_id, 0.0):
                return "replayed"
            known.add(nonce)
            heapq.heappush(heap, (signed_at, nonce))
            while len(heap) > self._most or heap[0][0] < signed_at - 2 * _OLDEST_S:
                self._floors[node_id], old = heapq.heappop(heap)
                known.discard(old)
        return None

    def count(self, node_id: int) -> int:
        """Return how many numbers of a site are remembered."""
        return len(self._heaps.get(node_id, ()))


def identify(state: DeploymentLinkState, nonces: UsedNonces, scope: Scope) -> Visitor:
    """Check the headers with which a site signs each of its requests.

    Parameters
    ----------
    state : DeploymentLinkState
        Knows the keys of the sites.
    nonces : UsedNonces
        Knows the requests that came before.
    scope : Scope
        Of ASGI; the body is not looked at.
    """
    shown = [(name, value) for name, value in scope["headers"] if name in _SIGNED]
    found = dict(shown)
    try:
        public_bytes = base64.b64decode(found[_KEY][:_LONGEST_KEY], validate=True)
        key = bytes_to_public_key(public_bytes)
        print_of_key = fingerprint(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii"))
    except _NO_KEY:
        return refuse_visitor("none", "key")
    if len(found) < len(shown):  # Flower, behind this gate, might take the other of two
        return refuse_visitor("none", "key")
    node_id = state.get_node_id_by_public_key(public_bytes)
    signed_at = None if node_id is None else _check_signature(key, found, scope)
    problem: Problem | None = None
    if found.get(_FORMAT) != str(SIGNED_REQUEST.number).encode():
        problem = "format"
    elif node_id is None:
        problem = "unknown"
    elif signed_at is None:
        problem = "signature"
    else:
        age_s = time.time() - signed_at
        if not -SYSTEM_TIME_TOLERANCE < age_s < _OLDEST_S:
            return Visitor(print_of_key, problem=f"its clock differs by {-age_s:+.0f} s", refusal="clock")
        problem = nonces.use(node_id, found[_NONCE].decode(), signed_at)
    if problem is not None:
        return refuse_visitor(print_of_key, problem)
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Visitor(print_of_key, node_id, body_sha256=found[_BODY].decode(), key=der)


def _check_signature(key: ec.EllipticCurvePublicKey, found: Mapping[bytes, bytes], scope: Scope) -> float | None:
    """Return when a request was signed, in seconds since 1970; None if the signature does not fit it."""
    try:
        signature = base64.b64decode(found[_SIGNATURE], validate=True)
        signed, nonce, body = (found[name].decode("ascii") for name in (_TIME, _NONCE, _BODY))
        if not (NONCE.fullmatch(nonce) and SHA256.fullmatch(body) and len(signed) <= _LONGEST_TIME):
            return None
        target, number = find_target(scope), SIGNED_REQUEST.number
        text = make_signed_text(scope["method"], target, body_sha256=body, time=signed, nonce=nonce, number=number)
        moment = datetime.fromisoformat(signed)
        if moment.tzinfo is None or not verify_signature(key, text, signature):
            return None
        return moment.timestamp()
    except (KeyError, ValueError, TypeError, OverflowError, binascii.Error):
        return None


def find_target(scope: Scope) -> str:
    """Return path and query of a request as they were sent."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string", b"")
    return (path + b"?" + query if query else path).decode("latin-1")


def refuse_visitor(print_of_key: str, problem: Problem) -> Visitor:
    """Return somebody who is refused, with the reason."""
    return Visitor(print_of_key, problem=REFUSALS[problem].at_server, refusal=problem)


class RefusalLog:
    """Writes down who was refused, once a minute for each source, and how often it was.

    Parameters
    ----------
    file : Path, optional
        Takes one JSON line for each: ``time``, ``address``, ``fingerprint``, ``reason``, and ``count`` where it was
        refused more than once since the line before. Of more than a hundred sources a minute, one line has the sum.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._last: dict[Source, list[float]] = {}
        """When a source was written down last, and how often it came since."""
        self._others, self._others_due = 0, 0.0
        self._lock = threading.Lock()

    def add(self, address: str, visitor: Visitor, reason: str) -> None:
        """Note a refusal."""
        with self._lock:
            for source, count in self._take((address, visitor.fingerprint, reason), time.monotonic()):
                self._write(source, count)

    def _take(self, source: Source, current: float) -> Iterator[tuple[Source, int]]:
        """Yield what is to be written down now, and how often it came."""
        for one, (last, count) in list(self._last.items()):
            if current - last >= _QUIET_S:
                del self._last[one]
                if count:
                    yield one, int(count)
        if self._others and current >= self._others_due:
            yield _OTHERS, self._others
            self._others = 0
        if source in self._last:
            self._last[source][1] += 1
        elif len(self._last) >= _MOST_LINES_A_MINUTE:
            self._others_due = self._others_due if self._others else current + _QUIET_S
            self._others += 1
        else:
            self._last[source] = [current, 0]
            yield source, 1

    def _write(self, source: Source, count: int) -> None:
        address, key, reason = source
        log.warning("refused %s with key %s: %s%s", address, key, reason, f" ({count} times)" if count > 1 else "")
        line: dict[str, str | int] = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "address": address,
            "fingerprint": key,
            "reason": reason,
        }
        if self._file is not None:
            self._append(json.dumps(line | ({"count": count} if count > 1 else {})) + "\n")

    def _append(self, line: str) -> None:
        assert self._file is not None
        try:
            if self._file.is_file() and self._file.stat().st_size > _LARGEST_RECORD_BYTES:
                self._file.replace(self._file.with_suffix(".old"))
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            log.warning("the record of refused sites cannot be written: %s", error.strerror)

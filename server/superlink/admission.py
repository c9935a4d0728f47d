"""Who may talk to the SuperLink: sites whose key is known, and a record of everybody else who tried."""

import base64
import binascii
import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

# Touched internals: names of the headers in which Flower's SuperNode proves who it is, how old such a proof may be, and
# the state that knows the keys. Flower checks the same, but only after it has read the whole request into memory.
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from fedmed.errors import KeyFileError
from fedmed.keys import fingerprint
from server.superlink.state import DeploymentLinkState

_KEY = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
_SIGNATURE = FLEET_HTTP_SIGNATURE_HEADER.encode()
_TIME = TIMESTAMP_HEADER.encode()
_OLDEST_S = TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
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
        Why it is refused.
    """

    fingerprint: str
    node_id: int | None = None
    problem: str | None = None

    @property
    def number(self) -> int:
        """Number of a site that was let in."""
        assert self.node_id is not None, "others are refused"
        return self.node_id


def identify(state: DeploymentLinkState, headers: Iterable[tuple[bytes, bytes]]) -> Visitor:
    """Check the three headers with which a site signs each of its requests.

    Parameters
    ----------
    state : DeploymentLinkState
        Knows the keys of the sites.
    headers : iterable of (bytes, bytes)
        Lower-case names and values.
    """
    found = {name: value for name, value in headers if name in {_KEY, _SIGNATURE, _TIME}}
    try:
        public_bytes = base64.b64decode(found[_KEY], validate=True)
        signature = base64.b64decode(found[_SIGNATURE], validate=True)
        timestamp = found[_TIME].decode("ascii")
        key = bytes_to_public_key(public_bytes)
        print_of_key = fingerprint(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii"))
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error, UnsupportedAlgorithm, KeyFileError):
        return Visitor("none", problem="it shows no key")
    node_id = state.get_node_id_by_public_key(public_bytes)
    if node_id is None:
        return Visitor(print_of_key, problem="its key is unknown or revoked")
    try:
        if not verify_signature(key, timestamp.encode("ascii"), signature):
            return Visitor(print_of_key, problem="its signature is wrong")
        age_s = (now() - datetime.fromisoformat(timestamp)).total_seconds()
    except (ValueError, TypeError):
        return Visitor(print_of_key, problem="its signature is wrong")
    if not -SYSTEM_TIME_TOLERANCE < age_s < _OLDEST_S:
        return Visitor(print_of_key, problem=f"its clock differs by {-age_s:+.0f} s")
    return Visitor(print_of_key, node_id)


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

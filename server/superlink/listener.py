"""The public port, before a request is one: how many connections a source may hold, and how long it may talk.

This is here because no proxy is needed in front: uvicorn takes a head of any length and waits for its end for ever, and
its own limit of connections counts all sources as one, so that one stranger could keep every hospital out.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 * 2**10
HEAD_S = 15.0
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_SOURCE = 64
_NETWORK_BITS = 64  # of an IPv6 address; whoever has one address of such a network usually has all
_QUIET_S = 60.0

log = logging.getLogger("fedmed.superlink")


class Guests:
    """Counts connections by where they come from.

    Parameters
    ----------
    most_per_source : int
        Connections that one address may hold; for IPv6, one network of 64 bits. The machine itself may hold any
        number: what connects from there is a proxy of the house, or a trial of many sites on one machine.
    most : int
        Connections in all, so that files can still be opened.
    """

    def __init__(self, most_per_source: int = MAX_CONNECTIONS_PER_SOURCE, most: int = MAX_CONNECTIONS) -> None:
        self._most_per_source, self._most = most_per_source, most
        self._counts: Counter[str] = Counter()
        self._logged_at = float("-inf")

    def admit(self, source: str | None) -> bool:
        """Count a connection that has come; return False, and do not count it, if it is one too many."""
        if source is None:
            return True
        if self._counts[source] < self._most_per_source and self._counts.total() < self._most:
            self._counts[source] += 1
            return True
        if time.monotonic() - self._logged_at > _QUIET_S:
            self._logged_at = time.monotonic()
            log.warning("too many connections, %d of them from %s", self._counts[source], source)
        self._forget_if_gone(source)
        return False

    def leave(self, source: str | None) -> None:
        """Count a connection that has ended."""
        if source is not None:
            self._counts[source] -= 1
            self._forget_if_gone(source)

    def _forget_if_gone(self, source: str) -> None:
        if self._counts[source] <= 0:
            del self._counts[source]


def find_source(address: str) -> str | None:
    """Return what counts as one source, None for this machine itself."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            network = ipaddress.ip_network((found, _NETWORK_BITS), strict=False)
            return None if found.is_loopback else str(network)
        found = found.ipv4_mapped
    return None if found.is_loopback else str(found)


class CountedSocket(socket.socket):
    """A connection that is counted until it is closed."""

    guests: Guests
    source: str | None
    counted = False

    def close(self) -> None:
        """Close the connection."""
        super().close()
        if self.counted:
            self.counted = False
            self.guests.leave(self.source)


class Doorstep(socket.socket):
    """A listening socket that closes at once what is one connection too many, before any encryption is agreed on."""

    guests: Guests

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection.

        Raises
        ------
        ConnectionAbortedError
            If it was one too many; asyncio goes on to the next.
        """
        connection, address = super().accept()
        source = find_source(address[0])
        if not self.guests.admit(source):
            connection.close()
            raise ConnectionAbortedError
        counted = CountedSocket(self.family, self.type, self.proto, connection.detach())
        counted.guests, counted.source, counted.counted = self.guests, source, True
        return counted, address


def open_doors(host: str, port: int, guests: Guests) -> list[socket.socket]:
    """Return listening sockets for all addresses of a host name.

    Raises
    ------
    OSError
        If one cannot be opened.
    """
    doors: list[Doorstep] = []
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            door = Doorstep(family, kind, protocol)
            doors.append(door)
            door.guests = guests
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            door.bind(address)
    except OSError:
        for door in doors:
            door.close()
        raise
    return list(doors)


class HeadTooLong(Exception):  # noqa: N818  (it never leaves the parser)
    """The head of a request is longer than allowed, or requests are sent without waiting for answers."""


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a deadline and a limit for the head of every request."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    _deadline: asyncio.TimerHandle | None = None
    _unfinished_bytes = 0
    _head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what has come; what belongs to no request under way is the head of the next, and is timed."""
        before = self.cycle
        if before is None or before.response_complete:
            self._unfinished_bytes += len(data)
            if self._deadline is None:
                self._start_clock()
        super().data_received(data)
        if self.cycle is not before:
            self._stop_clock()
            self._unfinished_bytes = 0
        elif self._unfinished_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Begin to count; one request may wait for the answer to the one before, a queue may not."""
        if self.pipeline:
            self._give_up()
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or what follows a body in the same form."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            self._give_up()

    def _give_up(self) -> None:
        self.transport.abort()
        raise HeadTooLong  # ends the parsing

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

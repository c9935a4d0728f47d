"""The public port, before a request is one: whose connections are taken, and how long a request may take to begin.

This is here because no proxy is needed in front: uvicorn takes a head of any length and waits for its end for ever, and
its own limit of connections counts all sources as one, so that one stranger could keep every hospital out.
"""

import asyncio
import socket
from contextvars import ContextVar
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.superlink.connections import ConnectionCounter, Peer, find_source, shut
from server.superlink.tls import read_public_key

MAX_HEAD_BYTES = 32 * 2**10
HEAD_S = 15.0
HANDSHAKE_S = 10.0


class CountedSocket(socket.socket):
    """A connection that is counted until it is closed."""

    counter: ConnectionCounter
    peer: Peer | None = None

    def close(self) -> None:
        """Close the connection."""
        super().close()
        if self.peer is not None:
            peer, self.peer = self.peer, None
            self.counter.leave(peer)


CONNECTION: ContextVar[CountedSocket | None] = ContextVar("connection", default=None)
"""The one whose data is handled: what :meth:`LimitedListener.accept` sets goes on with the context of its tasks."""


class LimitedListener(socket.socket):
    """A listening socket that closes at once what is one connection too many, before any encryption is agreed on."""

    counter: ConnectionCounter

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection.

        Raises
        ------
        ConnectionAbortedError
            If it was one too many; asyncio goes on to the next.
        """
        connection, address = super().accept()
        peer: Peer = (str(address[0]), int(address[1]))
        counted = CountedSocket(self.family, self.type, self.proto, connection.detach())
        if not self.counter.admit(peer, find_source(peer[0]), lambda: shut(counted)):
            counted.close()
            raise ConnectionAbortedError
        counted.counter, counted.peer = self.counter, peer
        asyncio.get_running_loop().call_later(HANDSHAKE_S, self.counter.give_up_handshake, peer)
        CONNECTION.set(counted)
        return counted, address


def open_listeners(host: str, port: int, counter: ConnectionCounter) -> list[socket.socket]:
    """Return listening sockets for all addresses of a host name.

    Raises
    ------
    OSError
        If one cannot be opened.
    """
    listeners: list[LimitedListener] = []
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = LimitedListener(family, kind, protocol)
            listeners.append(listener)
            listener.counter = counter
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return list(listeners)


class HeadTooLong(Exception):  # noqa: N818  (it never leaves the parser)
    """The head of a request is longer than allowed, or requests are sent without waiting for answers."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a deadline and a limit for the head of every request."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    _deadline: asyncio.TimerHandle | None = None
    _unfinished_bytes = 0
    _head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock; the handshake of TLS, if there is one, is over."""
        super().connection_made(transport)  # type: ignore[arg-type]
        connection, encrypted = CONNECTION.get(), transport.get_extra_info("ssl_object")
        if connection is not None:
            shown = None if encrypted is None else encrypted.getpeercert(binary_form=True)
            connection.counter.finish_handshake(connection.peer, read_public_key(shown))
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

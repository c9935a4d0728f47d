"""Lines of a given speed between sites and a server, and the same bytes over plain TLS sockets, to compare with.

A line carries what all connections of one site send together, at the same speed in each direction. It has no delay of
its own, and what TCP and IP add to the bytes is not counted.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import ssl
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from fedmed.keys import Authority

Address = tuple[str, int]

HOST = "127.0.0.1"
_BLOCK_BYTES = 32 * 1024
_SOCKET_BYTES = 128 * 1024
_BURST_S = 0.02
_START_S = 60.0
_processes = multiprocessing.get_context("spawn")


class Lane:
    """One direction of a line, as a bucket that fills with tokens at a steady rate.

    Parameters
    ----------
    mbit_s : float
        Speed in 10^6 bits a second.
    """

    def __init__(self, mbit_s: float) -> None:
        self._bytes_s = mbit_s * 1e6 / 8
        self._free_at = 0.0

    async def carry(self, num_bytes: int) -> None:
        """Wait as long as the line needs for some bytes, behind all that were there before."""
        # What a late wake-up has lost may be caught up, up to a short burst.
        self._free_at = max(self._free_at, time.monotonic() - _BURST_S) + num_bytes / self._bytes_s
        await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))


class Line:
    """A proxy in front of a server, for the connections of one site.

    Parameters
    ----------
    target : tuple of str and int
        Host and port of the server.
    mbit_s : float
        Speed in each direction.
    """

    def __init__(self, target: Address, mbit_s: float) -> None:
        self._target = target
        self._up, self._down = Lane(mbit_s), Lane(mbit_s)

    async def open(self) -> int:
        """Listen on a free port of the loopback interface and return it."""
        listener = _make_socket()
        listener.bind((HOST, 0))
        await asyncio.start_server(self._connect, sock=listener)
        return int(listener.getsockname()[1])

    async def _connect(self, site_reads: asyncio.StreamReader, site_writes: asyncio.StreamWriter) -> None:
        with contextlib.closing(site_writes), contextlib.suppress(OSError):
            connection = _make_socket()
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, self._target)
            server_reads, server_writes = await asyncio.open_connection(sock=connection)
            with contextlib.closing(server_writes):
                await asyncio.gather(
                    _pump(site_reads, server_writes, self._up), _pump(server_reads, site_writes, self._down)
                )


class Lines:
    """Lines to a server, one a site, in a process of their own; a context manager.

    Parameters
    ----------
    target : tuple of str and int
        Host and port of the server, which may come later.
    num_sites : int
        How many lines.
    mbit_s : float
        Speed of each in each direction.
    """

    def __init__(self, target: Address, num_sites: int, mbit_s: float) -> None:
        ours, theirs = _processes.Pipe()
        self._pipe = ours
        self._process = _processes.Process(target=_serve_lines, args=(target, num_sites, mbit_s, theirs), daemon=True)
        self.ports: list[int] = []
        """Where each site reaches the server, on the loopback interface."""

    def __enter__(self) -> Self:
        self._process.start()
        if not self._pipe.poll(_START_S):
            raise TimeoutError("the process of the lines does not start")
        self.ports = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def time_raw_tls(num_bytes: int, num_sites: int, num_rounds: int, folder: Path, mbit_s: float | None = None) -> float:
    """Return the median seconds in which some bytes get to every site at once and back again.

    Each site is a process with one socket of Python's ``ssl``, which stays open.

    Parameters
    ----------
    num_bytes : int
        Bytes in each direction for each site.
    num_sites, num_rounds : int
        How many.
    folder : Path
        For a certificate.
    mbit_s : float, optional
        Speed of each site's line; without: as fast as it goes.
    """
    Authority.create(folder).issue_server_certificate(folder, [HOST])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((HOST, 0), backlog=num_sites))
        listener.settimeout(_START_S)
        port = listener.getsockname()[1]
        ports = [port] * num_sites
        if mbit_s is not None:
            ports = stack.enter_context(Lines((HOST, port), num_sites, mbit_s)).ports
        connections = []
        for site_port in ports:
            arguments = (site_port, str(folder / "ca.pem"), num_bytes, num_rounds)
            process = _processes.Process(target=_echo, args=arguments, daemon=True)
            process.start()
            stack.callback(process.join, _START_S)
        for _ in ports:
            connection = context.wrap_socket(listener.accept()[0], server_side=True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.append(stack.enter_context(connection))
        return statistics.median(_time_rounds(connections, num_bytes, num_rounds))


def _time_rounds(connections: Sequence[ssl.SSLSocket], num_bytes: int, num_rounds: int) -> list[float]:
    data, buffers = os.urandom(num_bytes), [bytearray(num_bytes) for _ in connections]

    def exchange(connection: ssl.SSLSocket, buffer: bytearray) -> None:
        connection.sendall(data)
        _fill(connection, buffer)

    seconds = []
    with ThreadPoolExecutor(len(connections)) as pool:
        for _ in range(num_rounds):
            began = time.perf_counter()
            list(pool.map(exchange, connections, buffers))
            seconds.append(time.perf_counter() - began)
    if any(buffer != data for buffer in buffers):
        raise ValueError("the bytes that came back are not those that were sent")
    return seconds


def _echo(port: int, ca_file: str, num_bytes: int, num_rounds: int) -> None:
    """Be a site: receive all bytes of a round, then send them back."""
    context = ssl.create_default_context(cafile=ca_file)
    buffer = bytearray(num_bytes)
    with context.wrap_socket(socket.create_connection((HOST, port)), server_hostname=HOST) as connection:
        for _ in range(num_rounds):
            _fill(connection, buffer)
            connection.sendall(buffer)
        with contextlib.suppress(OSError):
            connection.recv(1)  # until the server is done


def _fill(connection: ssl.SSLSocket, buffer: bytearray) -> None:
    view = memoryview(buffer)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise EOFError("the other end has closed the connection")
        view = view[received:]


def _serve_lines(target: Address, num_sites: int, mbit_s: float, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends this process

    async def serve() -> None:
        pipe.send([await Line(target, mbit_s).open() for _ in range(num_sites)])
        await asyncio.Event().wait()

    asyncio.run(serve())


def _make_socket() -> socket.socket:
    """Return a socket that takes little more from its peer than the line carries."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lane: Lane) -> None:
    while block := await reader.read(_BLOCK_BYTES):
        await lane.carry(len(block))
        writer.write(block)
        await writer.drain()
    writer.write_eof()

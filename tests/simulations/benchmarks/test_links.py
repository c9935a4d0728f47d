import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simulations.benchmarks.links import Lines, time_raw_tls

MBIT_S = 40.0
DATA = random.Random(0).randbytes(1_000_000)
OWN_S = 0.2  # 8 Mbit at 40 Mbit/s
# A busy machine may be late, but nothing can be faster than the line and its burst of 20 ms.
FASTEST, SLOWEST = 0.88, 2.0


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back everything once it has all."""

    def serve(connection: socket.socket) -> None:
        with connection:
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            connection.sendall(b"".join(parts))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def exchange(port: int) -> tuple[bytes, float]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        connection.sendall(DATA)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts), time.perf_counter() - began


def test_bytes_pass_unchanged_at_the_speed_of_the_line(echo_port: int) -> None:
    with Lines(("127.0.0.1", echo_port), 1, MBIT_S) as lines:
        received, seconds = exchange(lines.ports[0])
    assert received == DATA
    assert FASTEST < seconds / (2 * OWN_S) < SLOWEST  # there, and back


def test_connections_of_a_site_share_its_line_and_sites_do_not(echo_port: int) -> None:
    with Lines(("127.0.0.1", echo_port), 2, MBIT_S) as lines, ThreadPoolExecutor(2) as pool:
        began = time.perf_counter()
        shared = list(pool.map(exchange, [lines.ports[0]] * 2))
        shared_s = time.perf_counter() - began
        own = list(pool.map(exchange, lines.ports))
    assert all(received == DATA for received, _ in shared + own)
    assert FASTEST < shared_s / (4 * OWN_S) < SLOWEST
    assert all(FASTEST < seconds / (2 * OWN_S) < SLOWEST for _, seconds in own)


def test_raw_tls_takes_the_time_of_the_line(tmp_path: Path) -> None:
    seconds = time_raw_tls(len(DATA), 2, 1, tmp_path, MBIT_S)
    assert FASTEST < seconds / (2 * OWN_S) < SLOWEST
    assert time_raw_tls(1000, 1, 1, tmp_path / "fast") < OWN_S

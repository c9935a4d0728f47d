"""Strangers that hold connections do not keep sites out."""

import asyncio
import socket
import ssl
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import server.superlink.listener
from fedmed.keys import Authority
from server.superlink.connections import ConnectionCounter, ConnectionLimits
from tests.server.superlink.test_gate import PULL, FakeApp, Gates, Request, sign
from tests.server.superlink.test_listener import REQUEST, read_answer, serving, until

SMALL = ConnectionLimits(most=12, per_source=4, per_stranger=2, handshakes=4, strangers=3, known_s=100.0,
                         addresses_per_site=2)  # fmt: skip


class Strangers:
    """Makes connections to a counter; knows which were ended."""

    def __init__(self, limits: ConnectionLimits = SMALL) -> None:
        self.now = 0.0
        self.counter = ConnectionCounter(limits, lambda: self.now)
        self.ended: list[int] = []
        self._ports = iter(range(1, 100_000))

    def come(self, source: str | None) -> int | None:
        """Return the port of a connection, None if it was refused."""
        port = next(self._ports)
        return port if self.counter.admit((source or "", port), source, lambda: self.ended.append(port)) else None


def test_handshakes_under_way_displace_each_other_the_oldest_of_the_greediest_first() -> None:
    many = Strangers()
    assert [many.come(source) for source in ("a", "b", "b", "c")] == [1, 2, 3, 4]
    assert many.come("d") == 5  # 4 handshakes at most: b holds two, and 2 is the older
    assert many.ended == [2]
    assert many.come("e") == 6  # each holds one: the oldest
    assert many.ended == [2, 1]
    assert len(many.counter) == 4


def test_one_address_displaces_its_own() -> None:
    many = Strangers()
    assert [many.come("a") for _ in range(5)] == [1, 2, 3, 4, 5]
    assert many.ended == [1, 2, 3]


def test_what_has_finished_its_handshake_is_not_displaced_by_what_has_not() -> None:
    many = Strangers()
    for number, source in enumerate(("a", "b", "c"), 1):
        many.come(source)
        many.counter.finish_handshake((source, number))
    for number in range(20):
        assert many.come(f"s{number}")
    assert set(many.ended) == set(range(4, 20))  # the last four handshakes are left
    fourth = many.come("d")
    many.counter.finish_handshake(("d", fourth))
    assert many.ended[-1] == 1  # three finished ones at most


def test_a_sites_connection_is_displaced_by_nobody() -> None:
    many = Strangers()
    port = many.come("site")
    many.counter.note_signed(("site", port), 7)
    for number in range(500):
        many.counter.finish_handshake((f"s{number % 100}", many.come(f"s{number % 100}")))
    assert port not in many.ended
    assert len(many.counter) <= 1 + SMALL.handshakes + SMALL.strangers


def test_a_share_is_kept_for_known_addresses() -> None:
    """12 in all; strangers have 4 + 3, so that 5 are left whatever they do."""
    many = Strangers()
    first = many.come("site")
    many.counter.note_signed(("site", first), 7)
    many.counter.leave(("site", first))
    for number in range(500):
        port = many.come(f"s{number}")
        if number % 2:
            many.counter.finish_handshake((f"s{number}", port))
    ended = len(many.ended)
    assert all(many.come("site") for _ in range(4))
    assert len(many.ended) == ended
    # A known address holds four, and displaces at most its own that have not signed.
    assert many.come("site")
    assert len(many.ended) == ended + 1


def test_an_address_is_forgotten_after_a_while_and_a_site_has_room_for_two() -> None:
    many = Strangers()
    for source in ("x", "y", "z"):
        port = many.come(source)
        many.counter.note_signed((source, port), 7)
        many.counter.leave((source, port))
    assert many.counter._find_known() == {"y", "z"}
    many.now = 101.0
    assert many.counter._find_known() == set()


def test_all_full_of_sites_is_full() -> None:
    many = Strangers()
    for number in range(12):
        port = many.come(f"site{number}")
        many.counter.note_signed((f"site{number}", port), number)
    assert many.come("site0") is None
    assert many.come("stranger") is None
    assert many.come(None)  # the machine itself
    assert many.ended == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["come", "shake", "sign", "leave"]), st.integers(0, 9), st.integers(0, 40))))
def test_whatever_happens_the_bounds_hold_and_signed_ones_stay(steps: list[tuple[str, int, int]]) -> None:
    many, peers, signed = Strangers(), {}, set()
    for action, source, which in steps:
        many.now += 1.0
        if action == "come":
            port = many.come(f"s{source}")
            if port is not None:
                peers[port] = (f"s{source}", port)
        elif peers:
            port = sorted(peers)[which % len(peers)]
            if action == "shake":
                many.counter.finish_handshake(peers[port])
            elif action == "sign":
                many.counter.note_signed(peers[port], source)
                signed |= {port} - set(many.ended)
            else:
                many.counter.leave(peers.pop(port))
                signed.discard(port)
        assert not signed & set(many.ended)
        counter = many.counter
        strange = counter._find_strangers()
        assert len(counter) <= SMALL.most
        assert sum(one.has_shaken_hands for one in strange) <= SMALL.strangers + SMALL.per_source
        held = [one.source for one in counter._open.values()]
        assert all(held.count(one) <= SMALL.per_source for one in held)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address of the loopback network counts as one of the internet."""
    monkeypatch.setattr(server.superlink.listener, "find_source", lambda address: address)


def come_from(address: str, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(address, 0))


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize("is_known", [True, False])
def test_a_site_connects_while_500_strangers_hold_connections(tmp_path: Path, *, is_known: bool) -> None:
    """A real listener with TLS; strangers that say nothing, that stop in the handshake, and that stop after it."""
    Authority.create(tmp_path).issue_server_certificate(tmp_path, ["127.0.0.1"])
    tls = {"ssl_certfile": str(tmp_path / "server.pem"), "ssl_keyfile": str(tmp_path / "server.key")}
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    limits = ConnectionLimits(most=60, per_source=8, per_stranger=2, handshakes=20, strangers=20)
    counter = ConnectionCounter(limits)

    def hold(stack: ExitStack, port: int) -> None:
        for number in range(500):
            connection = stack.enter_context(come_from(f"127.0.{1 + number % 2}.{1 + number % 100}", port))
            with suppress(OSError):
                if number % 3 == 1:
                    connection.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
                elif number % 20 == 2:
                    stack.enter_context(context.wrap_socket(connection, server_hostname="127.0.0.1"))

    async def ask(port: int) -> None:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="127.0.0.1", local_addr=("127.0.3.1", 0)
            ),
            5,
        )
        writer.write(REQUEST)
        assert await read_answer(reader) == b"HTTP/1.1 200 OK"
        counter.note_signed(writer.get_extra_info("sockname")[:2], 7)
        for _ in range(3):
            writer.write(REQUEST)
            assert await read_answer(reader) == b"HTTP/1.1 200 OK"
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()

    async def act() -> None:
        async with serving(counter, **tls) as port:
            with ExitStack() as stack:
                if is_known:
                    await ask(port)
                await asyncio.to_thread(hold, stack, port)
                assert 20 <= len(counter) <= 41
                await ask(port)
                assert len(counter) <= 42

    asyncio.run(act())


@pytest.mark.usefixtures("sources")
def test_a_handshake_that_is_not_finished_in_time_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.superlink.listener, "HANDSHAKE_S", 0.2)
    Authority.create(tmp_path).issue_server_certificate(tmp_path, ["127.0.0.1"])
    tls: dict[str, Any] = {"ssl_certfile": str(tmp_path / "server.pem"), "ssl_keyfile": str(tmp_path / "server.key")}
    counter = ConnectionCounter()

    async def act() -> None:
        async with serving(counter, **tls) as port:
            for begin in (b"", b"\x16\x03\x01\x02\x00\x01"):
                with come_from("127.0.4.1", port) as slow:
                    slow.sendall(begin)
                    slow.settimeout(5)
                    with suppress(ConnectionResetError):
                        assert await asyncio.to_thread(slow.recv, 1) == b""
            await until(lambda: len(counter) == 0)
            # One that has finished is left alone.
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            await asyncio.sleep(0.4)
            writer.write(REQUEST)
            assert await read_answer(reader) == b"HTTP/1.1 200 OK"
            writer.transport.abort()

    asyncio.run(act())


def test_a_signed_request_makes_a_connection_a_sites_and_another_does_not(tmp_path: Path) -> None:
    counter = ConnectionCounter()
    counter.admit(("10.0.0.7", 1234), "10.0.0.7", lambda: None)
    gates = Gates(tmp_path, FakeApp(b"x"), counter=counter)
    for headers in ([], sign(age_s=400), sign(path="/other")):
        asyncio.run(Request(PULL, headers=headers).run(gates.public))
        assert counter._find_known() == set()
    asyncio.run(Request(PULL).run(gates.public))
    assert counter._find_known() == {"10.0.0.7"}

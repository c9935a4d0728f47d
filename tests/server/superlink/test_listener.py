"""What strangers can do to the public port before a request of theirs is complete."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import server.superlink.listener
from fedmed.keys import Authority
from fedmed.processes import find_free_port
from server.superlink.connections import ConnectionCounter, ConnectionLimits, find_source
from server.superlink.listener import LimitedProtocol, open_listeners
from server.superlink.process import Server

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer_hi(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@asynccontextmanager
async def serving(counter: ConnectionCounter | None = None, **settings: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(
        answer_hi,
        http=LimitedProtocol,
        lifespan="off",
        log_config=None,
        ws="none",
        timeout_graceful_shutdown=1,
        **settings,
    )
    port = find_free_port()
    process = Server(config)
    task = asyncio.create_task(
        process.serve(open_listeners("127.0.0.1", port, ConnectionCounter() if counter is None else counter))
    )
    while not process.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        process.should_exit = True
        await task


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2) == b"hi"
    return head.split(b"\r\n")[0]


async def seconds_until_closed(reader: asyncio.StreamReader) -> float:
    begin = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        with suppress(ConnectionResetError):
            await reader.read()
    return asyncio.get_running_loop().time() - begin


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n", b"\r\n"])
def test_a_head_that_is_not_complete_in_time_ends_the_connection(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr(server.superlink.listener, "HEAD_S", 0.2)

    async def act() -> None:
        async with serving() as port, connected(port) as (reader, writer):
            writer.write(begin)
            assert 0.15 < await seconds_until_closed(reader) < 2
        async with serving() as port, connected(port) as (reader, writer):
            # The same for a later request; until its first byte comes, the connection may rest.
            for pause in (0.0, 0.3):
                await asyncio.sleep(pause)
                writer.write(REQUEST)
                assert await read_answer(reader) == b"HTTP/1.1 200 OK"
            if begin:
                await asyncio.sleep(0.3)
                writer.write(begin)
                assert 0.15 < await seconds_until_closed(reader) < 2

    asyncio.run(act())


def test_trickling_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.superlink.listener, "HEAD_S", 0.4)

    async def act() -> None:
        async with serving() as port, connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n")
            closing = asyncio.create_task(seconds_until_closed(reader))
            while not closing.done():
                writer.write(b"a: b\r\n")
                await asyncio.sleep(0.05)
            assert 0.3 < closing.result() < 2

    asyncio.run(act())


def test_a_request_under_way_has_all_the_time_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.superlink.listener, "HEAD_S", 0.3)

    async def act() -> None:
        async with serving() as port, connected(port) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n")
            for _ in range(3):  # 0.6 s, the body has a deadline of its own
                await asyncio.sleep(0.2)
                writer.write(b"x")
            assert await read_answer(reader) == b"HTTP/1.1 200 OK"
            writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await read_answer(reader) == b"HTTP/1.1 200 OK"

    asyncio.run(act())


@pytest.mark.parametrize("kept_alive", [False, True])
@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 40_000,  # one endless header
        b"GET / HTTP/1.1\r\n" + b"a: bcd\r\n" * 5_000,  # many
        b"GET /" + b"x" * 40_000,
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\r\n" * 20_000,
    ],
    ids=["one", "many", "address", "complete", "empty lines"],
)
def test_a_head_that_is_too_long_ends_the_connection(*, kept_alive: bool, head: bytes) -> None:
    async def act() -> None:
        async with serving() as port, connected(port) as (reader, writer):
            if kept_alive:
                writer.write(REQUEST)
                await read_answer(reader)
            writer.write(head)
            assert await seconds_until_closed(reader) < 2

    asyncio.run(act())


def test_a_head_of_a_usual_length_gets_through_in_pieces() -> None:
    async def act() -> None:
        async with serving() as port, connected(port) as (reader, writer):
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\na: ")
                for _ in range(4):
                    writer.write(b"x" * 5_000)
                    await asyncio.sleep(0.01)
                writer.write(b"\r\n\r\n")
                assert await read_answer(reader) == b"HTTP/1.1 200 OK"

    asyncio.run(act())


def test_requests_do_not_queue_up() -> None:
    async def act() -> None:
        async with serving() as port:
            async with connected(port) as (reader, writer):
                writer.write(REQUEST * 2)
                for _ in range(2):
                    assert await read_answer(reader) == b"HTTP/1.1 200 OK"
            async with connected(port) as (reader, writer):
                writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + REQUEST * 100)
                assert await seconds_until_closed(reader) < 0.5

    asyncio.run(act())


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_source_holds_so_many_connections_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, encrypted: bool
) -> None:
    monkeypatch.setattr(server.superlink.listener, "find_source", lambda address: address)
    tls: dict[str, str] = {}
    if encrypted:
        Authority.create(tmp_path).issue_server_certificate(tmp_path, ["127.0.0.1"])
        tls = {"ssl_certfile": str(tmp_path / "server.pem"), "ssl_keyfile": str(tmp_path / "server.key")}
    limits = ConnectionLimits(per_source=3)
    counter = ConnectionCounter(limits)

    async def open_one(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem")) if encrypted else None
        return await asyncio.open_connection("127.0.0.1", port, ssl=context)

    async def act() -> None:
        async with serving(counter, **tls) as port:
            # One of them says nothing at all, so that there is no encryption yet and no request.
            silent = socket.create_connection(("127.0.0.1", port))
            held = [await open_one(port) for _ in range(2)]
            await until(lambda: len(counter) == 3)
            for number, (_, writer) in enumerate(held):
                counter.note_signed(writer.get_extra_info("sockname"), number)
            silent.close()  # only what is a site's may not be displaced
            await until(lambda: len(counter) == 2)
            third = await open_one(port)
            await until(lambda: len(counter) == 3)
            counter.note_signed(third[1].get_extra_info("sockname"), 3)
            with socket.create_connection(("127.0.0.1", port)) as refused:
                refused.settimeout(5)
                assert await asyncio.to_thread(refused.recv, 1) == b""  # closed, and nothing was said
            for reader, writer in held:
                writer.write(REQUEST)
                assert await read_answer(reader) == b"HTTP/1.1 200 OK"
            third[1].transport.abort()
            await until(lambda: len(counter) == 2)
            reader, writer = await open_one(port)
            writer.write(REQUEST)
            assert await read_answer(reader) == b"HTTP/1.1 200 OK"
            for _, one in [*held, (reader, writer)]:
                one.transport.abort()
                with suppress(OSError):
                    await one.wait_closed()
            await until(lambda: len(counter) == 0)

    asyncio.run(act())


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("127.5.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
    ],
)
def test_a_source_is_an_address_or_a_network(address: str, source: str | None) -> None:
    assert find_source(address) == source


def test_a_port_that_is_taken_is_an_error() -> None:
    port = find_free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="in use"):
        open_listeners("127.0.0.1", port, ConnectionCounter())

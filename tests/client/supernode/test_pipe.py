"""Frames between the SuperNode and its worker."""

import resource
import socket
import threading
import time

import pytest

from client.supernode import pipe as pipe_module
from client.supernode.pipe import Pipe


@pytest.fixture
def ends():
    first, second = (Pipe(end, stall_s=0.3) for end in socket.socketpair())
    yield first, second
    first.close()
    second.close()


def send_in_thread(pipe, header, blobs):
    thread = threading.Thread(target=pipe.send, args=(header, blobs))
    thread.start()
    return thread


def test_a_frame_arrives_as_it_was_sent(ends):
    first, second = ends
    large = bytes(range(256)) * 80_000  # 20 MB: larger than any buffer on the way
    blobs = {
        "empty": b"",
        "large": large,
        "view": memoryview(large)[3:10],
        "array": bytearray(b"xyz"),
        "several": (b"a", b"bc"),
    }
    thread = send_in_thread(first, {"kind": "task", "number": 2**63, "text": "ä"}, blobs)
    header, received = second.receive()
    thread.join()
    assert header == {"kind": "task", "number": 2**63, "text": "ä"}
    assert received == {
        "empty": b"",
        "large": large,
        "view": bytes([3, 4, 5, 6, 7, 8, 9]),
        "array": b"xyz",
        "several": b"abc",
    }
    assert list(received) == list(blobs)
    assert all(type(blob) is bytes for blob in received.values())


def test_frames_keep_their_order_in_both_directions(ends):
    first, second = ends
    for number in range(3):
        first.send({"number": number}, {"a": bytes([number])})
        second.send({"back": number})
    assert [second.receive() for _ in range(3)] == [({"number": n}, {"a": bytes([n])}) for n in range(3)]
    assert [first.receive() for _ in range(3)] == [({"back": n}, {}) for n in range(3)]


def test_byte_strings_beyond_what_one_system_call_reads(monkeypatch):
    monkeypatch.setattr(pipe_module, "_BUFFER_BYTES", 1000)
    first, second = (Pipe(end, stall_s=5) for end in socket.socketpair())
    data = bytes(i % 251 for i in range(123_456))
    thread = send_in_thread(first, {}, {"data": data})
    assert second.receive() == ({}, {"data": data})
    thread.join()
    first.close()
    second.close()


def test_a_frame_may_come_in_two():
    raw, other = socket.socketpair()
    pipe = Pipe(other, stall_s=5)
    frame = b'\0\0\0\x0e[{"a": 1}, []]'
    threading.Timer(0.05, raw.sendall, (frame[9:],)).start()
    raw.sendall(frame[:9])
    assert pipe.receive() == ({"a": 1}, {})
    raw.close()
    pipe.close()


def test_waiting_ends_with_a_frame_the_end_or_the_time(ends):
    first, second = ends
    begin = time.monotonic()
    assert not second.wait(0.05)
    assert 0.04 < time.monotonic() - begin < 2
    first.send({})
    assert second.wait(5)
    second.receive()
    assert not second.wait(0)
    first.close()
    assert second.wait(5)


def test_the_end_is_noticed(ends):
    first, second = ends
    first.close()
    with pytest.raises(EOFError):
        second.receive()
    with pytest.raises(EOFError):
        second.send({}, {"data": bytes(10_000_000)})


def test_the_end_within_a_frame_is_noticed():
    raw, other = socket.socketpair()
    pipe = Pipe(other)
    raw.sendall(b"\0\0\0\x20[{}, ")
    raw.close()
    with pytest.raises(EOFError):
        pipe.receive()
    pipe.close()


def test_a_peer_that_stalls_within_a_frame_counts_as_gone():
    raw, other = socket.socketpair()
    pipe = Pipe(other, stall_s=0.1)
    raw.sendall(b"\0\0\0\x20[{}, ")
    begin = time.monotonic()
    with pytest.raises(EOFError):
        pipe.receive()
    with pytest.raises(EOFError):
        pipe.send({}, {"data": bytes(50_000_000)})  # nobody reads
    assert time.monotonic() - begin < 5
    raw.close()
    pipe.close()


def test_what_is_no_frame_is_refused_before_memory_is_taken():
    raw, other = socket.socketpair()
    pipe = Pipe(other)
    raw.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(EOFError, match="frames"):
        pipe.receive()
    raw.close()
    pipe.close()


@pytest.mark.parametrize("length", [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff" + b"\x10" + bytes(7)])
@pytest.mark.parametrize("before", [b"", b'\0\0\0\x0b[{}, ["a"]]'], ids=["header", "byte string"])
def test_a_length_that_is_a_lie_takes_no_memory(length, before):
    raw, other = socket.socketpair()
    pipe = Pipe(other, stall_s=0.1)
    raw.sendall(before + length + b"x")
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EOFError, match="frames"):
        pipe.receive()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 100_000
    raw.close()
    pipe.close()


def test_headers_are_plain_json(ends):
    first, _ = ends
    with pytest.raises(TypeError):
        first.send({"object": object()})
    with pytest.raises(ValueError, match="JSON"):
        first.send({"number": float("nan")})

"""Frames between the SuperNode and its worker over a pair of sockets.

A frame is a small JSON object and any number of named byte strings. Nothing is pickled, so that neither end can make
the other run anything.
"""

import itertools
import json
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

Blob = bytes | bytearray | memoryview

_LENGTH = struct.Struct("!I")
_MAX_HEAD_BYTES = 64 * 2**20
_MAX_READ_BYTES = 2**30  # one call of the system reads at most 2 GiB
_BUFFER_BYTES = 4 * 2**20


class Pipe:
    """One end of the connection.

    Parameters
    ----------
    connection : socket.socket
        Stream socket; belongs to the pipe from now on.
    stall_s : float, optional
        Seconds without progress within a frame after which the other end counts as gone; None: for ever.
    """

    def __init__(self, connection: socket.socket, stall_s: float | None = None) -> None:
        self._socket = connection
        self._socket.setblocking(True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        if stall_s is not None:
            limit = struct.pack("ll", int(stall_s), int(stall_s % 1 * 1e6))
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, limit)

    def send(self, header: Mapping[str, Any], blobs: Mapping[str, Blob | Sequence[Blob]] | None = None) -> None:
        """Send one frame.

        Parameters
        ----------
        header : mapping
            JSON values.
        blobs : mapping of str to bytes, bytearray, memoryview of bytes, or several of them
            Sent as they are, without a copy; several arrive as one.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        pieces = {name: _to_pieces(blob) for name, blob in (blobs or {}).items()}
        sizes = [[name, sum(map(len, parts))] for name, parts in pieces.items()]
        head = json.dumps([header, sizes], allow_nan=False).encode()
        try:
            self._socket.sendall(_LENGTH.pack(len(head)) + head)
            for piece in itertools.chain.from_iterable(pieces.values()):
                self._socket.sendall(piece)
        except OSError as error:  # BlockingIOError: it stalled
            raise EOFError("The other end of the pipe is gone.") from error

    def receive(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Wait for one frame and return its header and its byte strings.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > _MAX_HEAD_BYTES:
            raise EOFError("The other end of the pipe does not send frames.")
        header, sizes = json.loads(self._read(length))
        return header, {name: self._read(size) for name, size in sizes}

    def wait(self, timeout_s: float) -> bool:
        """Return whether a frame, or the end, comes within some seconds."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        """Close this end; the other end sees the end."""
        self._socket.close()

    def _read(self, size: int) -> bytes:
        # One allocation, which the system fills: large byte strings are not copied again.
        data = self._receive(size)
        if len(data) == size:
            return data
        parts = bytearray(data)
        while len(parts) < size:
            parts += self._receive(size - len(parts))
        return bytes(parts)

    def _receive(self, size: int) -> bytes:
        if not size:
            return b""
        try:
            data = self._socket.recv(min(size, _MAX_READ_BYTES), socket.MSG_WAITALL)
        except OSError as error:
            raise EOFError("The other end of the pipe is gone.") from error
        if not data:
            raise EOFError("The other end of the pipe is gone.")
        return data


def _to_pieces(blob: Blob | Sequence[Blob]) -> Sequence[Blob]:
    return (blob,) if isinstance(blob, bytes | bytearray | memoryview) else blob

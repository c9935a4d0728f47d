"""Frames between the SuperNode and its worker over a pair of sockets.

A frame is a small JSON object and any number of named byte strings, each one message of the standard library's
connections. Nothing is pickled, so that neither end can make the other run anything.
"""

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Generic, NotRequired, TypedDict, TypeVar

Blob = bytes | bytearray | memoryview


class Task(TypedDict):
    """What the SuperNode says of a message, beside its objects."""

    kind: NotRequired[str]
    """``task``, in a frame."""
    root: str
    """Id of the message."""
    message_type: str
    run_id: int
    node_id: int
    node_config: dict[str, str]
    max_bytes: NotRequired[int]
    """Most bytes of all arrays together, if this site allows another size than 2 GiB."""


class WorkerTold(TypedDict, total=False):
    """What the worker says, beside the objects of a reply."""

    kind: str
    """``ready``, ``failed``, ``reply``, ``no memory`` or ``unreadable``."""
    text: str
    """Why it has failed."""
    failure: str | None
    """Why the reply is an error, for the people at the site."""
    said: list[str]
    """Lines for the console."""


_Sent = TypeVar("_Sent", bound=Mapping[str, object])
_Received = TypeVar("_Received", bound=Mapping[str, object])

_MAX_HEAD_BYTES = 64 * 2**20
_MAX_BLOB_BYTES = 2**31 - 1  # Flower's parts have 8 MiB at most
_BUFFER_BYTES = 4 * 2**20


class Pipe(Generic[_Sent, _Received]):
    """One end of the connection; its types are those of the headers that it sends and receives.

    Parameters
    ----------
    connection : socket.socket
        Stream socket; belongs to the pipe from now on.
    stall_s : float, optional
        Seconds without progress within a frame after which the other end counts as gone; None: for ever.
    """

    def __init__(self, connection: socket.socket, stall_s: float | None = None) -> None:
        connection.setblocking(True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        if stall_s is not None:
            limit = struct.pack("ll", int(stall_s), int(stall_s % 1 * 1e6))
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, option, limit)
        self._connection: Connection = Connection(connection.detach())

    def send(self, header: _Sent, blobs: Mapping[str, Blob | Sequence[Blob]] | None = None) -> None:
        """Send one frame.

        Parameters
        ----------
        header : mapping
            JSON values.
        blobs : mapping of str to bytes, bytearray, memoryview of bytes, or several of them
            Sent as they are; several are joined one after the other and arrive as one.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        blobs = blobs or {}
        head = json.dumps([header, list(blobs)], allow_nan=False).encode()
        try:
            self._connection.send_bytes(head)
            for blob in blobs.values():
                self._connection.send_bytes(blob if isinstance(blob, Blob) else b"".join(blob))
        except OSError as error:  # BlockingIOError: it stalled
            raise EOFError("The other end of the pipe is gone.") from error

    def receive(self) -> tuple[_Received, dict[str, bytes]]:
        """Wait for one frame and return its header and its byte strings.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        try:
            header, names = json.loads(self._connection.recv_bytes(_MAX_HEAD_BYTES))
            return header, {name: self._connection.recv_bytes(_MAX_BLOB_BYTES) for name in names}
        except OSError as error:  # also of a length that is none
            raise EOFError("The other end of the pipe is gone, or does not send frames.") from error

    def wait(self, timeout_s: float) -> bool:
        """Return whether a frame, or the end, comes within some seconds."""
        return self._connection.poll(max(0.0, timeout_s))

    def close(self) -> None:
        """Close this end; the other end sees the end."""
        self._connection.close()

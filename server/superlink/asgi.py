"""What Starlette lacks for a gate: bodies with a limit of bytes and time, and a bell for those who wait."""

import asyncio
import contextlib

from starlette.responses import Response
from starlette.types import Message, Receive

STALL_S = 120.0
"""For how long a body may make no progress, in either direction."""


class Bell:
    """Wakes everybody who waits for something to happen; belongs to one event loop."""

    def __init__(self) -> None:
        self.count = 0
        """How often it has rung."""
        self.closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everybody."""
        self.count += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Wake everybody for good: the process ends."""
        self.closed = True
        self.ring()

    async def wait(self, seen: int, timeout_s: float, unless: asyncio.Future[None]) -> bool:
        """Wait until the bell has rung more than ``seen`` times; return whether it has.

        Parameters
        ----------
        seen : int
            Value of ``count`` before the look that found nothing, so that no ringing is missed.
        timeout_s : float
            Longest time to wait.
        unless : asyncio.Future
            Ends the waiting as well.
        """
        if self.count > seen or self.closed:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait({future, unless}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting.discard(future)
            future.cancel()
        return self.count > seen

    @property
    def num_waiting(self) -> int:
        """How many wait at the moment."""
        return len(self._waiting)


class TooSlow(Exception):  # noqa: N818  (whoever reads the request answers it)
    """A body has made no progress."""


def refuse(status: int, content: bytes | None = None, *, retry_after_s: int | None = None) -> Response:
    """Return an answer after which the connection ends, because the body of the request was not read."""
    again = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Response(content, status, {"connection": "close"} | again, None if content is None else "application/json")


async def read_body(receive: Receive, most_bytes: int) -> bytes | None:
    """Return the body of a request, or None if it is larger than allowed or the other side has gone.

    Raises
    ------
    TooSlow
        If nothing comes for a while.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                event = await receive()
        except TimeoutError:
            raise TooSlow from None
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if event["type"] == "http.disconnect" or size > most_bytes:
            return None
        if not event.get("more_body"):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read already, and then what comes after it."""
    request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return request.pop() if request else await receive()

    return again


async def wait_for_end(receive: Receive) -> None:
    """Return when the site has closed its connection."""
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass

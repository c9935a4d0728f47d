"""What Starlette lacks for a gate: bodies with a limit of bytes and time, and news for those who wait."""

import asyncio
import contextlib
import hashlib

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive

from fedmed.protocol.signing import PROBLEM_HEADER, REFUSALS, Problem

STALL_S = 120.0
"""For how long a body may make no progress, in either direction."""


class Notifier:
    """Wakes everybody who waits for something to happen; belongs to one event loop."""

    def __init__(self) -> None:
        self.count = 0
        """How often there was news."""
        self.closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake everybody."""
        self.count += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Wake everybody for good: the process ends."""
        self.closed = True
        self.notify()

    async def wait(self, seen: int, timeout_s: float, unless: asyncio.Future[None]) -> bool:
        """Wait until there was news more than ``seen`` times; return whether there was.

        Parameters
        ----------
        seen : int
            Value of ``count`` before the look that found nothing, so that no news is missed.
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


class BodyDiffers(Exception):  # noqa: N818  (whoever reads the request answers it)
    """A body is another than the one that was signed."""


def refuse(status: int, *, retry_after_s: int | None = None) -> Response:
    """Return an answer after which the connection ends, because the body of the request was not read."""
    again = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Response(None, status, {"connection": "close"} | again)


def refuse_signed(problem: Problem) -> Response:
    """Return the answer to a request that cannot prove whose it is; the connection ends."""
    refusal = REFUSALS[problem]
    headers = {"connection": "close", PROBLEM_HEADER: problem}
    if refusal.status == 503:
        headers["retry-after"] = "1"
    return JSONResponse({"detail": refusal.detail}, refusal.status, headers)


def check_body(receive: Receive, sha256: str) -> Receive:
    """Return a ``receive`` that compares the body with what was signed while it comes; the last part comes checked.

    Parameters
    ----------
    receive : Receive
        Of ASGI.
    sha256 : str
        Of the body, hexadecimal.
    """
    digest, is_done = hashlib.sha256(), False

    async def checked() -> Message:
        nonlocal is_done
        event = await receive()
        if is_done or event["type"] != "http.request":
            return event
        digest.update(event.get("body", b""))
        is_done = not event.get("more_body")
        if is_done and digest.hexdigest() != sha256:
            raise BodyDiffers
        return event

    return checked


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

"""The parts of messages, 5 MiB each, on their way in and out: a short cut past most of Flower's web application.

Nearly all bytes of a federation pass here. Flower's own way for them leads through ten layers of middleware, checks who
is asking a second time and copies a part several times. Requests, answers and what is done with them are the same;
whatever is out of the ordinary is left to Flower's own way. It pays: 10 MB, 2 sites, the server needs 1.9 s of CPU a
round with it and 3.1 s without.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

# Touched internals: the messages of Flower's APIs for parts, and the number under which the ServerApp sends.
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.supercore.error import FlowerError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.superlink.asgi import Bell, read_body, replay, wait_for_end
from server.superlink.limits import ReplyTooLarge
from server.superlink.state import DeploymentLinkState

MAX_PART_BYTES = 8 * 2**20  # Flower cuts arrays into pieces of 5 MiB
MAX_REPLY_BYTES = 2 * 2**30
HOLD_S = 5.0
_HEADERS = [(b"content-type", PROTOBUF_MEDIA_TYPE.encode())]
_CONTENT_TAG = bytes([PullObjectResponse.DESCRIPTOR.fields_by_name["object_content"].number << 3 | 2])
_FOUND = PullObjectResponse(object_found=True, object_available=True).SerializeToString()

log = logging.getLogger("fedmed.superlink")


class Unusual(Exception):  # noqa: N818  (it is no error here)
    """A request that Flower's own way shall answer."""


class PartsDesk:
    """Takes and gives parts of messages.

    Parameters
    ----------
    app : ASGIApp
        Flower's SuperLink, for whatever is unusual.
    state : DeploymentLinkState
        Keeps the parts.
    arrived : Bell
        Is rung for every part that has come in; who asks for one before is answered then.
    max_reply_bytes : int
        Most bytes of one reply of a site.
    """

    def __init__(
        self, app: ASGIApp, state: DeploymentLinkState, arrived: Bell, max_reply_bytes: int = MAX_REPLY_BYTES
    ) -> None:
        self._app, self._state, self._arrived = app, state, arrived
        self._max_reply_bytes = max_reply_bytes

    async def take(self, scope: Scope, receive: Receive, send: Send, node_id: int, run_id: int | None) -> None:
        """Handle ``push-object``.

        Parameters
        ----------
        scope, receive, send
            ASGI's.
        node_id : int
            Who is asking.
        run_id : int, optional
            The only run that it may send for; None: any that goes on.
        """
        body = await read_body(receive, MAX_PART_BYTES)
        if body is None:
            return
        try:
            stored = await asyncio.to_thread(self._store, body, node_id, run_id)
        except (Unusual, DecodeError, FlowerError):
            await self._app(scope, replay(body, receive), send)
            return
        except ReplyTooLarge:
            log.warning("refused a reply of more than %d bytes from the node %d", self._max_reply_bytes, node_id)
            await Response(status_code=413)(scope, receive, send)
            return
        self._arrived.ring()
        await _send(send, PushObjectResponse(stored=stored).SerializeToString())

    async def give(self, scope: Scope, receive: Receive, send: Send, node_id: int, run_id: int | None) -> None:
        """Handle ``pull-object``; a part that is announced but not here yet is waited for, for a short while.

        Parameters
        ----------
        scope, receive, send
            ASGI's.
        node_id : int
            Who is asking.
        run_id : int, optional
            The only run that it may ask for; None: any that goes on.
        """
        body = await read_body(receive, MAX_PART_BYTES)
        if body is None:
            return
        seen = self._arrived.count
        try:
            content = await asyncio.to_thread(self._load, body, node_id, run_id)
            if content == b"":
                content = await self._wait_for(lambda: self._load(body, node_id, run_id), seen, receive)
        except (Unusual, DecodeError, FlowerError):
            await self._app(scope, replay(body, receive), send)
            return
        if content is None:
            await _send(send, PullObjectResponse(object_found=False, object_available=False).SerializeToString())
        elif content == b"":
            await _send(send, PullObjectResponse(object_found=True, object_available=False).SerializeToString())
        else:
            # Written by hand, as the library would copy the content twice.
            await _send(send, _FOUND + _CONTENT_TAG + _to_varint(len(content)), content)

    async def _wait_for(self, load: Callable[[], bytes | None], seen: int, receive: Receive) -> bytes | None:
        end = asyncio.get_running_loop().time() + HOLD_S
        gone = asyncio.ensure_future(wait_for_end(receive))
        content: bytes | None = b""
        try:
            while content == b"" and (left_s := end - asyncio.get_running_loop().time()) > 0 and not gone.done():
                await self._arrived.wait(seen, left_s, unless=gone)
                seen = self._arrived.count
                content = await asyncio.to_thread(load)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        return content

    def _store(self, body: bytes, node_id: int, run_id: int | None) -> bool:
        request = PushObjectRequest.FromString(body)
        self._check(request, node_id, run_id)
        most = None if node_id == SUPERLINK_NODE_ID else self._max_reply_bytes
        return self._state.store_object(
            request.run_id, request.session_id, request.object_id, request.object_content, most
        )

    def _load(self, body: bytes, node_id: int, run_id: int | None) -> bytes | None:
        request = PullObjectRequest.FromString(body)
        self._check(request, node_id, run_id)
        return self._state.object_store.get(request.object_id)

    def _check(self, request: Any, node_id: int, run_id: int | None) -> None:
        if request.node.node_id != node_id or run_id not in {None, request.run_id}:
            raise Unusual
        if not self._state.is_running(request.run_id):
            raise Unusual


async def _send(send: Send, *parts: bytes) -> None:
    length = str(sum(map(len, parts))).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, (b"content-length", length)]})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _to_varint(number: int) -> bytes:
    """Return a number as Protocol Buffers write it: 7 bits a byte, the lowest first."""
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    data.append(number)
    return bytes(data)

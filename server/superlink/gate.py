"""What stands between the network and Flower's SuperLink, as ASGI.

The public side lets through Flower's Fleet API and a few questions of our own, from known sites only, and says no
before it has read anything of a request but its head. A site that asks for a message and gets none is answered as soon
as there may be one, so that it need not ask again and again. The private side notices when the ServerApp has sent
something.
"""

import asyncio
import hmac
import json
import logging
import time

# Touched internals: the number under which the ServerApp sends, the header in which it proves that it may, and the
# message with which a site announces a reply.
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.constant import TASK_TOKEN_HEADER
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedmed.protocol.http import DROP_PATH, HOLD_S, OPEN_PATH, OWN_PATHS, RELEASE_HEADER, RELEASED_HOLD_S
from fedmed.protocol.signing import REFUSALS
from server.superlink.admission import RefusalLog, UsedNonces, Visitor, identify, refuse_visitor
from server.superlink.asgi import (
    BodyDiffers,
    Notifier,
    TooSlow,
    check_body,
    read_body,
    refuse,
    refuse_signed,
    replay,
    wait_for_end,
)
from server.superlink.connections import ConnectionCounter, Peer
from server.superlink.limits import ConcurrencyLimiter, TooManyRequests
from server.superlink.object_transfer import MAX_PART_BYTES, ObjectTransfer
from server.superlink.routes import Routes
from server.superlink.state import DeploymentLinkState

MAX_BODY_BYTES = 2**20
_MAX_OWN_BODY_BYTES = 64 * 2**20  # from our own processes
_FLEET = "/v1/fleet/"
_PULL, _PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
_ACTIVATE = "/v1/fleet/activate-node"
_PUSH_PART, _PULL_PART = "/v1/fleet/push-object", "/v1/fleet/pull-object"
_PUSH_OWN_PART, _PULL_OWN_PART = "/v1/runtime/push-object", "/v1/runtime/pull-object"
_SEND = "/v1/runtime/push-messages"
_REVOKE = "/v1/control/unregister-node"

log = logging.getLogger("fedmed.superlink")


class PrivateGate:
    """The listener for our own processes: notices when the ServerApp has sent something.

    Parameters
    ----------
    app : ASGIApp
        Flower's SuperLink.
    state : DeploymentLinkState
        Knows the ServerApp's token and the messages.
    notifier : Notifier
        Is told of it.
    parts : ObjectTransfer
        Takes and gives parts of messages.
    opened : asyncio.Event
        Is set when the supervisor says so.
    control_token : str
        What the supervisor shows.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: DeploymentLinkState,
        notifier: Notifier,
        parts: ObjectTransfer,
        *,
        opened: asyncio.Event,
        control_token: str,
    ) -> None:
        self._app, self._state, self._notifier, self._parts = app, state, notifier, parts
        self._opened, self._authorization = opened, f"Bearer {control_token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        path = scope.get("path")
        if path == OPEN_PATH:
            await self._open(scope)(scope, receive, send)
            return
        if path in {DROP_PATH, _PUSH_OWN_PART, _PULL_OWN_PART}:
            run_id = await asyncio.to_thread(self._state.find_run, _read_token(scope))
            if run_id is None:
                await refuse(401)(scope, receive, send)
            elif path == DROP_PATH:
                await (await self._drop(receive))(scope, receive, send)
            elif path == _PUSH_OWN_PART:
                await self._parts.take(scope, receive, send, SUPERLINK_NODE_ID, run_id)
            else:
                await self._parts.give(scope, receive, send, SUPERLINK_NODE_ID, run_id)
            return
        await self._app(scope, receive, send)
        if path in {_SEND, _REVOKE}:  # a revoked site shall hear of it, and not when its question was held for long
            self._notifier.notify()

    def _open(self, scope: Scope) -> Response:
        """Let the sites in from now on."""
        shown: bytes = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(shown, self._authorization):
            return refuse(401)
        if scope["method"] != "POST":
            return refuse(405)
        if not self._opened.is_set():
            log.info("sites may come in")
        self._opened.set()
        return Response(status_code=204)

    async def _drop(self, receive: Receive) -> Response:
        """Remove messages whose answers the ServerApp does not want any more."""
        body = await read_body(receive, _MAX_OWN_BODY_BYTES)
        if body is None:
            return refuse(413)
        await asyncio.to_thread(self._state.drop_messages, json.loads(body)["message_ids"])
        return Response(status_code=204)


class PublicGate:
    """The listener for sites.

    Parameters
    ----------
    app : ASGIApp
        Flower's SuperLink.
    state : DeploymentLinkState
        Knows the sites' keys.
    notifier : Notifier
        Has news when there may be a message, and when a model was released.
    parts : ObjectTransfer
        Takes and gives parts of messages.
    routes : Routes
        Answers our own questions and knows the release.
    refusals : RefusalLog
        Takes who was refused.
    opened : asyncio.Event
        Nobody is let in before it is set, as the list of sites may be an old one.
    counter : ConnectionCounter, optional
        Is told over which connections signed requests come; knows the certificates that were shown.
    is_mutual : bool
        Whether a site has to show a certificate for the key with which it signs.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: DeploymentLinkState,
        notifier: Notifier,
        *,
        parts: ObjectTransfer,
        routes: Routes,
        refusals: RefusalLog,
        opened: asyncio.Event,
        counter: ConnectionCounter | None = None,
        is_mutual: bool = False,
    ) -> None:
        self._app, self._state, self._notifier, self._parts = app, state, notifier, parts
        self._counter = ConnectionCounter() if counter is None else counter  # an empty one is false
        self._is_mutual = is_mutual
        self._routes, self._refusals, self._opened = routes, refusals, opened
        self._limiter = ConcurrencyLimiter()
        self._nonces = UsedNonces(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        status = check_length(scope) if path.startswith((_FLEET, OWN_PATHS)) else 404
        if status is not None:
            await refuse(status)(scope, receive, send)
            return
        if not self._opened.is_set():
            await refuse(503, retry_after_s=1)(scope, receive, send)
            return
        visitor = await asyncio.to_thread(identify, self._state, self._nonces, scope)
        peer = _find_peer(scope)
        if visitor.refusal is None and self._is_mutual and visitor.key != self._counter.find_key(peer):
            visitor = refuse_visitor(visitor.fingerprint, "certificate")
        if visitor.refusal is not None:
            await self._note_refusal(scope, visitor, visitor.problem or "")
            await refuse_signed(visitor.refusal)(scope, receive, send)
            return
        self._counter.note_signed(peer, visitor.number)
        receive = check_body(receive, visitor.body_sha256)
        try:
            with self._limiter.count(visitor.number, waits=path == _PULL):
                await self._serve(scope, receive, send, visitor)
        except TooManyRequests:
            await refuse(429)(scope, receive, send)
        except TooSlow:
            await refuse(408)(scope, receive, send)
        except BodyDiffers:
            await self._note_refusal(scope, visitor, REFUSALS["body"].at_server)
            await refuse_signed("body")(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, visitor: Visitor) -> None:
        """Handle a request of a known site."""
        path = scope["path"]
        if path.startswith(OWN_PATHS):
            body = await read_body(receive, MAX_BODY_BYTES)
            if body is not None:
                await self._routes.serve(scope, replay(body, receive), send, visitor)
        elif path == _PUSH_PART:
            await self._parts.take(scope, receive, send, visitor.number, None)
        elif path == _PULL_PART:
            await self._parts.give(scope, receive, send, visitor.number, None)
        else:
            body = await read_body(receive, MAX_BODY_BYTES)
            if body is None:
                return
            if path == _PULL:
                await self._hold(scope, body, receive, send)
            elif path == _ACTIVATE:
                await self._activate(scope, replay(body, receive), send, visitor)
            elif path == _PUSH and not _is_own_reply(body, visitor.number):
                log.warning("refused what is no reply of the site with key %s", visitor.fingerprint)
                await Response(status_code=400)(scope, receive, send)
            else:
                await self._app(scope, replay(body, receive), send)

    async def _hold(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Pass on the question for messages; while the answer is empty, wait until there may be one and ask again."""
        gone = asyncio.ensure_future(wait_for_end(receive))
        end = time.monotonic() + (HOLD_S if self._routes.release_sha256 is None else RELEASED_HOLD_S)
        try:
            while True:
                seen = self._notifier.count
                events = await self._ask(dict(scope), body)
                left_s = end - time.monotonic()
                if not _is_empty(events[0]) or left_s <= 0 or gone.done() or self._notifier.closed:
                    break
                if await self._notifier.wait(seen, left_s, unless=gone) and self._routes.release_sha256 is not None:
                    end = 0.0
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        for event in events:
            await send(self._mark(event))

    async def _ask(self, scope: Scope, body: bytes) -> list[Message]:
        """Return Flower's answer to a request that was read already."""
        events: list[Message] = []
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def forever() -> Message:
            return await never

        async def send(event: Message) -> None:
            events.append(event)

        await self._app(scope, replay(body, forever), send)
        return events

    def _mark(self, event: Message) -> Message:
        """Tell the site of the release, if there is one."""
        released = self._routes.release_sha256
        if event["type"] == "http.response.start" and released is not None:
            event["headers"] = [*event.get("headers", []), (RELEASE_HEADER.encode(), released.encode())]
        return event

    async def _activate(self, scope: Scope, receive: Receive, send: Send, visitor: Visitor) -> None:
        """Pass on the start of a site's process; note if its identity is in use already."""

        async def watch(event: Message) -> None:
            if event["type"] == "http.response.start" and event["status"] >= 400:
                await self._note_refusal(scope, visitor, "another process with this key is connected")
            await send(event)

        await self._app(scope, receive, watch)

    async def _note_refusal(self, scope: Scope, visitor: Visitor, reason: str) -> None:
        client = scope.get("client")
        await asyncio.to_thread(self._refusals.add, str(client[0]) if client else "unknown", visitor, reason)


def check_length(scope: Scope) -> int | None:
    """Return the status with which a request is refused for the size of its body, or None."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length")
    if length is None:
        return 411 if scope["method"] != "GET" or b"transfer-encoding" in headers else None
    most_bytes = MAX_PART_BYTES if scope["path"] == _PUSH_PART else MAX_BODY_BYTES
    return None if length.isdigit() and int(length) <= most_bytes else 413


def _find_peer(scope: Scope) -> Peer | None:
    client = scope.get("client")
    return None if client is None else (str(client[0]), int(client[1]))


def _read_token(scope: Scope) -> str:
    token: bytes = dict(scope["headers"]).get(TASK_TOKEN_HEADER.encode(), b"")
    return token.decode("latin-1")


def _is_own_reply(body: bytes, node_id: int) -> bool:
    """Return whether a site announces one reply of its own.

    Flower itself takes a message for the sender's that it names, and one that answers none for an instruction.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return False
    metadata = request.messages_list[0].metadata
    return metadata.src_node_id == node_id and bool(metadata.reply_to_message_id)


def _is_empty(event: Message) -> bool:
    return event["status"] == 200 and dict(event.get("headers", [])).get(b"content-length") == b"0"

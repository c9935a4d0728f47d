"""Flower's ``Grid`` for the ServerApp of a deployment.

Flower's own waits with growing pauses for parts that have not arrived, holds every reply in memory at once and makes a
second copy of all that is sent. Here nothing waits, one reply at a time is in memory, and what several messages share
is sent once. That a site which was started again gets its message once more is the SuperLink's work, see
:class:`server.superlink.state.DeploymentLinkState`.
"""

import io
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

import httpx
from flwr.app import Array, Error, Message, Metadata
from flwr.app.message import make_message, remove_content_from_message

# Touched internals: the grid with which Flower's own ServerApp process talks to the SuperLink, the messages of that
# conversation, and how a message is taken apart into hashed objects. There is no public way to speak to a SuperLink.
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.constant import HEAD_BODY_DIVIDER, SYSTEM_MESSAGE_TYPE, TASK_TOKEN_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    UnexpectedObjectContentError,
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry
from flwr.superlink.grid import HttpGrid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no stubs

from fedmed.protocol.http import DROP_PATH
from server.rounds.exchange import MALFORMATIONS

_CONNECTIONS = 4
_MAX_ARRAY_BYTES = 2 * 2**30
_TIMEOUT_S, _READ_TIMEOUT_S = 60.0, 120.0
"""Of the loopback interface: a SuperLink that has ended is noticed at once, one that is busy is waited for."""
_RETRY_FOR_S = 15.0
_RETRY_PAUSE_S = 0.2
_MOST_TIMEOUTS = 3
_DEPTH_OF_ARRAYS = 3  # message, record dictionary, record, array; below are the arrays' chunks of 5 MiB

log = logging.getLogger("fedmed.grid")
Result = TypeVar("Result")


_MISSING = "parts of the reply are missing at the server; its logs/superlink.log says why"
_MALFORMED = "the reply is malformed and was not used; the site and the server must have the same versions"
_UNREADABLE = (*MALFORMATIONS, DecodeError, UnexpectedObjectContentError)


class PartMissingError(Exception):
    """A part of a reply is not at the SuperLink."""


class Retry:
    """Repeats a request whose connection failed, for a short while; answers with an error are errors at once.

    Flower's own repeats for ever, and ends the process by a signal when its run was stopped.
    """

    def invoke(self, send: Callable[[], Result]) -> Result:
        """Call ``send`` until it succeeds or the time is over."""
        end = time.monotonic() + _RETRY_FOR_S
        while True:
            try:
                return send()
            except httpx.TransportError as error:
                if time.monotonic() > end:
                    raise
                log.warning("the SuperLink did not answer (%s), trying again", type(error).__name__)
                time.sleep(_RETRY_PAUSE_S)


def repeat_if_late(ask: Callable[[], Result]) -> Result:
    """Repeat a request that the SuperLink was too busy to answer in time, :data:`_MOST_TIMEOUTS` times in all.

    Only for requests that may be carried out twice: the SuperLink may have done what it did not answer. Waiting for an
    answer takes longer than :class:`Retry` tries.

    Parameters
    ----------
    ask : callable
        Sends the request.
    """
    for _ in range(_MOST_TIMEOUTS - 1):
        try:
            return ask()
        except httpx.TimeoutException as error:
            log.warning("the SuperLink was too busy to answer in time (%s), asking again", type(error).__name__)
    return ask()


class DeploymentGrid(HttpGrid):
    """Way of the ServerApp to the sites.

    Parameters
    ----------
    address : str
        ``127.0.0.1:port`` of the SuperLink's private listener.
    token : str
        What the SuperLink gave this process for its task.
    """

    def __init__(self, address: str, *, token: str) -> None:
        super().__init__(address, insecure=True, token=token)
        self._retry_invoker = cast("Any", Retry())
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="grid")
        self._arrived: dict[str, ObjectTree] = {}
        self.max_array_bytes = _MAX_ARRAY_BYTES
        """Largest array that a reply may hold; larger ones are answered with an error."""

    def close(self) -> None:
        """Close the connection."""
        self._pool.shutdown(cancel_futures=True)
        super().close()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages.

        Parameters
        ----------
        messages : iterable of Message
            Contents that several of them share are sent once.

        Returns
        -------
        list of str
            Their ids, in order; an empty one for a message that was refused because its site was revoked.
        """
        with no_object_id_recompute():  # as nothing changes meanwhile, everything is hashed once
            objects: dict[str, InflatableObject] = {}
            request = PushAppMessagesRequest()
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                request.messages_list.append(message_to_proto(remove_content_from_message(message)))
                request.message_object_trees.append(get_object_tree(message))
                objects |= get_all_nested_objects(message)
            if not request.messages_list:
                return []
            answer = self._runtime_client.PushMessages(request)
            wanted = set(answer.objects_to_push)
            parts = ((object_id, part) for object_id, part in objects.items() if object_id in wanted)
            deque(self._map(lambda pair: self._push_part(pair[0], pair[1], answer.session_id), parts), maxlen=0)
        return list(answer.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies that have arrived completely, without waiting for any.

        Parameters
        ----------
        message_ids : iterable of str
            From :meth:`push_messages`.

        Yields
        ------
        Message
            One at a time, so that only one need be in memory; a message that will have no reply, because it has
            expired or its site went away, is answered with an error.
        """
        message_ids = list(message_ids)
        asked = [message_id for message_id in message_ids if message_id not in self._arrived]
        if asked:
            answer = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=asked))
            for reply, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
                self._arrived[reply.metadata.reply_to_message_id] = tree
        for message_id in message_ids:
            tree = self._arrived.pop(message_id, None)
            if tree is not None:
                yield self._read_reply(tree, message_id)

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Forget messages; the SuperLink takes no reply to them any more.

        Parameters
        ----------
        message_ids : iterable of str
            Unknown ones are ignored.
        """
        ids = list(message_ids)
        for message_id in ids:
            self._arrived.pop(message_id, None)
        try:
            client = self._runtime_client._client
            url = f"http://{self._addr}{DROP_PATH}"
            client.post(url, json={"message_ids": ids}, headers={TASK_TOKEN_HEADER: self._token}).raise_for_status()
        except httpx.HTTPError as error:
            log.warning("%d messages could not be taken back (%s); they expire", len(ids), type(error).__name__)

    @property
    def _run_id(self) -> int:
        assert self._run is not None, "the executor sets the run before the ServerApp starts"
        return self._run.run_id

    def _connect(self) -> None:
        super()._connect()
        # Flower's client would ask a proxy of the environment even for the loopback interface.
        cast("Any", self._client)._client = httpx.Client(
            trust_env=False, timeout=httpx.Timeout(_TIMEOUT_S, read=_READ_TIMEOUT_S)
        )

    def _push_part(self, object_id: str, part: InflatableObject, session_id: str) -> None:
        request = PushObjectRequest(
            node=self.node,
            run_id=self._run_id,
            object_id=object_id,
            object_content=part.deflate(),
            session_id=session_id,
        )
        if not self._runtime_client.PushObject(request).stored:
            raise OSError("The SuperLink could not store a part of a message; its log, logs/superlink.log, says why.")

    def _read_reply(self, tree: ObjectTree, message_id: str) -> Message:
        try:
            reply = self._read(tree)
            if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message_id:
                raise TypeError("no reply to this message")
            reply.metadata.__dict__["_message_id"] = tree.object_id
        except PartMissingError:
            return self._make_error(message_id, ErrorCode.MESSAGE_UNAVAILABLE, _MISSING)
        except _UNREADABLE as error:  # one site must not end the run of all
            log.warning("a malformed reply was passed over: %s", type(error).__name__)
            reply = self._make_error(message_id, ErrorCode.UNKNOWN, _MALFORMED)
        # In any case: it must not come again.
        request = ConfirmMessageReceivedRequest(node=self.node, run_id=self._run_id, message_object_id=tree.object_id)
        repeat_if_late(lambda: self._runtime_client.ConfirmMessageReceived(request))
        return reply

    def _make_error(self, message_id: str, code: int, reason: str) -> Message:
        """Return the answer to a message whose reply cannot be read."""
        metadata = Metadata(
            run_id=self._run_id,
            message_id="",
            src_node_id=self.node.node_id,
            dst_node_id=self.node.node_id,
            reply_to_message_id=message_id,
            group_id="",
            created_at=time.time(),
            ttl=0.0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        return make_message(metadata=metadata, error=Error(code=code, reason=reason))

    def _read(self, tree: ObjectTree) -> InflatableObject:
        """Put an object together from its parts."""
        small = _list_ids(tree, _DEPTH_OF_ARRAYS)
        contents = dict(zip(small, self._map(self._pull_part, small), strict=True))

        def build(object_id: str) -> InflatableObject:
            content = contents.pop(object_id, None) or self._pull_part(object_id)
            kind, children, _ = get_object_head_values_from_object_content(content)
            if kind == Array.__qualname__:
                return self._read_array(content, children)
            return inflatable_class_registry[kind].inflate(content, {child: build(child) for child in children})

        return build(tree.object_id)

    def _read_array(self, content: bytes, chunks: list[str]) -> Array:
        """Put an array together while its chunks arrive; at no time are there two copies of it."""
        about = json.loads(bytes(_body(content)))
        data = io.BytesIO()
        for chunk in self._map(self._pull_part, (chunks[number] for number in about["arraychunk_ids"])):
            if data.tell() + len(chunk) > self.max_array_bytes:  # one chunk may be named any number of times
                raise ValueError(f"an array is larger than {self.max_array_bytes} bytes")
            data.write(_body(chunk))
        return Array(about["dtype"], tuple(about["shape"]), about["stype"], data.getvalue())

    def _pull_part(self, object_id: str) -> bytes:
        request = PullObjectRequest(node=self.node, run_id=self._run_id, object_id=object_id)
        answer = repeat_if_late(lambda: self._runtime_client.PullObject(request))
        if not answer.object_available:
            raise PartMissingError(object_id)
        return bytes(answer.object_content)

    def _map(self, work: Callable[[Any], Result], items: Iterable[Any]) -> Iterator[Result]:
        """Yield ``work(item)`` in order, a few of them under way at a time."""
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item))
                if len(waiting) > _CONNECTIONS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _list_ids(tree: ObjectTree, depth: int) -> list[str]:
    """Return the ids of a tree down to a depth, each once."""
    ids = {tree.object_id: None}
    for child in tree.children if depth else ():
        ids |= dict.fromkeys(_list_ids(child, depth - 1))
    return list(ids)


def _body(content: bytes) -> memoryview:
    return memoryview(content)[content.index(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]

"""The ServerApp's grid against a SuperLink in memory; ``test_superlink.py`` has the real one."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

import server.superlink.grid
from server.superlink.grid import DeploymentGrid, Retry
from tests.server.support.real_link import make_content, read_data

MB = 10**6


class FakeRuntime:
    """The SuperLink's Runtime API in memory."""

    def __init__(self) -> None:
        self.pushed: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.replies: dict[str, tuple[ProtoMessage, ObjectTree]] = {}
        self.asked: list[list[str]] = []
        self.confirmed: list[str] = []

    def PushMessages(self, request: Any) -> Any:  # noqa: N802
        ids = [message.metadata.message_id for message in request.messages_list]
        wanted: dict[str, None] = {}

        def walk(tree: ObjectTree) -> None:
            for child in tree.children:
                walk(child)
            wanted[tree.object_id] = None

        for tree in request.message_object_trees:
            walk(tree)
        return PushAppMessagesResponse(message_ids=ids, objects_to_push=list(wanted), session_id="s")

    def PushObject(self, request: Any) -> Any:  # noqa: N802
        assert request.session_id == "s"
        self.pushed.append(request.object_id)
        self.objects[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: Any) -> Any:  # noqa: N802
        self.asked.append(list(request.message_ids))
        found = [self.replies.pop(one) for one in request.message_ids if one in self.replies]
        return PullAppMessagesResponse(
            messages_list=[message for message, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        content = self.objects.get(request.object_id)
        if content is None:
            return PullObjectResponse(object_found=False, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)

    def close(self) -> None:
        pass

    def reply(self, message_id: str, data: bytes, claimed_id: str | None = None) -> None:
        reply = Message(make_content(data), dst_node_id=1, message_type="train")
        reply.metadata.__dict__["_reply_to_message_id"] = claimed_id or message_id
        for object_id, part in get_all_nested_objects(reply).items():
            self.objects[object_id] = part.deflate()
        proto = ProtoMessage()
        proto.metadata.reply_to_message_id = message_id
        self.replies[message_id] = (proto, get_object_tree(reply))


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def grid(runtime: FakeRuntime) -> Iterator[DeploymentGrid]:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    grid = DeploymentGrid("127.0.0.1:1", token="t")
    grid._client = runtime  # type: ignore[assignment]
    grid.set_run(Run.create_empty(run_id=1))
    yield grid
    grid.close()


def test_parts_that_messages_share_are_sent_once_and_before_what_needs_them(
    grid: DeploymentGrid, runtime: FakeRuntime
) -> None:
    content = make_content(np.arange(3_000_000, dtype=np.uint32).tobytes())  # 12 MB, three chunks
    ids = grid.push_messages([Message(content, dst_node_id=node, message_type="train") for node in range(5)])
    assert len(set(ids)) == 5
    # five roots, record dictionary, two records, array, three chunks
    assert len(runtime.pushed) == len(set(runtime.pushed)) == 12
    assert grid.push_messages([]) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        bytes(16 * MB),  # four chunks, three of them the same
        np.arange(4_000_000, dtype=np.uint32).tobytes(),  # four different ones
    ],
    ids=["empty", "small", "zeros", "different"],
)
def test_a_reply_is_what_was_sent(grid: DeploymentGrid, runtime: FakeRuntime, data: bytes) -> None:
    runtime.reply("m", data)
    [reply] = grid.pull_messages(["m"])
    assert read_data(reply) == data
    assert reply.content.array_records["model"]["bytes"].stype == "safetensors"
    assert reply.content.config_records["request"]["json"] == "{}"
    assert runtime.confirmed == [reply.metadata.message_id]


def test_one_reply_at_a_time_is_in_memory(grid: DeploymentGrid, runtime: FakeRuntime) -> None:
    size = 100 * MB
    for number in range(3):
        runtime.reply(f"m{number}", np.arange(number, size // 4 + number, dtype=np.uint32).tobytes())
    sizes = []
    tracemalloc.start()
    try:
        for reply in grid.pull_messages(["m0", "m1", "m2"]):
            sizes.append(len(read_data(reply)))
            del reply
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes == [size] * 3
    assert peak < 1.6 * size  # one reply, and a few chunks of 5 MiB on their way


def test_replies_that_were_announced_are_not_asked_for_again(grid: DeploymentGrid, runtime: FakeRuntime) -> None:
    for one in ("a", "b"):
        runtime.reply(one, one.encode())
    first = next(iter(grid.pull_messages(["a", "b", "c"])))
    assert read_data(first) == b"a"
    assert [read_data(reply) for reply in grid.pull_messages(["b", "c"])] == [b"b"]
    assert runtime.asked == [["a", "b", "c"], ["c"]]


def test_a_reply_with_missing_parts_is_an_error(grid: DeploymentGrid, runtime: FakeRuntime) -> None:
    runtime.reply("m", b"data")
    runtime.objects.popitem()
    [reply] = grid.pull_messages(["m"])
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert reply.metadata.reply_to_message_id == "m"
    assert runtime.confirmed == []


NESTED = b"[" * 100_000


def find_part(runtime: FakeRuntime, kind: bytes) -> str:
    [found] = [object_id for object_id, content in runtime.objects.items() if content.startswith(kind + b" ")]
    return found


def replace_body(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    head, _, body = content.partition(b"\x00")
    return head + b"\x00" + change(body)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (b"Message", lambda content: b""),
        (b"Message", lambda content: b"no divider"),
        (b"Message", lambda content: b"Unknown  3\x00abc"),
        (b"Message", lambda content: b"RecordDict  2\x00{}"),
        (b"Message", lambda content: replace_body(content, lambda body: b"\xff" * 20)),
        (b"Array", lambda content: b"Array\x00{}"),
        (b"Array", lambda content: replace_body(content, lambda body: b"[]")),
        (b"Array", lambda content: replace_body(content, lambda body: NESTED)),
        (b"Array", lambda content: content.replace(b"arraychunk_ids", b"arraychunk_xxx")),
        (b"Array", lambda content: replace_body(content, lambda body: body.replace(b"[0]", b"[7]"))),
        (b"Array", lambda content: replace_body(content, lambda body: body.replace(b"[0]", b'["a"]'))),
        (b"ArrayChunk", lambda content: b"no divider"),
        (b"RecordDict", lambda content: replace_body(content, lambda body: NESTED)),
        (b"ArrayRecord", lambda content: replace_body(content, lambda body: NESTED)),
    ],
)
def test_a_malformed_reply_is_an_error_of_its_site_and_does_not_come_again(
    grid: DeploymentGrid, runtime: FakeRuntime, kind: bytes, make: Callable[[bytes], bytes]
) -> None:
    runtime.reply("bad", b"some data")
    part = find_part(runtime, kind)
    changed = make(runtime.objects[part])
    assert changed != runtime.objects[part]
    runtime.objects[part] = changed
    root = runtime.replies["bad"][1].object_id
    runtime.reply("good", b"other data")
    bad, good = grid.pull_messages(["bad", "good"])
    assert bad.metadata.reply_to_message_id == "bad"
    assert (bad.error.code, bad.error.reason) == (ErrorCode.UNKNOWN, server.superlink.grid._MALFORMED)
    assert read_data(good) == b"other data"
    assert runtime.confirmed == [root, good.metadata.message_id]


def test_a_site_cannot_answer_in_the_name_of_another(grid: DeploymentGrid, runtime: FakeRuntime) -> None:
    runtime.reply("mine", b"x", claimed_id="theirs")
    [reply] = grid.pull_messages(["mine"])
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == "mine"


def test_a_failed_connection_is_tried_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.superlink.grid, "_RETRY_PAUSE_S", 0.0)
    failures = [httpx.ConnectError("refused"), httpx.ReadTimeout("late")]

    def send() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert Retry().invoke(send) == "done"
    monkeypatch.setattr(server.superlink.grid, "_RETRY_FOR_S", 0.0)
    failures = [httpx.ConnectError("refused")] * 9
    with pytest.raises(httpx.ConnectError):
        Retry().invoke(send)


def test_an_answer_with_an_error_is_not_repeated() -> None:
    calls = []

    def send() -> None:
        calls.append(1)
        request = httpx.Request("POST", "http://x")
        raise httpx.HTTPStatusError("401", request=request, response=httpx.Response(401, request=request))

    with pytest.raises(httpx.HTTPStatusError):
        Retry().invoke(send)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["PullObject", "ConfirmMessageReceived"])
def test_a_busy_superlink_is_asked_again_for_what_may_be_asked_twice(
    grid: DeploymentGrid, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One late answer does not end the run, three in a row do."""
    late, ask = [httpx.ReadTimeout("late")], getattr(runtime, name)

    def answer(request: Any) -> Any:
        if late:
            raise late.pop()
        return ask(request)

    monkeypatch.setattr(runtime, name, answer)
    runtime.reply("asked", b"data")
    [reply] = grid.pull_messages(["asked"])
    assert (read_data(reply), late) == (b"data", [])
    late += [httpx.ReadTimeout("late")] * 30
    runtime.reply("asked", b"data")
    with pytest.raises(httpx.ReadTimeout):
        list(grid.pull_messages(["asked"]))

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import (
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from starlette.types import Message as Event

import server.superlink.admission
import server.superlink.asgi
import server.superlink.gate
import server.superlink.routes
from fedmed.keys import fingerprint
from fedmed.protocol.http import DROP_PATH, OPEN_PATH
from server.superlink.admission import RefusalLog
from server.superlink.asgi import Notifier
from server.superlink.gate import PrivateGate, PublicGate
from server.superlink.limits import MAX_REQUESTS_PER_SITE, MAX_WAITING_PER_SITE, ReplyTooLarge
from server.superlink.object_transfer import ObjectTransfer
from server.superlink.routes import Routes

KEY = ec.generate_private_key(ec.SECP384R1())
PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"


def sign(
    key: ec.EllipticCurvePrivateKey = KEY,
    age_s: float = 0.0,
    *,
    path: str = PULL,
    body: bytes = b"ask",
    method: str = "POST",
    nonce: str = "",
    number: str = "2",
) -> list[tuple[bytes, bytes]]:
    """Sign by hand: what is signed is written out here, line by line."""
    timestamp = (now() - timedelta(seconds=age_s)).isoformat().encode()
    sha256, nonce = hashlib.sha256(body).hexdigest(), nonce or secrets.token_hex(16)
    text = f"fedmed request {number}\n{method}\n{path}\n{sha256}\n{timestamp.decode()}\n{nonce}".encode()
    return [
        (b"flwr-public-key", base64.b64encode(public_key_to_bytes(key.public_key()))),
        (b"flwr-timestamp", timestamp),
        (b"flwr-signature", base64.b64encode(sign_message(key, timestamp))),
        (b"x-fedmed-format", number.encode()),
        (b"x-fedmed-nonce", nonce.encode()),
        (b"x-fedmed-body-sha256", sha256.encode()),
        (b"x-fedmed-signature", base64.b64encode(sign_message(key, text))),
    ]


class FakeState:
    """Knows one site, number 5, one token and one part that may come."""

    def __init__(self) -> None:
        self.part: bytes | None = b""
        self.dropped: list[str] = []
        self.revoked = False
        self.object_store = self

    def get_node_id_by_public_key(self, key: bytes) -> int | None:
        return 5 if key == public_key_to_bytes(KEY.public_key()) and not self.revoked else None

    def get_node_info(self, node_ids: list[int]) -> list[Any]:
        assert node_ids == [5]
        return [type("Info", (), {"name": "site_01"})]

    def find_run(self, token: str) -> int | None:
        return 9 if token == "secret" else None

    def is_running(self, run_id: int) -> bool:
        return run_id == 9

    def store_object(
        self, run_id: int, session_id: str, object_id: str, content: bytes, most_bytes: int | None
    ) -> bool:
        if most_bytes is not None and len(content) > most_bytes:
            raise ReplyTooLarge
        self.part = content
        return object_id == "wanted"

    def get(self, object_id: str) -> bytes | None:
        return self.part

    def drop_messages(self, ids: list[str]) -> None:
        self.dropped += ids


class FakeApp:
    """Flower's SuperLink: answers with the next of the given bodies, and then again and again with the last."""

    def __init__(self, *bodies: bytes, status: int = 200) -> None:
        self.bodies, self.status = list(bodies), status
        self.requests: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests.append((await receive())["body"])
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Request:
    """One request to an application; the connection ends when ``hang_up`` is called."""

    def __init__(
        self, path: str, body: bytes = b"ask", headers: list[tuple[bytes, bytes]] | None = None, method: str = "POST"
    ) -> None:
        length = [(b"content-length", str(len(body)).encode())]
        headers = [*(sign(path=path, body=body, method=method) if headers is None else headers), *length]
        self.scope = {"type": "http", "path": path, "method": method, "headers": headers, "client": ("10.0.0.7", 1234)}
        self.sent: list[Event] = []
        self._body: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]
        self._gone = asyncio.Event()

    def hang_up(self) -> None:
        self._gone.set()

    async def receive(self) -> Event:
        if self._body:
            return self._body.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        self.sent.append(event)

    async def run(self, app: Callable[..., Awaitable[None]]) -> "Request":
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(event["body"] for event in self.sent[1:])


class Gates:
    def __init__(self, folder: Path, app: FakeApp, *, start_open: bool = True, **settings: Any) -> None:
        for name in ("release", "collected"):
            (folder / name).mkdir()
        (folder / "hello.json").write_text('{"round": 3}')
        self.folder, self.state, self.notifier = folder, FakeState(), Notifier()
        state: Any = self.state
        self.routes = Routes(state, folder / "hello.json", folder / "release", folder / "collected")
        parts = ObjectTransfer(app, state, Notifier(), 1000)
        refusals = RefusalLog(folder / "refused.jsonl")
        opened = asyncio.Event()
        if start_open:
            opened.set()
        self.public = PublicGate(
            app,
            state,
            self.notifier,
            parts=parts,
            routes=self.routes,
            refusals=refusals,
            opened=opened,
            **settings,
        )
        self.private = PrivateGate(app, state, self.notifier, parts, opened=opened, control_token="control")

    def refused(self) -> list[dict[str, str]]:
        file = self.folder / "refused.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


def test_a_question_for_messages_waits_until_the_serverapp_has_sent_one(tmp_path: Path) -> None:
    async def act() -> None:
        gates = Gates(tmp_path, app := FakeApp(b"", b"", b"message"))
        pull = Request(PULL)
        asking = asyncio.ensure_future(pull.run(gates.public))
        await until(lambda: gates.notifier.num_waiting == 1)
        assert pull.sent == []
        await Request("/v1/runtime/push-messages").run(gates.private)
        await asking
        assert (pull.status, pull.body) == (200, b"message")
        assert app.requests == [b"ask"] * 3
        assert gates.notifier.num_waiting == 0

    asyncio.run(act())


def test_a_message_that_comes_while_flower_looks_is_not_missed(tmp_path: Path) -> None:
    async def act() -> None:
        gates = Gates(tmp_path, FakeApp(b""))
        bodies = [b"", b"message"]

        async def notify_while_looking(scope: Any, receive: Any, send: Any) -> None:
            answer = FakeApp(bodies.pop(0))
            gates.notifier.notify()
            await answer(scope, receive, send)

        gates.public._app = notify_while_looking
        pull = await asyncio.wait_for(Request(PULL).run(gates.public), 2)
        assert pull.body == b"message"

    asyncio.run(act())


def test_an_empty_answer_is_given_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        monkeypatch.setattr(server.superlink.gate, "HOLD_S", 0.1)
        gates = Gates(tmp_path, FakeApp(b""))
        begin = asyncio.get_running_loop().time()
        pull = await Request(PULL).run(gates.public)
        assert 0.09 < asyncio.get_running_loop().time() - begin < 2
        assert (pull.status, pull.body) == (200, b"")

    asyncio.run(act())


def test_a_site_that_hangs_up_is_not_waited_for(tmp_path: Path) -> None:
    async def act() -> None:
        gates = Gates(tmp_path, FakeApp(b""))
        pull = Request(PULL)
        asking = asyncio.ensure_future(pull.run(gates.public))
        await until(lambda: gates.notifier.num_waiting == 1)
        pull.hang_up()
        await asyncio.wait_for(asking, 2)
        assert gates.notifier.num_waiting == 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(act())


def test_a_release_ends_the_waiting_and_is_named_in_every_answer(tmp_path: Path) -> None:
    async def act() -> None:
        gates = Gates(tmp_path, FakeApp(b"", b"", b"message"))
        pull = Request(PULL)
        asking = asyncio.ensure_future(pull.run(gates.public))
        await until(lambda: gates.notifier.num_waiting == 1)
        assert not gates.routes.look_for_release()
        (tmp_path / "release/manifest.json").write_bytes(b"{}")
        assert gates.routes.look_for_release()
        assert not gates.routes.look_for_release()
        gates.notifier.notify()
        await asyncio.wait_for(asking, 2)
        sha256 = b"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256sum of {}
        assert (pull.body, pull.headers[b"x-fedmed-release"]) == (b"", sha256)
        again = await Request(PULL).run(gates.public)
        assert (again.body, again.headers[b"x-fedmed-release"]) == (b"message", sha256)

    asyncio.run(act())


def test_the_end_of_the_process_ends_the_waiting(tmp_path: Path) -> None:
    async def act() -> None:
        gates = Gates(tmp_path, FakeApp(b""))
        asking = asyncio.ensure_future(Request(PULL).run(gates.public))
        await until(lambda: gates.notifier.num_waiting == 1)
        gates.notifier.close()
        assert (await asyncio.wait_for(asking, 2)).body == b""

    asyncio.run(act())


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/v1/runtime/push-messages", b"3", 404),
        ("/v1/control/list-runs", b"3", 404),
        ("/health", b"3", 404),
        ("/docs", b"3", 404),
        (PULL, b"1048577", 413),
        (PUSH, b"1048577", 413),
        ("/v1/fleet/push-object", b"8388609", 413),
        (PULL, b"-1", 413),
        (PULL, None, 411),
    ],
)
def test_only_the_sites_paths_and_sizes_get_through(
    tmp_path: Path, path: str, length: bytes | None, status: int
) -> None:
    app = FakeApp(b"x")
    request = Request(path)
    request.scope["headers"] = sign() + ([(b"content-length", length)] if length else [])
    asyncio.run(request.run(Gates(tmp_path, app).public))
    assert request.status == status
    assert app.requests == []


def test_a_stranger_is_refused_before_its_request_is_read(tmp_path: Path) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    gates = Gates(tmp_path, app := FakeApp(b"x"))
    for _ in range(3):
        request = asyncio.run(Request("/v1/fleet/push-object", headers=sign(stranger)).run(gates.public))
        assert request.status == 401
        assert len(request._body) == 1
    assert app.requests == []
    public = stranger.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    lines = gates.refused()
    assert len(lines) == 1  # once a minute
    assert lines[0].pop("time")[10] == "T"
    assert lines[0] == {
        "address": "10.0.0.7",
        "fingerprint": fingerprint(public),
        "reason": "its key is unknown or revoked",
    }


def without_signature() -> list[tuple[bytes, bytes]]:
    return sign()[:-1]


def with_a_strange_key() -> list[tuple[bytes, bytes]]:
    pem = x25519.X25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return [(b"flwr-public-key", base64.b64encode(pem)), *sign()[1:]]


def with_another_time() -> list[tuple[bytes, bytes]]:
    return [
        (b"flwr-timestamp", b"2020-01-01") if name == b"flwr-timestamp" else (name, value) for name, value in sign()
    ]


@pytest.mark.parametrize(
    ("make_headers", "reason"),
    [
        (without_signature, "its signature is wrong"),
        (list, "it shows no key"),
        (lambda: [*sign(), sign()[0]], "it shows no key"),  # Flower might take the other
        (lambda: sign(number="3"), "its requests are signed in another form"),
        (lambda: sign(nonce="../" * 10), "its signature is wrong"),
        (with_a_strange_key, "it shows no key"),
        (with_another_time, "its signature is wrong"),
        (lambda: sign(age_s=400), "its clock differs by -400 s"),
        (lambda: sign(age_s=-30), "its clock differs by +30 s"),
    ],
)
def test_a_bad_proof_is_refused_with_its_reason(
    tmp_path: Path, make_headers: Callable[[], list[tuple[bytes, bytes]]], reason: str
) -> None:
    gates = Gates(tmp_path, app := FakeApp(b"x"))
    request = asyncio.run(Request(PULL, headers=make_headers()).run(gates.public))
    assert request.status == (426 if "another form" in reason else 401)
    (line,) = gates.refused()
    assert line["reason"].startswith(reason)
    assert app.requests == []


def test_a_second_process_with_one_identity_is_recorded(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"{}", status=412))
    assert asyncio.run(Request("/v1/fleet/activate-node").run(gates.public)).status == 412
    assert [line["reason"] for line in gates.refused()] == ["another process with this key is connected"]


def test_hello_tells_the_site_its_name_and_the_time(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    told = json.loads(asyncio.run(Request("/v1/fedmed/hello").run(gates.public)).body)
    assert told.pop("time")[10] == "T"
    assert told == {"round": 3, "site": "site_01"}
    (tmp_path / "hello.json").unlink()
    assert asyncio.run(Request("/v1/fedmed/hello").run(gates.public)).status == 503


def test_released_files_are_sent_and_nothing_else(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    data = bytes(range(256)) * 10_000  # 2.56 MB, three blocks
    (tmp_path / "release/model.safetensors").write_bytes(data)

    def fetch(name: str) -> Request:
        return asyncio.run(Request(f"/v1/fedmed/release/{name}", b"", method="GET").run(gates.public))

    assert fetch("model.safetensors").body == data
    assert fetch("model.safetensors").headers[b"content-length"] == b"2560000"
    for name in ("../hello.json", "..", "", "none.json", "/etc/passwd", ".hidden"):
        assert fetch(name).status == 404


def test_a_receipt_is_written_under_the_sites_number(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    body = json.dumps({"manifest_sha256": "ab" * 32}).encode()
    assert asyncio.run(Request("/v1/fedmed/collected", body).run(gates.public)).status == 204
    written = json.loads((tmp_path / "collected/5.json").read_text())
    assert written["manifest_sha256"] == "ab" * 32
    for wrong in (b"", b"[]", b'{"manifest_sha256": "../x"}', b'{"manifest_sha256": 3}'):
        assert asyncio.run(Request("/v1/fedmed/collected", wrong).run(gates.public)).status == 400


def test_a_part_that_is_not_here_yet_is_given_as_soon_as_it_comes(tmp_path: Path) -> None:
    async def act() -> None:
        gates = Gates(tmp_path, app := FakeApp(b"x"))
        pull = Request(
            "/v1/fleet/pull-object",
            PullObjectRequest(node=Node(node_id=5), run_id=9, object_id="wanted").SerializeToString(),
        )
        asking = asyncio.ensure_future(pull.run(gates.public))
        await until(lambda: gates.public._parts._arrived.num_waiting == 1)
        push = PushObjectRequest(node=Node(node_id=1), run_id=9, object_id="wanted", object_content=b"c" * 300)
        token = [(b"flwr-task-token", b"secret")]
        sent = await Request("/v1/runtime/push-object", push.SerializeToString(), token).run(gates.private)
        assert PushObjectResponse.FromString(sent.body).stored
        await asyncio.wait_for(asking, 2)
        # Flower's own class reads what we have written by hand.
        answer = PullObjectResponse.FromString(pull.body)
        assert (answer.object_found, answer.object_available, answer.object_content) == (True, True, b"c" * 300)
        assert pull.headers[b"content-length"] == str(len(pull.body)).encode()
        assert app.requests == []

    asyncio.run(act())


@pytest.mark.parametrize(
    "request_",
    [
        PushObjectRequest(node=Node(node_id=6), run_id=9),  # another site's number
        PushObjectRequest(node=Node(node_id=5), run_id=8),  # a run that is over
    ],
)
def test_what_is_unusual_about_a_part_is_left_to_flower(tmp_path: Path, request_: PushObjectRequest) -> None:
    gates = Gates(tmp_path, app := FakeApp(b"{}", status=403))
    body = request_.SerializeToString()
    assert asyncio.run(Request("/v1/fleet/push-object", body).run(gates.public)).status == 403
    assert app.requests == [body]
    assert gates.state.part == b""


def test_unknown_parts_are_said_to_be_unknown(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    gates.state.part = None
    body = PullObjectRequest(node=Node(node_id=5), run_id=9, object_id="other").SerializeToString()
    answer = asyncio.run(Request("/v1/fleet/pull-object", body).run(gates.public)).body
    assert not PullObjectResponse.FromString(answer).object_found


def test_only_the_serverapp_takes_messages_back(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    body = json.dumps({"message_ids": ["a", "b"]}).encode()
    assert asyncio.run(Request(DROP_PATH, body, []).run(gates.private)).status == 401
    assert asyncio.run(Request(DROP_PATH, body, [(b"flwr-task-token", b"secret")]).run(gates.private)).status == 204
    assert gates.state.dropped == ["a", "b"]


def test_the_record_of_refusals_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.superlink.admission, "_LARGEST_RECORD_BYTES", 1000)
    record = RefusalLog(tmp_path / "refused.jsonl")
    for number in range(300):
        record.add(f"10.0.0.{number}", server.superlink.admission.Visitor("none"), "it shows no key")
    lines = sum(len(path.read_text().splitlines()) for path in tmp_path.iterdir())
    assert lines <= 100
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2500


def test_what_is_refused_again_is_counted_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0
    monkeypatch.setattr(server.superlink.admission.time, "monotonic", lambda: seconds)
    record = RefusalLog(tmp_path / "refused.jsonl")
    visitor = server.superlink.admission.Visitor("none")
    for _ in range(1234):
        record.add("10.0.0.1", visitor, "it shows no key")
    for number in range(500):
        record.add(f"10.0.1.{number}", visitor, "it shows no key")
    seconds = 61.0
    record.add("10.0.0.2", visitor, "it shows no key")
    lines = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert len(lines) == 103
    assert sum(line.get("count", 1) for line in lines) == 1234 + 500 + 1
    assert [line["count"] for line in lines if "count" in line] == [1233, 401]


def announce(*, sender: int = 5, answers: str = "asked", messages: int = 1, trees: int = 1) -> bytes:
    message = Message(metadata=Metadata(src_node_id=sender, reply_to_message_id=answers))
    request = PushMessagesRequest(
        node=Node(node_id=5),
        messages_list=[message] * messages,
        message_object_trees=[ObjectTree(object_id="root")] * trees,
    )
    return bytes(request.SerializeToString())


def test_a_site_announces_replies_of_its_own(tmp_path: Path) -> None:
    gates = Gates(tmp_path, app := FakeApp(b"taken"))
    assert asyncio.run(Request(PUSH, announce()).run(gates.public)).body == b"taken"
    assert app.requests == [announce()]


@pytest.mark.parametrize(
    "body",
    [
        announce(sender=6),  # another site's
        announce(answers=""),  # an instruction
        announce(messages=0),
        announce(messages=2),
        announce(trees=0),
        announce(trees=2),
        b"",
        b"no protobuf",
    ],
)
def test_what_is_no_reply_of_its_own_is_refused(tmp_path: Path, body: bytes) -> None:
    gates = Gates(tmp_path, app := FakeApp(b"taken"))
    assert asyncio.run(Request(PUSH, body).run(gates.public)).status == 400
    assert app.requests == []


def test_a_site_waits_for_messages_twice_at_most(tmp_path: Path) -> None:
    async def act() -> None:
        gates = Gates(tmp_path, FakeApp(b""))
        pulls = [Request(PULL) for _ in range(MAX_WAITING_PER_SITE)]
        asking = [asyncio.ensure_future(pull.run(gates.public)) for pull in pulls]
        await until(lambda: gates.notifier.num_waiting == 2)
        third = await Request(PULL).run(gates.public)
        assert (third.status, third.headers[b"connection"]) == (429, b"close")
        assert (await Request("/v1/fedmed/hello").run(gates.public)).status == 200
        pulls[0].hang_up()
        await asking[0]
        asking.append(asyncio.ensure_future(Request(PULL).run(gates.public)))
        await until(lambda: gates.notifier.num_waiting == 2)
        gates.notifier.close()
        await asyncio.gather(*asking)

    asyncio.run(act())


def test_a_site_has_so_many_requests_under_way_and_no_more(tmp_path: Path) -> None:
    class Slow(Request):
        async def receive(self) -> Event:
            await self._gone.wait()
            return self._body.pop()

    async def act() -> None:
        gates = Gates(tmp_path, FakeApp(b"x"))
        slow = [Slow("/v1/fleet/get-run") for _ in range(MAX_REQUESTS_PER_SITE)]
        asking = [asyncio.ensure_future(one.run(gates.public)) for one in slow]
        await until(lambda: gates.public._limiter._all[5] == 16)
        assert (await Request("/v1/fedmed/hello").run(gates.public)).status == 429
        for one in slow:
            one.hang_up()
        assert [one.status for one in await asyncio.gather(*asking)] == [200] * 16
        assert (await Request("/v1/fedmed/hello").run(gates.public)).status == 200
        assert not gates.public._limiter._all

    asyncio.run(act())


@pytest.mark.parametrize("path", [PUSH, "/v1/fleet/push-object", "/v1/fedmed/collected"])
def test_a_body_that_stops_is_given_up_and_a_slow_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(server.superlink.asgi, "STALL_S", 0.3)

    class Trickle(Request):
        def __init__(self, num_blocks: int) -> None:
            super().__init__(path, b"x" * num_blocks)
            self.left = num_blocks

        async def receive(self) -> Event:
            await asyncio.sleep(0.1 if self.left else 60)
            self.left -= 1
            return {"type": "http.request", "body": b"x", "more_body": self.left > 0}

    async def act() -> None:
        gates = Gates(tmp_path, FakeApp(b"taken"))
        stuck = await asyncio.wait_for(Trickle(0).run(gates.public), 5)
        assert (stuck.status, stuck.headers[b"connection"]) == (408, b"close")
        assert (await Trickle(6).run(gates.public)).status != 408  # 0.6 s in all

    asyncio.run(act())


def test_a_reply_that_is_too_large_is_refused(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))

    def push(size: int) -> int:
        part = PushObjectRequest(node=Node(node_id=5), run_id=9, object_id="wanted", object_content=b"c" * size)
        return asyncio.run(Request("/v1/fleet/push-object", part.SerializeToString()).run(gates.public)).status

    assert (push(1000), push(1001)) == (200, 413)
    # Our own process may.
    own = PushObjectRequest(node=Node(node_id=1), run_id=9, object_id="wanted", object_content=b"c" * 1001)
    request = Request("/v1/runtime/push-object", own.SerializeToString(), [(b"flwr-task-token", b"secret")])
    assert asyncio.run(request.run(gates.private)).status == 200


def test_nobody_is_let_in_before_the_supervisor_says_so(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"message"), start_open=False)

    def pull() -> Request:
        return asyncio.run(Request(PULL).run(gates.public))

    def open_up(headers: list[tuple[bytes, bytes]], method: str = "POST") -> int:
        return asyncio.run(Request(OPEN_PATH, b"", headers, method).run(gates.private)).status

    right = [(b"authorization", b"Bearer control")]
    assert (pull().status, pull().headers[b"retry-after"], pull().headers[b"connection"]) == (503, b"1", b"close")
    assert open_up([]) == open_up([(b"authorization", b"Bearer x")]) == open_up([(b"authorization", b"control")]) == 401
    assert open_up(right, "GET") == 405
    assert pull().status == 503
    assert open_up(right) == open_up(right) == 204
    assert pull().body == b"message"
    assert (
        asyncio.run(Request(OPEN_PATH, b"", [*sign(path=OPEN_PATH, body=b""), *right]).run(gates.public)).status == 404
    )


def test_a_download_ends_when_its_site_is_revoked(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    with (tmp_path / "release/model.safetensors").open("wb") as file:
        file.truncate(20 * 2**20)

    class Download(Request):
        async def send(self, event: Event) -> None:
            await super().send(event)
            if len(self.sent) == 1 + 10:  # in the tenth of 20 blocks of 1 MiB
                gates.state.revoked = True

    download = Download("/v1/fedmed/release/model.safetensors", b"", method="GET")
    asyncio.run(download.run(gates.public))
    assert download.headers[b"content-length"] == str(20 * 2**20).encode()
    assert len(download.body) == 16 * 2**20
    assert download.sent[-1].get("more_body") is True  # so the connection is closed


def test_a_download_that_is_not_taken_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.superlink.routes, "STALL_S", 0.1)
    gates = Gates(tmp_path, FakeApp(b"x"))
    (tmp_path / "release/model.safetensors").write_bytes(b"model")

    class Download(Request):
        async def send(self, event: Event) -> None:
            await super().send(event)
            if event["type"] == "http.response.body":
                await asyncio.sleep(60)

    download = Download("/v1/fedmed/release/model.safetensors", b"", method="GET")
    asyncio.run(asyncio.wait_for(download.run(gates.public), 5))
    assert [event["type"] for event in download.sent] == ["http.response.start", "http.response.body"]

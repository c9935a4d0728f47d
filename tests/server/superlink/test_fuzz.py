"""Whatever comes from outside is answered or refused in one line, and the server goes on."""

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import server.superlink.admission
from client.supernode.failures import FleetError, explain_status
from client.supernode.fleet import Fleet
from fedmed.config.client import load_client_config
from fedmed.config.server import load_server_config
from fedmed.errors import FedmedError
from fedmed.keys import check_signature, make_release_key, make_site_key, read_private_key, read_public_key, sign
from fedmed.keys.certificates import certificate_names
from fedmed.keys.passphrases import read_passphrases
from fedmed.processes import write_secret
from server.provisioning.provision import add_site, provision
from server.provisioning.site_list import read_sites
from server.superlink.listener import LimitedProtocol
from server.superlink.tls import read_public_key as read_certificate_key
from tests.server.superlink.test_gate import PULL, FakeApp, Gates, Request
from tests.server.superlink.test_gate import sign as sign_request
from tests.server.superlink.test_listener import answer_hi

SHIPPED = Path(__file__).resolve().parents[3] / "configs"
PATHS = [PULL, "/v1/fleet/push-messages", "/v1/fleet/push-object", "/v1/fleet/pull-object", "/v1/fleet/activate-node",
         "/v1/fedmed/hello", "/v1/fedmed/collected", "/v1/fedmed/release/model.onnx"]  # fmt: skip
HEADERS = [b"flwr-public-key", b"flwr-timestamp", b"flwr-signature", b"x-fedmed-format", b"x-fedmed-nonce",
           b"x-fedmed-body-sha256", b"x-fedmed-signature", b"content-length"]  # fmt: skip
DEFAULT = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
SLOW = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))

bits = st.binary(max_size=80)
values = st.one_of(
    bits,
    st.sampled_from([b"2", b"1", b"0" * 32, b"0" * 64, b"2026-01-01T00:00:00+00:00",
                     b"9999-12-31T23:59:59.999999-23:59", b"0001-01-01T00:00:00+23:59",
                     base64.b64encode(b"x" * 72), b"=" * 10, b"-1", b"1e9"]),
)  # fmt: skip
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def refuse_in_one_line(act: Callable[[], object]) -> None:
    """Check that something is done, or refused by an error for a person."""
    said = "done"
    try:
        act()
    except FedmedError as error:
        said = str(error)
    assert said.strip()
    assert "Traceback" not in said


@pytest.fixture(autouse=True)
def _no_limit_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.superlink.admission, "_QUIET_S", 0.0)


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    (made := Gates(tmp_path, FakeApp(b"ok"))).state.part = b"part"
    return made


@pytest.fixture(params=[DEFAULT, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["default", "slow"])
def tier(request: pytest.FixtureRequest) -> settings:
    found: settings = request.param
    return found


def test_headers_of_any_kind(gates: Gates, tier: settings) -> None:
    """Right ones that were changed, left out and doubled; nothing but a right request gets through."""

    @tier
    @given(
        st.sampled_from(PATHS),
        st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=4),
        st.sets(st.sampled_from(HEADERS), max_size=3),
        bits,
    )
    def check(path: str, changes: list[tuple[bytes, bytes]], left_out: set[bytes], body: bytes) -> None:
        headers = dict(sign_request(path=path, body=body))
        right = not left_out - {b"content-length"} and all(headers.get(name) == value for name, value in changes)
        doubled = [(name, value) for name, value in changes if name in left_out]
        shown = {**headers, **dict(changes)}
        kept = [(name, value) for name, value in shown.items() if name not in left_out]
        request = Request(path, body, kept + doubled)
        runner.run(asyncio.wait_for(request.run(gates.public), 5))
        assert right or request.status in {400, 401, 411, 413, 426, 503}
        for line in gates.refused():
            assert "\n" not in line["reason"]
            assert len(json.dumps(line)) < 400
        (gates.folder / "refused.jsonl").unlink(missing_ok=True)

    with asyncio.Runner() as runner:
        check()
        assert runner.run(Request(PULL).run(gates.public)).status == 200


def test_paths_queries_and_bodies_of_a_known_site(gates: Gates, tier: settings) -> None:
    """Signed as they are, so that what is behind the gate sees them."""

    @tier
    @given(st.one_of(st.sampled_from(PATHS), st.text(max_size=60).map("/v1/fedmed/release/{}".format),
                     st.text(max_size=60).map("/v1/fleet/{}".format)), bits, st.sampled_from(["GET", "POST", "PUT"]),
           st.one_of(bits, json_values.map(lambda value: json.dumps(value).encode())))  # fmt: skip
    def check(path: str, query: bytes, method: str, body: bytes) -> None:
        request = Request(path, body, [], method)
        raw = path.encode("utf-8", "surrogatepass")
        target = (raw + b"?" + query if query else raw).decode("latin-1")
        try:
            headers = sign_request(path=target, body=body, method=method)
        except UnicodeEncodeError:
            headers = []
        request.scope |= {"raw_path": raw, "query_string": query}
        request.scope["headers"] = [*headers, *request.scope["headers"]]
        runner.run(asyncio.wait_for(request.run(gates.public), 5))
        assert 200 <= request.status < 504

    with asyncio.Runner() as runner:
        check()
        assert runner.run(Request(PULL).run(gates.public)).status == 200


def test_bytes_on_the_wire(tier: settings) -> None:
    """uvicorn's parser with our limits: any bytes end in an answer or in a closed connection, never in an error."""
    import uvicorn
    from uvicorn.server import ServerState

    class Transport(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.sent, self.closed = b"", False

        def write(self, data: Any) -> None:
            self.sent += bytes(data)

        def close(self) -> None:
            self.closed = True

        abort = close

        def is_closing(self) -> bool:
            return self.closed

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return default

        def pause_reading(self) -> None: ...

        def resume_reading(self) -> None: ...

    config = uvicorn.Config(answer_hi, http=LimitedProtocol, lifespan="off", log_config=None, ws="none")
    config.load()

    @tier
    @given(st.lists(st.one_of(bits, st.sampled_from([b"GET / HTTP/1.1\r\n", b"host: x\r\n", b"\r\n",
                                                     b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n",
                                                     b"5\r\nhello\r\n", b"POST /a?b=%zz HTTP/1.1\r\n"])),
                    max_size=8))  # fmt: skip
    def check(blocks: list[bytes]) -> None:
        async def act() -> None:
            failures: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
            transport = Transport()
            protocol = LimitedProtocol(config=config, server_state=ServerState(), app_state={})
            protocol.connection_made(transport)
            for block in blocks:
                if not transport.closed:
                    protocol.data_received(block)
                await asyncio.sleep(0)
            protocol.connection_lost(None)
            await asyncio.sleep(0)
            assert failures == []

        asyncio.run(act())

    check()


def test_answers_that_a_site_gets(tmp_path: Path, tier: settings) -> None:
    """Any status, header and body of whoever answers is explained in one line."""
    names = st.sampled_from(["x-fedmed-problem", "date", "content-type", "retry-after"])
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
    as_json = json_values.map(lambda value: json.dumps(value).encode())
    make_site_key(tmp_path, "north")
    (tmp_path / "client.yaml").write_text("name: north\nserver: 127.0.0.1:9\ninsecure: true\ndata: {source: phantom}\n")

    @tier
    @given(st.integers(200, 599), st.dictionaries(names, printable), st.one_of(bits, as_json))
    def check(status: int, headers: dict[str, str], body: bytes) -> None:
        answer = httpx.Response(status, headers=headers, content=body, request=httpx.Request("POST", "https://s"))
        error = explain_status(answer, "server:1", "SHA256:x")
        assert "\n" not in str(error)

        def reply(request: httpx.Request) -> httpx.Response:
            return httpx.Response(status, headers=headers, content=body)

        fleet._http = httpx.Client(transport=httpx.MockTransport(reply))
        said: object = None
        try:
            said = fleet.hello()
        except FleetError as failure:
            said = str(failure)
        assert isinstance(said, dict) or "\n" not in str(said)

    with Fleet(load_client_config(tmp_path / "client.yaml")) as fleet:
        check()


def test_the_list_of_sites(tmp_path: Path, tier: settings) -> None:
    provision(tmp_path / "fed", SHIPPED / "server.yaml")
    config = load_server_config(tmp_path / "fed" / "server.yaml")
    file = tmp_path / "fed" / "sites.json"
    right = file.read_bytes()
    entry = json.loads(right)["sites"]["hospital_a"]

    @tier
    @given(
        st.one_of(
            bits,
            json_values.map(lambda value: json.dumps(value).encode()),
            st.dictionaries(st.sampled_from(["public_key", "revoked", "added", "earlier_keys", "x"]), json_values).map(
                lambda changes: json.dumps({"format": 1, "sites": {"a": entry | changes}}).encode()
            ),
            st.tuples(st.integers(0, len(right) - 1), bits).map(lambda cut: right[: cut[0]] + cut[1]),
        )
    )
    def check(data: bytes) -> None:
        file.write_bytes(data)
        refuse_in_one_line(lambda: read_sites(config))

    check()
    file.write_bytes(right)
    assert list(read_sites(config)) == ["hospital_a", "hospital_b"]


def test_files_of_kits_and_keys(tmp_path: Path, tier: settings) -> None:
    """Each file of a kit cut, changed or replaced."""
    provision(tmp_path / "fed", SHIPPED / "server.yaml")
    make_release_key(tmp_path / "own")
    kit = tmp_path / "fed" / "kits" / "hospital_a"
    readers: dict[str, Callable[[Path], object]] = {
        "client.yaml": load_client_config,
        "ca.pem": certificate_names,
        "site.key": read_private_key,
        "site.pub": read_public_key,
        "release.pub": lambda path: check_signature(path, b"x", sign(tmp_path / "own" / "release.key", b"x")),
    }
    right = {name: (kit / name).read_bytes() for name in readers}
    target = tmp_path / "kit"
    target.mkdir()

    @tier
    @given(st.sampled_from(sorted(readers)), st.sampled_from(["cut", "insert", "replace"]), st.integers(0, 5000), bits)
    def check(name: str, how: str, place: int, noise: bytes) -> None:
        data, at = right[name], place % len(right[name])
        changed = {"cut": data[:at], "insert": data[:at] + noise + data[at:], "replace": noise}[how]
        write_secret(target / name, changed)
        refuse_in_one_line(lambda: readers[name](target / name))
        refuse_in_one_line(lambda: read_passphrases(target / name))
        read_certificate_key(changed)

    check()


def test_what_provisioning_is_given(tmp_path: Path, tier: settings) -> None:
    provision(tmp_path / "fed", SHIPPED / "server.yaml")
    config = load_server_config(tmp_path / "fed" / "server.yaml")
    base = yaml.safe_load((SHIPPED / "server.yaml").read_text())
    public = tmp_path / "given.pub"
    known = read_sites(config)

    @tier
    @given(st.text(max_size=70), bits, st.sampled_from(sorted(base)), json_values)
    def check(name: str, key: bytes, setting: str, value: Any) -> None:
        public.write_bytes(key)
        refuse_in_one_line(lambda: add_site(config, name, public))
        assert read_sites(config) == known
        (tmp_path / "given.yaml").write_text(yaml.safe_dump({**base, setting: value}))
        refuse_in_one_line(lambda: load_server_config(tmp_path / "given.yaml"))

    check()

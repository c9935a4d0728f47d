"""The real SuperLink process, with a site and a ServerApp that talk to it over its two ports."""

import hashlib
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography import x509
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.superlink.federation import NoOpFederationManager

import server.superlink.state
from fedmed.errors import FederationError, KeyFileError
from fedmed.keys import Authority, fingerprint
from server.superlink.control import APP_ID, Control
from server.superlink.grid import DeploymentGrid
from server.superlink.object_store import FileObjectStoreFactory
from server.superlink.state import DeploymentLinkState, DeploymentLinkStateFactory
from tests.server.support.real_link import Link, Site, make_content, read_data, run_status, running_link, running_task

# Flower's migrations use a setting of alembic that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
DATA = np.arange(6_400_000, dtype=np.uint32).tobytes()  # 25.6 MB, five chunks, all different


@pytest.fixture(scope="module")
def link_control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Link, Control]]:
    with running_link(tmp_path_factory.mktemp("link")) as found:
        yield found


@pytest.fixture
def link(link_control: tuple[Link, Control]) -> Link:
    return link_control[0]


@pytest.fixture
def control(link_control: tuple[Link, Control]) -> Control:
    return link_control[1]


@pytest.fixture
def site(link: Link, control: Control) -> Iterator[Site]:
    site = Site(link)
    control.sync_sites({"site_01": site.public_line})
    site.activate()
    yield site
    site.close()


@pytest.fixture
def grid(link: Link, control: Control, tmp_path: Path) -> Iterator[DeploymentGrid]:
    with running_task(link, control, tmp_path) as (found, _):
        yield found
    control.stop_stale_runs()


@pytest.fixture
def state(link: Link) -> DeploymentLinkState:
    """A second view of the same state."""
    database = str(link.folder / "link.db")
    factory = DeploymentLinkStateFactory(
        database, NoOpFederationManager(), FileObjectStoreFactory(database, link.objects)
    )
    return factory.link_state


def send(grid: DeploymentGrid, site: Site, data: bytes = b"m", ttl: float = 100.0) -> str:
    message = Message(make_content(data), dst_node_id=site.node.node_id, message_type="train", ttl=ttl)
    [message_id] = grid.push_messages([message])
    assert message_id
    return message_id


def hold(site: Site) -> tuple[threading.Thread, dict[str, Any]]:
    """Ask for messages in a thread, as the SuperLink does not answer before there is one."""
    found: dict[str, Any] = {}

    def ask() -> None:
        with suppress(httpx.TransportError):
            found["answer"] = site.pull()
        found["time"] = time.monotonic()

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, found


def test_a_message_there_and_a_reply_back(link: Link, site: Site, grid: DeploymentGrid) -> None:
    thread, found = hold(site)
    time.sleep(0.3)
    assert thread.is_alive()
    begin = time.monotonic()
    message_id = send(grid, site, DATA)
    thread.join(10)
    assert found["time"] - begin < 1.0
    assert list(grid.pull_messages([message_id])) == []
    # message, record dictionary, two records, array, five chunks: each a file, and none in the database
    assert link.count_files() == 10
    assert sum(file.stat().st_size for file in link.folder.glob("link.db*")) < len(DATA) / 4
    message = site.read(found["answer"])
    assert read_data(message) == DATA
    assert message.metadata.message_id == message_id
    assert site.client.GetRun(_run_request(site, message)).run.fab_id == APP_ID

    reply = Message(make_content(DATA[::-1]), reply_to=message)
    session, parts = site.announce(reply)
    root = list(parts)[-1]
    for object_id, content in list(parts.items())[:-1]:
        assert site.send_part(reply, session, object_id, content)
        assert list(grid.pull_messages([message_id])) == []  # nothing before the root is there
    assert site.send_part(reply, session, root, parts[root])
    [answer] = grid.pull_messages([message_id])
    assert read_data(answer) == DATA[::-1]
    assert answer.metadata.reply_to_message_id == message_id
    assert answer.metadata.src_node_id == site.node.node_id
    assert link.count_files() == 0


def _run_request(site: Site, message: Message) -> Any:
    from flwr.proto.run_pb2 import GetRunRequest

    return GetRunRequest(node=site.node, run_id=message.metadata.run_id)


def test_what_many_messages_share_is_sent_and_stored_once(
    link: Link, control: Control, site: Site, grid: DeploymentGrid
) -> None:
    second = Site(link)
    control.sync_sites({"site_01": site.public_line, "site_02": second.public_line})
    second.activate()
    content, nodes = make_content(DATA), [site.node.node_id, second.node.node_id]
    assert sorted(grid.get_node_ids()) == sorted(nodes)
    ids = grid.push_messages([Message(content, dst_node_id=node, message_type="train", ttl=100.0) for node in nodes])
    assert link.count_files() == 11  # two roots, nine shared
    for one in (site, second):
        message = one.read(one.pull())
        one.send(Message(Error(code=0, reason="no"), reply_to=message))
    replies = list(grid.pull_messages(ids))
    assert [reply.error.reason for reply in replies] == ["no", "no"]
    assert link.count_files() == 0
    second.close()


def test_a_site_that_starts_again_gets_its_message_again(link: Link, site: Site, grid: DeploymentGrid) -> None:
    message_id = send(grid, site, DATA)
    lost = site.read(site.pull())
    half = Message(make_content(DATA[::-1]), reply_to=lost)
    session, parts = site.announce(half)
    [*some, _root] = parts
    assert site.send_part(half, session, some[0], parts[some[0]])
    # The process is killed here. Its successor clears the old session.
    site.deactivate()
    assert list(grid.pull_messages([message_id])) == []
    site.activate()
    message = site.read(site.pull())
    assert message.metadata.message_id == message_id
    assert read_data(message) == DATA
    site.send(Message(make_content(b"second"), reply_to=message))
    [answer] = grid.pull_messages([message_id])
    assert read_data(answer) == b"second"
    assert link.count_files() == 0 or _only(link, parts)


def _only(link: Link, parts: dict[str, bytes]) -> bool:
    """Whether nothing is left but the half reply, which goes with its upload."""
    return {path.name for path in link.objects.rglob("*") if path.is_file()} <= set(parts)


def test_a_reply_is_not_lost_when_its_site_leaves(site: Site, grid: DeploymentGrid) -> None:
    message_id = send(grid, site)
    site.send(Message(make_content(b"done"), reply_to=site.read(site.pull())))
    site.deactivate()
    assert [read_data(reply) for reply in grid.pull_messages([message_id])] == [b"done"]


def test_a_site_that_stays_away_is_reported_after_a_while(
    site: Site, grid: DeploymentGrid, state: DeploymentLinkState, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = send(grid, site)
    run_id = grid.run.run_id
    site.deactivate()
    assert state.get_message_res({message_id}, run_id) == []
    real_now = server.superlink.state.now
    monkeypatch.setattr(server.superlink.state, "now", lambda: real_now() + timedelta(seconds=31))
    [reply] = state.get_message_res({message_id}, run_id)
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
    assert "has not come back within 30 s" in str(reply.error.reason)


def test_expired_messages_are_reported_and_purged(
    link: Link, site: Site, grid: DeploymentGrid, state: DeploymentLinkState, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = send(grid, site, b"short", ttl=50.0)
    reply = Message(make_content(b"late"), reply_to=site.read(site.pull()))
    site.announce(reply)
    assert state.purge() == 0
    assert link.count_files() == 6
    real_now = server.superlink.state.now
    monkeypatch.setattr(server.superlink.state, "now", lambda: real_now() + timedelta(seconds=51))
    assert state.purge() == 1
    assert link.count_files() == 0
    [answer] = grid.pull_messages([message_id])
    assert answer.error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_an_upload_that_was_given_up_is_purged(
    link: Link, site: Site, grid: DeploymentGrid, state: DeploymentLinkState, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = send(grid, site, b"m", ttl=500.0)
    message = site.read(site.pull())
    reply = Message(make_content(b"never complete"), reply_to=message)
    session, parts = site.announce(reply)
    assert site.send_part(reply, session, *next(iter(parts.items())))
    assert link.count_files() == 7
    real_now = server.superlink.state.now
    monkeypatch.setattr(server.superlink.state, "now", lambda: real_now() + timedelta(seconds=200))
    assert state.purge() == 1
    assert link.count_files() == 6  # the message is still waited for
    site.send(Message(make_content(b"again"), reply_to=message))
    assert [read_data(answer) for answer in grid.pull_messages([message_id])] == [b"again"]


def test_replies_that_nobody_waits_for_are_not_taken(link: Link, site: Site, grid: DeploymentGrid) -> None:
    message_id = send(grid, site)
    message = site.read(site.pull())
    grid.abandon([message_id, "unknown"])
    assert link.count_files() == 0
    _session, parts = site.announce(Message(make_content(DATA), reply_to=message))
    assert parts == {}


def test_replies_come_one_at_a_time_and_the_rest_is_kept(link: Link, site: Site, grid: DeploymentGrid) -> None:
    ids = [send(grid, site, bytes([number])) for number in range(3)]
    for _ in ids:
        message = site.read(site.pull())
        site.send(Message(make_content(read_data(message)), reply_to=message))
    first = next(iter(grid.pull_messages(ids)))
    assert link.count_files() > 0
    rest = [one for one in ids if one != first.metadata.reply_to_message_id]
    assert sorted(read_data(reply) for reply in [first, *grid.pull_messages(rest)]) == [b"\0", b"\1", b"\2"]
    assert link.count_files() == 0


def test_messages_to_a_revoked_site_are_refused(control: Control, site: Site, grid: DeploymentGrid) -> None:
    control.sync_sites({})
    message = Message(make_content(b"m"), dst_node_id=site.node.node_id, message_type="train", ttl=100.0)
    assert grid.push_messages([message]) == [""]
    assert site.ask("POST", "/v1/fedmed/hello").status_code == 401
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        site.pull()
    with pytest.raises(KeyFileError, match="'site_01' cannot be used again: it was revoked before"):
        control.sync_sites({"site_01": site.public_line})


def test_a_site_that_waits_for_a_message_hears_at_once_that_it_was_revoked(control: Control, site: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        question = pool.submit(site.pull)
        time.sleep(0.5)  # the server holds it for twenty seconds
        assert not question.done()
        control.sync_sites({})
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            question.result(timeout=10)


def test_an_unknown_site_is_refused_and_recorded(link: Link, site: Site) -> None:
    stranger = Site(link)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        stranger.activate()
    assert stranger.ask("POST", "/v1/fedmed/hello").status_code == 401
    line = link.refused[-1]
    assert (line["address"], line["fingerprint"]) == ("127.0.0.1", fingerprint(stranger.public_line))
    assert line["reason"] == "its key is unknown or revoked"
    log = (link.folder / "superlink.log").read_text()
    assert f"fedmed.superlink: refused 127.0.0.1 with key {line['fingerprint']}" in log.replace(
        "WARNING fedmed.superlink ", "fedmed.superlink: "
    )
    stranger.close()


def test_a_second_process_of_a_site_is_refused_and_recorded(link: Link, site: Site) -> None:
    twin = Site(link, site.key)
    with pytest.raises(httpx.HTTPStatusError, match="412"):
        twin.activate()
    assert link.refused[-1]["reason"] == "another process with this key is connected"
    twin.close()


def test_a_key_must_be_one_sites_and_elliptic(control: Control, site: Site) -> None:
    with pytest.raises(KeyFileError, match="'a' and 'b' have the same public key"):
        control.sync_sites({"a": site.public_line, "b": site.public_line})
    with pytest.raises(KeyFileError, match=r"site 'a' in sites.json is no elliptic-curve key"):
        control.sync_sites({"a": "ssh-ed25519 nonsense"})


def test_a_site_whose_key_cannot_be_used_keeps_nobody_out(link: Link, control: Control, site: Site) -> None:
    other, third = Site(link), Site(link)
    nodes = control.sync_sites({"revoked": third.public_line, "site_01": site.public_line})
    control.sync_sites({"site_01": site.public_line})
    problems: list[KeyFileError] = []
    lines = {
        "revoked": third.public_line,
        "damaged": "ssh-ed25519 nonsense",
        "site_01": "ssh-ed25519 nonsense",  # stays as it is known
        "twin": other.public_line,
        "twin_2": other.public_line,
    }
    found = control.sync_sites(lines, problems.append)
    assert found == {"site_01": nodes["site_01"], "twin": found["twin"]}
    assert sorted(str(problem).split(" in sites.json")[0] for problem in problems) == [
        "The key of the site 'revoked' cannot be used again: it was revoked before (the SuperLink answered 412). Have "
        "the site make a new key and add it with --add-site.",
        "The public key of the site 'damaged'",
        "The public key of the site 'site_01'",
        "The sites 'twin' and 'twin_2' have the same public key",
    ]
    assert site.ask("POST", "/v1/fedmed/hello").status_code == 200  # it is still let in
    for one in (other, third):
        one.close()


def test_the_private_side_is_closed_to_the_public_and_to_strangers(link: Link, control: Control) -> None:
    context = ssl.create_default_context(cafile=str(link.folder / "ca.pem"))
    with httpx.Client(verify=context, trust_env=False) as client:
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/health", "/v1/fedmed/drop"):
            assert client.post(f"https://127.0.0.1:{link.public_port}{path}").status_code in {401, 404}
    with closing(Control(link.private_port, "wrong")) as stranger, pytest.raises(FederationError, match="status 401"):
        stranger.list_nodes()
    answer = httpx.post(f"http://127.0.0.1:{link.private_port}/v1/fedmed/drop", json={}, trust_env=False)
    assert answer.status_code == 401
    assert control.list_nodes() is not None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(link: Link) -> None:
    import socket

    context = ssl.create_default_context(cafile=str(link.folder / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", link.public_port)) as plain,
        pytest.raises(ssl.SSLError, match="SSL"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_hello_names_the_site(link: Link, site: Site) -> None:
    told = site.ask("POST", "/v1/fedmed/hello").json()
    assert abs(time.time() - _to_seconds(told.pop("time"))) < 5
    assert told == {"study": {"id": "s"}, "round": 3, "site": "site_01"}


def _to_seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_a_release_is_announced_collected_and_acknowledged(link: Link, site: Site) -> None:
    thread, _ = hold(site)
    time.sleep(0.2)
    manifest = b'{"files": {}}'
    sha256 = hashlib.sha256(manifest).hexdigest()
    try:
        (link.release / "model.safetensors").write_bytes(DATA)
        (link.release / "manifest.json").write_bytes(manifest)
        thread.join(5)
        assert not thread.is_alive()
        told = site.ask("POST", "/v1/fleet/pull-messages", content=_pull_request(site), headers=_PROTOBUF)
        assert (told.status_code, told.headers["x-fedmed-release"]) == (200, sha256)
        assert site.ask("GET", "/v1/fedmed/release/model.safetensors").content == DATA
        assert site.ask("GET", "/v1/fedmed/release/..%2Fhello.json").status_code == 404
        receipt = site.ask("POST", "/v1/fedmed/collected", json={"manifest_sha256": sha256})
        assert receipt.status_code == 204
        written = json.loads((link.folder / f"collected/{site.node.node_id}.json").read_text())
        assert written["manifest_sha256"] == sha256
    finally:
        (link.release / "manifest.json").unlink()


_PROTOBUF = {"content-type": "application/protobuf"}


def _pull_request(site: Site) -> bytes:
    from flwr.proto.fleet_pb2 import PullMessagesRequest

    return bytes(PullMessagesRequest(node=site.node).SerializeToString())


def test_a_new_certificate_is_used_without_a_restart(link: Link, site: Site) -> None:
    before = _fetch_certificate(link)
    (link.folder / "server.pem").unlink()
    (link.folder / "server.key").unlink()
    Authority.load(link.folder).issue_server_certificate(link.folder, ["localhost", "127.0.0.1"])
    end = time.monotonic() + 5
    while _fetch_certificate(link).serial_number == before.serial_number and time.monotonic() < end:
        time.sleep(0.05)
    after = _fetch_certificate(link)
    expected = x509.load_pem_x509_certificate((link.folder / "server.pem").read_bytes())
    assert after.serial_number == expected.serial_number != before.serial_number
    assert site.ask("POST", "/v1/fedmed/hello").status_code == 200


def _fetch_certificate(link: Link) -> x509.Certificate:
    pem = ssl.get_server_certificate(("127.0.0.1", link.public_port))
    return x509.load_pem_x509_certificate(pem.encode())


def test_the_state_survives_the_process_and_stale_runs_are_stopped(tmp_path: Path) -> None:
    with running_link(tmp_path / "link", insecure=True) as (link, control):
        site = Site(link)
        nodes = control.sync_sites({"site_01": site.public_line})
        with running_task(link, control, tmp_path) as (grid, context):
            assert isinstance(context, Context)
            assert context.run_config == {"run-dir": str(tmp_path)}
            assert run_status(control, grid.run.run_id).status == "running"
            site.activate()
            send(grid, site, DATA)
            thread, _ = hold(site)
            link.process.kill()
            link.process.wait()
            thread.join()
            with pytest.raises(FederationError, match="does not answer"):
                control.list_nodes()
            control.close()
            again = link.start()
            assert again.stop_stale_runs() == [grid.run.run_id]
        stopped = run_status(again, grid.run.run_id)
        assert (stopped.status, stopped.sub_status) == ("finished", "stopped")
        assert link.count_files() == 0
        assert again.sync_sites({"site_01": site.public_line}) == nodes
        assert again.list_nodes()[site.node.node_id].online
        again.close()
        begin = time.monotonic()
        assert link.stop() == 0
        assert time.monotonic() - begin < 4
        site.close()


def test_it_ends_with_its_parent_and_keeps_no_secret(link: Link) -> None:
    log = (link.folder / "superlink.log").read_text() + (link.folder / "superlink.out").read_text()
    for name in ("executor.secret", "control.token"):
        assert (link.folder / name).read_text() not in log
    command = Path(f"/proc/{link.process.pid}/cmdline").read_text()
    assert "secret" not in command
    assert Path(f"/proc/{link.process.pid}/environ").read_text().count("FLWR_TELEMETRY_ENABLED=0") == 1
    assert os.getppid() != link.process.pid


def test_sites_wait_for_the_supervisor_and_send_no_more_than_they_may(tmp_path: Path) -> None:
    more = {"start_open": False, "max_reply_bytes": 12 * 2**20}
    with running_link(tmp_path / "link", insecure=True, more=more) as (link, control):
        site = Site(link)
        control.sync_sites({"site_01": site.public_line})
        closed = site.ask("POST", "/v1/fedmed/hello")
        assert (closed.status_code, closed.headers["retry-after"]) == (503, "1")
        assert _open(link, "wrong") == 401
        assert site.ask("POST", "/v1/fedmed/hello").status_code == 503
        assert _open(link, (link.folder / "control.token").read_text()) == 204
        assert site.ask("POST", "/v1/fedmed/hello").status_code == 200
        site.activate()
        with running_task(link, control, tmp_path) as (grid, _):
            message_id = send(grid, site)
            message = site.read(site.pull())
            too_large = Message(make_content(DATA), reply_to=message)
            session, parts = site.announce(too_large)
            parts.popitem()  # the root
            sizes = sorted((len(content), name) for name, content in parts.items())
            sent = 0
            for size, name in sizes:
                if sent + size > 12 * 2**20:
                    with pytest.raises(httpx.HTTPStatusError, match="413"):
                        site.send_part(too_large, session, name, parts[name])
                else:
                    assert site.send_part(too_large, session, name, parts[name])
                    sent += size
            assert sent > 9 * 2**20  # two of five chunks, the shorter one first
            assert not site.send_part(too_large, "", name, parts[name])  # nothing without a session
            assert list(grid.pull_messages([message_id])) == []
        site.close()


def _open(link: Link, token: str) -> int:
    url = f"http://127.0.0.1:{link.private_port}/v1/fedmed/open"
    return httpx.post(url, headers={"authorization": f"Bearer {token}"}, trust_env=False).status_code


def test_a_site_cannot_instruct_another(link: Link, control: Control, site: Site, grid: DeploymentGrid) -> None:
    second = Site(link)
    control.sync_sites({"site_01": site.public_line, "site_02": second.public_line})
    second.activate()
    send(grid, site)
    message = site.read(site.pull())
    for forged in (
        Message(make_content(b"do this"), dst_node_id=second.node.node_id, message_type="train", ttl=50.0),
        Message(make_content(b"in its name"), reply_to=message),
    ):
        forged.metadata.__dict__["_run_id"] = grid.run.run_id
        forged.metadata.__dict__["_src_node_id"] = 1 if forged.metadata.reply_to_message_id == "" else site.node.node_id
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            second.announce(forged)
    second.close()


def test_an_endless_head_ends_the_connection(link: Link) -> None:
    import socket

    context = ssl.create_default_context(cafile=str(link.folder / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", link.public_port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        wrapped.sendall(b"POST /v1/fedmed/hello HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"EOF|reset|pipe"):  # and no answer, and no time-out
            wrapped.sendall(b"a: bcd\r\n" * 2_500_000)  # 20 MB

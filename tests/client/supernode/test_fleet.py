"""The line to the server: what goes over it, and what is said when it fails."""

import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree

from client.supernode import fleet as fleet_module
from client.supernode.failures import FleetError, Outlook, explain_status
from client.supernode.fleet import Download, Fleet
from fedmed.errors import ConfigError, ConnectionRefusedByServerError, KeyFileError, PolicyError
from fedmed.keys import fingerprint, read_public_key
from fedmed.processes import find_free_port
from tests.client.support.fake_fleet import NODE, RUN, FakeFleet, make_certificate, make_kit, proxying, serving


@pytest.fixture
def fake():
    return FakeFleet()


@pytest.fixture
def port(fake, tmp_path):
    with serving(fake, make_certificate(tmp_path)) as port:
        yield port


@pytest.fixture
def fleet(port, tmp_path):
    with Fleet(make_kit(tmp_path, port)) as fleet:
        yield fleet


def make_objects(*contents):
    return {hashlib.sha256(content).hexdigest(): content for content in contents}


def download(max_bytes=2**30, seconds=20.0):
    return Download(NODE, RUN, max_bytes, time.monotonic() + seconds)


def expect_failure(call, outlook, *words):
    with pytest.raises(FleetError) as caught:
        call()
    assert caught.value.outlook is outlook, str(caught.value)
    assert isinstance(caught.value, ConnectionRefusedByServerError)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


class TestRequests:
    def test_a_site_comes_and_goes(self, fake, fleet, tmp_path):
        assert fleet.activate() == NODE
        assert fleet.send_heartbeat(NODE)
        fleet.deactivate(NODE)
        activation, heartbeat, deactivation = fake.requests
        assert (activation.heartbeat_interval, heartbeat.heartbeat_interval) == (30, 30)
        assert activation.public_key.startswith(b"-----BEGIN PUBLIC KEY-----")
        assert (heartbeat.node.node_id, deactivation.node_id) == (NODE, NODE)
        assert fleet.fingerprint == fingerprint(read_public_key(tmp_path / "site.pub"))

    def test_a_message_is_announced(self, fake, fleet):
        assert fleet.pull_message(NODE) == fleet_module.Pulled(None, None, None)
        message = ProtoMessage(metadata=Metadata(run_id=RUN, message_type="train"))
        tree = ObjectTree(object_id="a" * 64)
        from flwr.proto.fleet_pb2 import PullMessagesResponse

        fake.on_pull_messages = lambda request: PullMessagesResponse(
            messages_list=[message], message_object_trees=[tree]
        )
        pulled = fleet.pull_message(NODE)
        assert (pulled.message, pulled.tree) == (message, tree)
        assert fleet.get_app(NODE, RUN) == "fedmed/fedmed"
        fleet.confirm(NODE, RUN, "a" * 64)
        assert fake.requests[-1].message_object_id == "a" * 64

    def test_the_release_is_read_from_the_header(self, fake, fleet):
        fake.headers = {"x-fedmed-release": "ab" * 32}
        assert fleet.pull_message(NODE).release == "ab" * 32
        fake.headers = {}
        assert fleet.pull_message(NODE).release is None

    def test_our_own_requests(self, fake, fleet, tmp_path):
        fake.files["manifest.json"] = b"{}" * 200_000
        assert fleet.hello() == {"round": 3}
        fleet.download_release("manifest.json", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == fake.files["manifest.json"]
        fleet.report_collected("ab" * 32)
        assert fake.requests == [{"manifest_sha256": "ab" * 32}]
        expect_failure(lambda: fleet.download_release("other", tmp_path / "other"), Outlook.FATAL, "404")
        assert not (tmp_path / "other").exists()

    def test_a_reply_is_pushed(self, fake, fleet):
        fake.on_push_messages_seen = []
        wanted, session = fleet.push_message(NODE, ProtoMessage(), ObjectTree(object_id="b" * 64), 1.5)
        assert (wanted, session) == (["b" * 64], "session-1")
        assert list(fake.requests[0].clientapp_runtime_list) == [1.5]
        objects = make_objects(b"one", b"two", bytes(6_000_000))
        fleet.push_objects(NODE, RUN, session, objects)
        assert sorted(fake.stored) == sorted(objects)
        expect_failure(lambda: fleet.push_objects(NODE, RUN, "old", objects), Outlook.RETRY, "again")

    def test_a_release_that_is_larger_than_announced_is_cut_off(self, fake, fleet, tmp_path):
        fake.files["model"] = bytes(300_000)
        fleet.download_release("model", tmp_path / "copy", 300_000)
        assert (tmp_path / "copy").stat().st_size == 300_000
        expect_failure(
            lambda: fleet.download_release("model", tmp_path / "large", 299_999),
            Outlook.FATAL,
            "large of the release is larger than 299999 bytes",
        )
        assert not (tmp_path / "large").exists()
        endless = b"10000\r\n" + bytes(2**16) + b"\r\n"  # of unknown length; the last chunk never comes
        fake.answer_with("model", 200, endless * 4, **CHUNKED)
        expect_failure(
            lambda: fleet.download_release("model", tmp_path / "large", 10**5), Outlook.FATAL, "100000 bytes"
        )
        assert not (tmp_path / "large").exists()

    def test_a_release_that_is_forbidden_is_explained(self, fake, fleet, tmp_path):
        fake.answer_with("model", 403, b"<html>Forbidden by policy</html>")
        expect_failure(lambda: fleet.download_release("model", tmp_path / "x"), Outlook.RETRY_SLOWLY, "firewall")

    @pytest.mark.parametrize("value", ["", "../../etc", "AB" * 32, "ab" * 33])
    def test_a_release_is_named_by_a_hash(self, fake, fleet, value):
        fake.headers = {"x-fedmed-release": value}
        assert fleet.pull_message(NODE).release is None

    @pytest.mark.parametrize("body", [b"[1]", b"[" * 100_000, b'"text"'])
    def test_a_greeting_of_another_form(self, fake, fleet, body):
        fake.hello = body
        expect_failure(fleet.hello, Outlook.FATAL, "not flower-server")


CHUNKED = {"transfer-encoding": "chunked", "content-length": None}
HELLO = b'{"round": 3}'
IN_CHUNKS = b"c\r\n" + HELLO + b"\r\n0\r\n\r\n"


class TestAnswers:
    """What an answer says of itself before it is read."""

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            (IN_CHUNKS, CHUNKED),
            (IN_CHUNKS, CHUNKED | {"content-length": "12"}),
            (HELLO, {"content-length": None, "connection": "close"}),
            (gzip.compress(HELLO, mtime=0), {"content-encoding": "gzip"}),
            (zlib.compress(HELLO), {"content-encoding": "Deflate"}),
            (HELLO, {"content-encoding": "identity, gzip"}),
            (HELLO, {"content-length": str(64 * 2**20 + 1)}),
            (HELLO, {"content-length": "9" * 30}),
        ],
    )
    def test_packed_or_of_unknown_length_or_too_large(self, fake, fleet, body, headers):
        fake.answer_with("hello", 200, body, **headers)
        expect_failure(fleet.hello, Outlook.RETRY, "was cut")
        assert fleet.hello() == {"round": 3}  # over a new connection

    def test_a_packed_file(self, fake, fleet, tmp_path):
        fake.answer_with("model", 200, gzip.compress(bytes(10**6), mtime=0), **{"content-encoding": "gzip"})
        expect_failure(lambda: fleet.download_release("model", tmp_path / "copy"), Outlook.RETRY)
        assert not (tmp_path / "copy").exists()

    def test_plain_answers(self, fake, fleet, tmp_path):
        fake.answer_with("hello", 200, HELLO, **{"content-encoding": "identity"})
        assert fleet.hello() == {"round": 3}
        fake.answer_with("collected", 204, **{"content-length": None})
        fleet.report_collected("ab" * 32)
        fake.answer_with("model", 200, IN_CHUNKS, **CHUNKED)
        fleet.download_release("model", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == HELLO

    def test_the_status_of_an_error_is_told_whatever_comes_with_it(self, fake, fleet):
        fake.answer_with("hello", 503, IN_CHUNKS, **CHUNKED)
        expect_failure(fleet.hello, Outlook.RETRY, "HTTP 503")
        fake.date_offset_s = -60.0
        fake.answer_with("hello", 401, gzip.compress(bytes(10**6), mtime=0), **{"content-encoding": "gzip"})
        expect_failure(fleet.hello, Outlook.UNKNOWN_SITE, "ahead of")


class TestObjects:
    def test_objects_arrive(self, fake, fleet):
        fake.objects = make_objects(*(os.urandom(200_000) for _ in range(20)))
        got = download()
        fleet.pull_objects(got, list(fake.objects))
        assert got.objects == fake.objects
        assert fake.calls["pull-object"] == 20

    def test_what_is_there_is_not_fetched_again(self, fake, fleet):
        fake.objects = make_objects(*(bytes([number]) * 1000 for number in range(12)))
        fake.answer_with("pull-object", 503, times=2)
        got = download()
        expect_failure(lambda: fleet.pull_objects(got, list(fake.objects)), Outlook.RETRY, "503")
        before = len(got.objects)
        calls = fake.calls["pull-object"]
        fleet.pull_objects(got, list(fake.objects))
        assert got.objects == fake.objects
        assert fake.calls["pull-object"] - calls == 12 - before

    def test_objects_that_are_still_uploaded_are_waited_for(self, fake, fleet):
        fake.objects = make_objects(b"late")
        fake.not_yet.update(dict.fromkeys(fake.objects, 3))
        got = download()
        begin = time.monotonic()
        fleet.pull_objects(got, list(fake.objects))
        assert got.objects == fake.objects
        assert 0.07 <= time.monotonic() - begin < 3  # 10 + 20 + 40 ms

    def test_waiting_for_them_ends(self, fake, fleet):
        fake.objects = make_objects(b"late")
        fake.not_yet.update(dict.fromkeys(fake.objects, 10**6))
        got = download(seconds=0.2)
        expect_failure(lambda: fleet.pull_objects(got, list(fake.objects)), Outlook.RUN_OVER)

    def test_an_object_that_is_gone(self, fleet):
        expect_failure(lambda: fleet.pull_objects(download(), ["c" * 64]), Outlook.RUN_OVER, "no longer")

    def test_a_damaged_object_is_not_taken(self, fake, fleet):
        fake.objects = {"d" * 64: b"something else"}
        got = download()
        expect_failure(lambda: fleet.pull_objects(got, list(fake.objects)), Outlook.RETRY, "damaged")
        assert got.objects == {}

    def test_more_than_allowed_is_refused_before_all_of_it_has_arrived(self, fake, fleet):
        fake.objects = make_objects(*(os.urandom(2**20) for _ in range(40)))
        with pytest.raises(PolicyError, match=r"policy.max_message_mib: 3\)"):
            fleet.pull_objects(download(max_bytes=3 * 2**20), list(fake.objects))
        assert fake.calls["pull-object"] < 20

    def test_an_answer_that_would_fill_the_memory_is_not_read(self, fake, fleet):
        fake.headers = {"content-length": str(10**10)}
        expect_failure(lambda: fleet.pull_message(NODE), Outlook.RETRY)


class TestRefusals:
    def test_an_unknown_site(self, fake, fleet):
        fake.answer_with("activate-node", 401)
        failure = expect_failure(
            fleet.activate, Outlook.UNKNOWN_SITE, fleet.fingerprint, "--add-site", "revoked", "clock"
        )
        assert not failure.is_passing

    @pytest.mark.parametrize(("offset", "words"), [(-60, "60 s ahead of"), (400, "400 s behind")])
    def test_a_wrong_clock(self, fake, fleet, offset, words):
        fake.date_offset_s = offset
        fake.answer_with("activate-node", 401)
        text = str(expect_failure(fleet.activate, Outlook.UNKNOWN_SITE, "clock", "NTP"))
        assert words in text.replace("61 s", "60 s").replace("399 s", "400 s")

    def test_an_answer_that_was_held_back_says_nothing_of_the_clock(self):
        """The server dates an answer when the request arrives: 16 s ago, when this site signed it."""
        then = datetime.now(UTC) - timedelta(seconds=16)
        request = httpx.Request("POST", "https://server/", headers={TIMESTAMP_HEADER: then.isoformat()})
        response = httpx.Response(401, headers={"date": format_datetime(then, usegmt=True)}, request=request)
        assert "revoked" in str(explain_status(response, "server", "SHA256:key"))

    def test_a_run_is_asked_for_again_each_time(self, fake, fleet):
        assert fleet.get_app(NODE, RUN) == fleet.get_app(NODE, RUN) == "fedmed/fedmed"
        assert fake.calls["get-run"] == 1
        fake.answer_with("get-run", 403, json.dumps({"code": 2007, "detail": "The run has finished."}).encode())
        expect_failure(lambda: fleet.check_run(NODE, RUN), Outlook.RUN_OVER)

    def test_a_run_that_is_over(self, fake, fleet):
        fake.answer_with("get-run", 403, json.dumps({"code": 2007, "detail": "The run has finished."}).encode())
        expect_failure(lambda: fleet.get_app(NODE, RUN), Outlook.RUN_OVER)

    def test_a_firewall_that_forbids(self, fake, fleet):
        fake.answer_with("get-run", 403, b"<html>Forbidden by policy</html>")
        expect_failure(lambda: fleet.get_app(NODE, RUN), Outlook.RETRY_SLOWLY, "firewall")

    @pytest.mark.parametrize(
        ("status", "outlook"),
        [
            (412, Outlook.NOT_ACTIVATED),
            (413, Outlook.RETRY_SLOWLY),
            (500, Outlook.RETRY),
            (503, Outlook.RETRY),
            (429, Outlook.RETRY),
            (404, Outlook.FATAL),
        ],
    )
    def test_other_answers(self, fake, fleet, status, outlook):
        fake.answer_with("activate-node", status)
        expect_failure(fleet.activate, outlook)

    def test_redirects_are_not_followed(self, fake, fleet):
        fake.answer_with("activate-node", 307, location="https://elsewhere.invalid/")
        expect_failure(fleet.activate, Outlook.FATAL, "307")

    def test_something_else_that_listens_there(self, fake, fleet):
        fake.answer_with("activate-node", 200, b"<html>hello</html>")
        expect_failure(fleet.activate, Outlook.FATAL, "not flower-server")
        fake.hello = b"<html>"
        expect_failure(fleet.hello, Outlook.FATAL, "not flower-server")


class TestConnection:
    def test_nothing_listens(self, tmp_path):
        make_certificate(tmp_path)
        with Fleet(make_kit(tmp_path, find_free_port())) as fleet:
            expect_failure(fleet.activate, Outlook.RETRY, "Nothing listens at 127.0.0.1:")

    def test_an_unknown_name(self, tmp_path):
        make_certificate(tmp_path)
        with Fleet(make_kit(tmp_path, 443, host="fedmed.invalid")) as fleet:
            expect_failure(fleet.activate, Outlook.RETRY, "No address is known for fedmed.invalid:443", "DNS")

    def test_a_connection_cut_within_the_handshake_is_tried_again(self, tmp_path):
        make_certificate(tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def cut():
                listener.accept()[0].close()

            thread = threading.Thread(target=cut)
            thread.start()
            with Fleet(make_kit(tmp_path, listener.getsockname()[1])) as fleet:
                assert expect_failure(fleet.activate, Outlook.RETRY).is_passing
            thread.join()

    def test_a_connection_cut_within_an_answer_is_tried_again(self, fake, fleet):
        fake.answer_with("activate-node", 200, b"ab", **{"content-length": "5", "connection": "close"})
        expect_failure(fleet.activate, Outlook.RETRY, "cut")

    def test_a_server_of_another_authority(self, port, tmp_path):
        other = tmp_path / "other"
        make_certificate(other)
        with Fleet(make_kit(other, port)) as fleet:
            expect_failure(fleet.activate, Outlook.FATAL, "not signed by the authority", "'ca'", "exempt")

    def test_a_certificate_that_has_expired(self, fake, tmp_path):
        certificate = make_certificate(tmp_path, days=10, now=datetime.now(UTC) - timedelta(days=20))
        with serving(fake, certificate) as port, Fleet(make_kit(tmp_path, port)) as fleet:
            failure = expect_failure(fleet.activate, Outlook.RETRY_SLOWLY, "has expired", "renew")
            assert failure.is_passing

    def test_a_certificate_for_another_name(self, fake, tmp_path):
        certificate = make_certificate(tmp_path, ("fedmed.example.org",))
        with serving(fake, certificate) as port, Fleet(make_kit(tmp_path, port)) as fleet:
            expect_failure(fleet.activate, Outlook.FATAL, "another name than '127.0.0.1'", "alternative_names")

    def test_a_server_without_tls(self, fake, tmp_path):
        make_certificate(tmp_path)
        with serving(fake, None) as port:
            with Fleet(make_kit(tmp_path, port)) as fleet:
                expect_failure(fleet.activate, Outlook.RETRY, "TLS")
            with Fleet(make_kit(tmp_path, port, "insecure: true\n")) as fleet:
                assert fleet.activate() == NODE  # signed all the same: the fake checks it

    def test_authorities_and_proxies_of_the_environment_are_not_used(self, port, tmp_path, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # never for the loopback interface
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        with Fleet(make_kit(tmp_path, port)) as fleet:
            assert fleet.activate() == NODE

    @pytest.mark.parametrize("content", [None, "no certificate"])
    def test_an_authority_that_cannot_be_read(self, tmp_path, content):
        if content:
            (tmp_path / "ca.pem").write_text(content)
        with pytest.raises(KeyFileError, match=r"ca.pem, the file 'ca' of client.yaml, .* of the kit"):
            Fleet(make_kit(tmp_path, 443))

    def test_a_key_that_others_can_read(self, tmp_path):
        make_certificate(tmp_path)
        config = make_kit(tmp_path, 443)
        (tmp_path / "site.key").chmod(0o644)
        with pytest.raises(KeyFileError, match="chmod 600"):
            Fleet(config)


class TestProxy:
    def test_through_the_proxy_of_the_settings(self, fake, port, tmp_path):
        with (
            proxying() as (proxy, heads),
            Fleet(make_kit(tmp_path, port, f"proxy: http://127.0.0.1:{proxy}\n")) as fleet,
        ):
            assert fleet.activate() == NODE
            assert heads[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1")
            assert "authorization" not in heads[0].lower()

    def test_through_the_proxy_of_the_environment_with_a_password(self, fake, tmp_path, monkeypatch):
        certificate = make_certificate(tmp_path, ("fedmed.localtest",))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with serving(fake, certificate) as port, proxying("407 Proxy Authentication Required") as (proxy, heads):
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass-word@127.0.0.1:{proxy}")
            with Fleet(make_kit(tmp_path, port, host="fedmed.localtest")) as fleet:
                failure = expect_failure(fleet.activate, Outlook.FATAL, f"127.0.0.1:{proxy}", "HTTPS_PROXY")
            assert "proxy-authorization: basic dXNlcjpwYXNzLXdvcmQ=" in heads[0].replace("Basic", "basic").replace(
                "Proxy-Authorization", "proxy-authorization"
            )
            assert "pass-word" not in f"{failure} {failure!r}"

    def test_a_proxy_that_refuses(self, port, tmp_path):
        with (
            proxying("403 Forbidden") as (proxy, _),
            Fleet(make_kit(tmp_path, port, f"proxy: http://127.0.0.1:{proxy}\n")) as fleet,
        ):
            expect_failure(fleet.activate, Outlook.RETRY, f"The proxy 127.0.0.1:{proxy} does not connect", "403")

    @pytest.mark.parametrize("url", ["socks5://u:pass-word@h:1", "http://", "http://u:pass-word@h:port"])
    def test_what_is_no_proxy(self, tmp_path, monkeypatch, url):
        make_certificate(tmp_path)
        monkeypatch.setenv("HTTPS_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ConfigError, match="HTTPS_PROXY names no HTTP proxy") as caught:
            Fleet(make_kit(tmp_path, 443, host="fedmed.localtest"))
        assert "pass-word" not in str(caught.value)

    def test_a_proxy_that_is_not_there(self, port, tmp_path):
        nobody = find_free_port()
        with Fleet(make_kit(tmp_path, port, f"proxy: http://127.0.0.1:{nobody}\n")) as fleet:
            expect_failure(fleet.activate, Outlook.RETRY, f"the proxy 127.0.0.1:{nobody}")


def test_no_torch_in_the_process_that_talks_to_the_network():
    code = (
        "import sys, client.supernode.supernode, client.supernode.fleet\n"
        "assert not {'torch', 'server', 'ray'} & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

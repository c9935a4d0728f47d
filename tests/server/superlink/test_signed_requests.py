"""A request counts once, as it was signed, and for a while."""

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import server.superlink.admission
from client.supernode.failures import Outlook, explain_status
from client.supernode.signature import RequestSignature
from fedmed.protocol.signing import REFUSALS
from server.superlink.admission import UsedNonces
from tests.server.superlink.test_gate import KEY, PULL, FakeApp, Gates, Request, sign

PART = "/v1/fleet/push-object"
HELLO = "/v1/fedmed/hello"
WINDOW_S = 305.0  # Flower's tolerance, 300 s, and 5 s for clocks


def ask(gates: Gates, path: str, body: bytes, headers: list[tuple[bytes, bytes]], method: str = "POST") -> Request:
    return asyncio.run(Request(path, body, headers, method).run(gates.public))


def explain(request: Request) -> tuple[str, Outlook]:
    """What the site reads of an answer."""
    headers = [(name, value) for name, value in request.headers.items()]
    answer = httpx.Response(request.status, headers=headers, content=b"", request=httpx.Request("POST", "https://s"))
    error = explain_status(answer, "server:1", "SHA256:x")
    assert "\n" not in str(error)
    return str(error), error.outlook


def test_a_recorded_request_is_refused_on_both_sides(tmp_path: Path) -> None:
    gates, headers = Gates(tmp_path, app := FakeApp(b"message")), sign()
    assert ask(gates, PULL, b"ask", headers).status == 200
    again = ask(gates, PULL, b"ask", headers)
    assert again.status == 401
    assert len(app.requests) == 1
    assert [line["reason"] for line in gates.refused()] == ["it is the repetition of an earlier request"]
    text, outlook = explain(again)
    assert "came there before" in text
    assert outlook is Outlook.RETRY
    assert ask(gates, PULL, b"ask", sign()).status == 200


@pytest.mark.parametrize(
    ("path", "query", "method", "body"),
    [
        ("/v1/fleet/push-messages", b"", "POST", b"ask"),
        (HELLO, b"", "POST", b"ask"),
        (PULL, b"a=b", "POST", b"ask"),
        (PULL, b"", "GET", b"ask"),
        (PULL, b"", "PUT", b"ask"),
    ],
)
def test_what_was_signed_for_one_request_is_of_no_use_for_another(
    tmp_path: Path, path: str, query: bytes, method: str, body: bytes
) -> None:
    gates = Gates(tmp_path, app := FakeApp(b"x"))
    request = Request(path, body, sign(path=PULL, body=b"ask"), method)
    request.scope["query_string"] = query
    asyncio.run(request.run(gates.public))
    assert request.status == 401
    assert app.requests == []
    assert "method, path or body were changed" in gates.refused()[0]["reason"]
    assert "something on the way changed it" in explain(request)[0]


@pytest.mark.parametrize("path", [PULL, "/v1/fleet/push-messages", PART, "/v1/fleet/pull-object", HELLO,
                                  "/v1/fedmed/collected", "/v1/fleet/activate-node"])  # fmt: skip
def test_another_body_than_the_signed_one_reaches_nobody(tmp_path: Path, path: str) -> None:
    gates = Gates(tmp_path, app := FakeApp(b"x"))
    body = json.dumps({"manifest_sha256": "ab" * 32}).encode()
    changed = ask(gates, path, body.replace(b"a", b"c"), sign(path=path, body=body))
    assert changed.status == 401
    assert app.requests == []
    assert list((tmp_path / "collected").iterdir()) == []
    assert gates.state.part == b""
    assert [line["reason"] for line in gates.refused()] == ["its body is not the one that was signed"]
    assert "because the body is not what this site has signed" in explain(changed)[0]


def test_a_body_is_compared_over_all_of_its_blocks(tmp_path: Path) -> None:
    blocks = [b"a" * 70_000, b"b" * 70_000, b"c"]

    class Blocks(Request):
        async def receive(self) -> Any:
            return {"type": "http.request", "body": self.left.pop(0), "more_body": bool(self.left)}

    gates = Gates(tmp_path, FakeApp(b"x"))
    for change in (None, 0, 1, 2):
        request = Blocks("/v1/fedmed/hello", headers=sign(path=HELLO, body=b"".join(blocks)))
        request.left = [block[:-1] + b"x" if number == change else block for number, block in enumerate(blocks)]
        asyncio.run(request.run(gates.public))
        assert request.status == (200 if change is None else 401)


def test_the_query_is_part_of_what_is_signed(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    request = Request(PULL, headers=sign(path=f"{PULL}?a=%20b"))
    request.scope |= {"query_string": b"a=%20b", "raw_path": PULL.encode()}
    assert asyncio.run(request.run(gates.public)).status == 200


def test_the_clients_own_signature_is_taken_once(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    signature = RequestSignature(KEY)
    request = httpx.Request("POST", f"https://server:1{HELLO}?a=b%20c", content=b"{}")
    signed = next(signature.auth_flow(request))
    headers = [(name.lower(), value) for name, value in signed.headers.raw if name.lower() != b"content-length"]
    for status in (200, 401):
        sent = Request(HELLO, b"{}", headers)
        sent.scope |= {"query_string": b"a=b%20c", "raw_path": HELLO.encode()}
        assert asyncio.run(sent.run(gates.public)).status == status


def test_a_client_of_before_is_told_to_install_the_same_version(tmp_path: Path) -> None:
    gates = Gates(tmp_path, app := FakeApp(b"x"))
    old = ask(gates, PULL, b"ask", sign()[:3])
    assert old.status == 426
    assert app.requests == []
    assert "both sides need the same version of fedmed" in gates.refused()[0]["reason"]
    assert "install the version of fedmed of the coordinating site" in json.loads(old.body)["detail"]
    text, outlook = explain(old)
    assert "Install the same version on both sides" in text
    assert outlook is Outlook.FATAL


def test_every_refusal_has_a_line_for_the_site() -> None:
    for problem, refusal in REFUSALS.items():
        answer = httpx.Response(
            refusal.status,
            headers={"x-fedmed-problem": problem},
            json={"detail": refusal.detail},
            request=httpx.Request("POST", "https://s"),
        )
        text = str(explain_status(answer, "server:1", "SHA256:x"))
        assert "{" not in text
        assert "\n" not in text
        assert any(
            word in text for word in ("Ask IT", "Install", "perhaps a proxy", "NTP", "Read this fingerprint", "Put ")
        )


# The memory


def test_a_number_counts_once_for_each_site() -> None:
    nonces = UsedNonces(started=0.0)
    assert [nonces.use(1, "a", 10.0), nonces.use(2, "a", 10.0), nonces.use(1, "b", 10.0)] == [None] * 3
    assert [nonces.use(1, "a", 10.0), nonces.use(1, "a", 11.0), nonces.use(2, "a", 9.0)] == ["replayed"] * 3


def test_a_site_fills_its_own_memory_only_and_nothing_becomes_usable_again() -> None:
    nonces = UsedNonces(started=0.0, most=100)
    nonces.use(2, "of another site", 1.0)
    for number in range(1000):
        assert nonces.use(1, f"{number}", 100.0 + 0.01 * number) is None
    assert (nonces.count(1), nonces.count(2)) == (100, 1)
    # 0 to 899 are forgotten as numbers, and refused as too old: also ones that were never used.
    assert {nonces.use(1, f"{number}", 100.0 + 0.01 * number) for number in range(1000)} == {"replayed"}
    assert nonces.use(1, "new", 100.0 + 0.01 * 899) == "replayed"
    assert nonces.use(1, "new", 100.0 + 0.01 * 899 + 0.001) is None
    assert nonces.use(2, "of another site", 1.0) == "replayed"
    assert nonces.use(2, "new", 1.0) is None


def test_the_memory_of_a_site_stays_under_three_megabytes() -> None:
    nonces = UsedNonces(started=0.0)
    tracemalloc.start()
    for number in range(30_000):
        nonces.use(1, f"{number:032x}", 1.0 + number)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 3 * 2**20


def test_numbers_expire_and_their_requests_with_them() -> None:
    nonces = UsedNonces(started=0.0)
    assert nonces.use(1, "a", 1.0) is None
    assert nonces.use(1, "b", 2.0 + 2 * WINDOW_S) is None
    assert nonces.count(1) == 1
    assert nonces.use(1, "a", 1.0) == "replayed"  # even if this machine's clock were set back


def test_what_was_signed_before_the_server_started_is_refused_until_it_is_signed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was started again does not know what came before."""
    gates = Gates(tmp_path, FakeApp(b"x"))
    early = ask(gates, PULL, b"ask", sign(age_s=60))
    assert (early.status, early.headers[b"retry-after"]) == (503, b"1")
    text, outlook = explain(early)
    assert "started a moment ago" in text
    assert outlook is Outlook.RETRY
    monkeypatch.setattr(gates.public, "_nonces", UsedNonces(0.0))
    assert ask(gates, PULL, b"ask", sign(age_s=60)).status == 200


def test_strangers_leave_nothing_in_the_memory(tmp_path: Path) -> None:
    gates = Gates(tmp_path, FakeApp(b"x"))
    stranger = ec.generate_private_key(ec.SECP384R1())
    for headers in (sign(stranger), sign(age_s=400), sign(path="/other"), sign()[:5]):
        ask(gates, PULL, b"ask", headers)
    assert gates.public._nonces._heaps == {}
    assert server.superlink.admission.MAX_NONCES_PER_SITE == 8192

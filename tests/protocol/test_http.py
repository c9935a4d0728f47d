"""Both sides of our own questions agree, since they read the same names."""

import ast
from pathlib import Path

import httpx

from client.supernode import connection, fleet
from fedmed.protocol import http, release
from server.superlink import gate

ROOT = Path(__file__).resolve().parents[2]


def test_a_site_waits_longer_than_the_server_holds_its_answer_back() -> None:
    """And the server holds back for less than any request may take, so that no proxy of a site's ends it first."""
    assert gate.HOLD_S == 20
    assert fleet._READ_TIMEOUTS_S["/flwr.proto.Fleet/PullMessages"] == 35
    assert gate.RELEASED_HOLD_S < gate.HOLD_S < http.PULL_TIMEOUT_S
    timeout: httpx.Timeout = connection._TIMEOUT
    assert timeout.read is not None
    assert timeout.read > http.HOLD_S


def test_names_that_cross_the_network_are_written_once() -> None:
    """Paths, header, names of the release's files and patterns stand in these two modules alone.

    Not so in programs that lie beside a released model and import nothing of ours, and for the names that a run's own
    folders have in common with a release's.
    """
    paths = {http.OWN_PATHS, http.HELLO_PATH, http.RELEASE_PATH, http.COLLECTED_PATH, http.DROP_PATH, http.OPEN_PATH}
    files = {*release.MODEL_FILES, release.MANIFEST_FILE, release.SIGNATURE_FILE, release.CARD_FILE}
    texts = {*paths, http.RELEASE_HEADER, release.SHA256.pattern, *files}
    ours = {"fedmed/protocol/http.py", "fedmed/protocol/release.py"}
    apart = {"fedmed/predict.py", "fedmed/export/torch_loader.py"}
    found = {
        (path.relative_to(ROOT).as_posix(), node.value)
        for folder in ("fedmed", "server", "client")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in ours | apart
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in texts
    }
    kept = {
        ("fedmed/storage/checkpoints.py", release.MODEL_FILE),
    }
    assert found <= kept


def test_patterns_take_the_whole_text() -> None:
    assert release.SHA256.fullmatch("0123456789abcdef" * 4)
    for wrong in ("", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"):
        assert release.SHA256.fullmatch(wrong) is None
    for name in release.MODEL_FILES:
        assert release.PLAIN_NAME.fullmatch(name)
    for wrong in ("", ".", "..", "../a", "a/b", "a\\b", "-a", "a" * 101, "a\n"):
        assert release.PLAIN_NAME.fullmatch(wrong) is None

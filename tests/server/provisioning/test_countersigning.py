"""Each side keeps how far the other's audit log went: what is changed, cut or deleted is found, at both."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.app import main as client_main
from client.guard.heads import verify_site
from fedmed.errors import RunFolderError
from fedmed.keys import make_site_key, read_private_key
from fedmed.keys.statements import is_signed_by, sign_statement
from fedmed.protocol.heads import LogHead, SignedHeads, read_stored, store_heads, went_back
from fedmed.protocol.kinds import HEADS, KINDS, REPORT
from fedmed.protocol.messages import add_heads, has_heads, read_signed_heads
from fedmed.storage.run_folder import RunFolder
from server.app import main as server_main
from server.provisioning.countersigning import read_countersigned, site_file, verify_run_audit
from tests.support.signed_logs import NAME, SignedLogs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SignedLogs:
    """Two sides after four messages, whose files are only read."""
    logs = SignedLogs(tmp_path_factory.mktemp("finished"))
    for _ in range(4):
        logs.ask()
    return logs


@pytest.fixture
def logs(tmp_path: Path) -> SignedLogs:
    """Two sides that have exchanged four messages."""
    logs = SignedLogs(tmp_path)
    for _ in range(4):
        logs.ask()
    return logs


def verify_server(logs: SignedLogs) -> Any:
    return verify_run_audit(logs.run, None, {NAME: logs.entry})


def cut(path: Path, number: int = 2) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-number]))


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"kind":"local"', b'"kind":"query"', 1))


def test_each_side_keeps_what_the_other_has_signed(logs: SignedLogs) -> None:
    reply = logs.ask()
    assert set(reply.content) == {REPORT, HEADS}
    assert set(json.loads(str(reply.content[HEADS]["json"]))) <= KINDS["local"].leaving[HEADS]
    kept_here = list(read_stored(logs.site.state / "countersigned.jsonl"))
    kept_there = read_countersigned(logs.run)[NAME]
    assert len(kept_here) == len(kept_there) == 5
    for own, others in zip(kept_there, kept_here, strict=True):
        assert own.heads.seen == others.heads.own, "the site has signed what it was shown"
    assert [one.heads.seen for one in kept_here[1:]] == [one.heads.own for one in kept_there[:-1]]
    last = kept_there[-1].heads
    assert last.own.length == len(logs.site.audit()) - 1, "all but the entry about this answer itself"
    assert last.own.hash == logs.site.audit()[-2]["hash"]
    verdict, heads = verify_server(logs)
    assert verdict.ok
    assert (heads[0].length, heads[0].num_signed, heads[0].num_wrong) == (last.own.length, 5, 0)
    assert logs.verify().report.ok
    assert logs.findings() == ([], [])
    assert logs.notes == []


def remove_lines(state: Path) -> None:
    cut(state / "audit.jsonl", 3)
    last = json.loads((state / "audit.jsonl").read_text().splitlines()[-1])
    (state / "audit.head").write_text(last["hash"])


def remove_log(state: Path) -> None:
    (state / "audit.jsonl").unlink()


def remove_both(state: Path) -> None:
    (state / "audit.jsonl").unlink()
    (state / "audit.head").unlink()


def remove_head_and_end(state: Path) -> None:
    cut(state / "audit.jsonl", 3)
    (state / "audit.head").unlink()


def remove_head(state: Path) -> None:
    (state / "audit.head").unlink()


def remove_countersignatures(state: Path) -> None:
    (state / "countersigned.jsonl").unlink()


def cut_countersignatures(state: Path) -> None:
    cut(state / "countersigned.jsonl", 1)


def change_countersignature(state: Path) -> None:
    file = state / "countersigned.jsonl"
    file.write_text(file.read_text().replace('"length":3', '"length":4'))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda state: change(state / "audit.jsonl"), "It was changed"),
        (lambda state: cut(state / "audit.jsonl"), "its end was cut off"),
        (remove_lines, "the other side has countersigned"),
        (remove_log, "The log is missing"),
        (remove_both, "The log is missing"),
        (remove_head, "audit.head, which notes how far the log goes, is missing"),
        (remove_head_and_end, "the other side has countersigned"),
        (remove_countersignatures, "lines of it were removed"),
        (cut_countersignatures, "lines of it were removed"),
        (change_countersignature, "not signed with the server's key"),
    ],
)
def test_a_site_finds_what_was_done_to_its_log_without_a_network(
    finished: SignedLogs,
    tmp_path: Path,
    harm: Callable[[Path], None],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished.site.folder, tmp_path / "site")
    command = ["--config", str(tmp_path / "site" / "client.yaml"), "--verify-audit"]
    assert client_main(command) == 0
    assert "The server has countersigned it 4 times" in capsys.readouterr().out
    harm(tmp_path / "site" / "state")
    assert client_main(command) == 1
    assert reason in capsys.readouterr().out
    assert client_main([*command, "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]


def wipe(state: Path) -> None:
    for name in ("audit.jsonl", "audit.head", "countersigned.jsonl"):
        (state / name).unlink()


@pytest.mark.parametrize("harm", [remove_lines, remove_both, wipe])
def test_a_sites_log_that_does_not_go_on_is_told_at_both_sides(logs: SignedLogs, harm: Callable[[Path], None]) -> None:
    harm(logs.site.state)
    logs.start_site()
    logs.ask()
    own, others = logs.findings()
    assert any("its own log does not hold the entry that the other side has countersigned" in text for text in own)
    assert any(line for line in others if "north finds: its own log does not hold" in line)
    assert any("north finds: its own log does not hold" in note for note in logs.notes)
    is_shorter = harm is not remove_lines  # else it is longer again than it was, and only the site can tell
    assert any("This server finds about north" in note for note in logs.notes) == is_shorter
    told = len(logs.notes)
    logs.ask()
    assert len(logs.notes) == told, "it is told once"
    verdict, heads = verify_server(logs)
    assert verdict.ok, "nothing is wrong with the server's own log"
    assert any("its log was at entry" in text for text in heads[0].findings) == is_shorter
    assert any("its own log does not hold" in text for text in heads[0].findings)
    assert not logs.verify().report.ok, "the log that is there now is not the one that was countersigned"


def test_a_site_that_grows_its_new_log_longer_is_found_all_the_same(logs: SignedLogs) -> None:
    wipe(logs.site.state)
    logs.start_site()
    for _ in range(12):
        logs.site.ask("query")
    logs.ask()
    assert any("north finds: its own log does not hold" in note for note in logs.notes)


@pytest.mark.parametrize("number", [3, None])
def test_a_servers_log_that_does_not_go_on_is_told_at_both_sides(logs: SignedLogs, number: int | None) -> None:
    if number is None:
        logs.run.audit_file.unlink()
    else:
        cut(logs.run.audit_file, number)
    verdict, _ = verify_server(logs)
    assert not verdict.ok
    assert "countersigned" in str(verdict.reason)
    logs.start_server()
    logs.ask()
    own, others = logs.findings()
    assert ["the other side's log is shorter" in text for text in own] == [True]
    assert any("This server finds about north: its own log does not hold" in line for line in others)
    assert any("north finds: the other side's log is shorter" in line for line in others)
    assert logs.verify().report.ok, "nothing is wrong with the site's own log"


def test_a_server_that_wipes_all_is_reminded_by_its_sites(logs: SignedLogs) -> None:
    logs.run.audit_file.unlink()
    site_file(logs.run, NAME).unlink()
    logs.start_server()
    for number in range(30):
        logs.log.append("made_up", number=number)
    logs.ask()
    assert any("This server finds about north: its own log does not hold" in note for note in logs.notes)


WRONG: list[dict[str, Any]] = [
    {"own": LogHead(length=99, hash="1" * 64)},
    {"seen": None},
    {"site": "south"},
    {"run": "another"},
    {"by": "site"},
    {"signature": ""},
    {"signature": "A" * 88},
]


def test_a_wrong_signature_is_told_and_not_kept(logs: SignedLogs) -> None:
    for changes in WRONG:
        reply = logs.ask(**changes)
        assert set(reply.content) == {REPORT, HEADS}, "the round goes on"
        assert read_signed_heads(reply).finding == "wrong signature", changes
    assert len(list(read_stored(logs.site.state / "countersigned.jsonl"))) == 4
    assert ["is not signed with the key that belongs to it" in text for text in logs.findings()[0]] == [True]
    assert ["north finds: the other side's head is not signed" in note for note in logs.notes] == [True]
    logs.ask()
    assert logs.verify().report.ok


def test_a_site_cannot_sign_for_another_nor_send_what_cannot_be_read(logs: SignedLogs, tmp_path: Path) -> None:
    make_site_key(tmp_path / "other", "other")
    reply = logs.ask()
    heads = read_signed_heads(reply)
    forged = heads.model_copy(update={"own": LogHead(length=10_000, hash="2" * 64)})
    forged = forged.signed(sign_statement(read_private_key(tmp_path / "other" / "site.key"), forged.to_sign()))
    before = len(read_countersigned(logs.run)[NAME])
    reply.content = add_heads(reply.content, forged)
    logs.signer.take(NAME, reply)
    for values in ('{"by": 1}', "[]", "{", '{"signature": "' + "x" * 10**6 + '"}'):
        reply.content[HEADS]["json"] = values
        for _ in range(3):
            logs.signer.take(NAME, reply)
    assert len(read_countersigned(logs.run)[NAME]) == before
    assert [("not signed" in note, "cannot be read" in note) for note in logs.notes] == [(True, False), (False, True)]
    store_heads(site_file(logs.run, NAME), forged)
    verdict, kept = verify_server(logs)
    assert not verdict.ok
    assert "is not signed by that site" in str(verdict.reason)
    assert kept[0].num_wrong == 1


def test_the_command_lists_every_sites_last_head(
    logs: SignedLogs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "server.yaml"
    text = "address: 127.0.0.1:1\nsites: [north]\nclasses: [a, b]\nkeys: keys\nrun_dir: run\n"
    file.write_text(text)
    last = read_countersigned(logs.run)[NAME][-1].heads.own
    assert server_main(["--config", str(file), "--verify-audit"]) == 0
    told = capsys.readouterr().out
    assert f"north: entry {last.length} at " in told
    assert f"head {last.hash}; 4 signatures, all its own" in told
    assert server_main(["--config", str(file), "--verify-audit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"][0]["hash"] == last.hash


def test_a_side_without_heads_still_works(logs: SignedLogs) -> None:
    """A server of an earlier version sends none, and gets none; a site of an earlier version answers with none."""
    reply = logs.site.ask("train.local", plan={"benefit": True}, round=1)
    assert not has_heads(reply)
    logs.signer.take(NAME, reply)
    logs.ask()
    assert logs.findings() == ([], [])
    assert HEADS not in KINDS["query"].leaving


def test_without_the_sites_key_the_answer_goes_unsigned(logs: SignedLogs) -> None:
    (logs.site.folder / "site.key").unlink()
    assert not has_heads(logs.ask())


def test_a_line_torn_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    heads = SignedHeads(by="site", run="r", site=NAME, own=LogHead(length=1, hash="0" * 64))
    file = tmp_path / "a.jsonl"
    store_heads(file, heads)
    with file.open("a") as target:
        target.write('{"heads": {"by"')
    store_heads(file, heads.signed("x"))
    assert [one.heads.signature for one in read_stored(file)] == ["", "x"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_log_goes_back_when_it_is_shorter_or_another() -> None:
    old = LogHead(length=5, hash="a" * 64)
    assert not went_back(None, old)
    assert not went_back(old, old)
    assert not went_back(old, LogHead(length=6, hash="b" * 64))
    assert went_back(old, LogHead(length=5, hash="b" * 64))
    assert went_back(old, LogHead(length=4, hash="a" * 64))


def test_signature_of_a_statement_is_the_keys_and_the_statements(tmp_path: Path) -> None:
    make_site_key(tmp_path / "a", "a")
    make_site_key(tmp_path / "b", "b")
    line, other = ((tmp_path / name / "site.pub").read_text() for name in "ab")
    signature = sign_statement(read_private_key(tmp_path / "a" / "site.key"), b"text")
    assert is_signed_by(line, b"text", signature)
    assert not is_signed_by(other, b"text", signature)
    assert not is_signed_by(line, b"texu", signature)
    for wrong in ("", "ä", "A" * 50, "====", signature[:-4]):
        assert not is_signed_by(line, b"text", wrong)
    assert not is_signed_by("no key", b"text", signature)


def test_before_anything_was_answered_both_commands_say_when_there_will_be_a_log(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"yet: this site has answered nothing\. It begins with flower"):
        verify_site(tmp_path, tmp_path / "release.pub")
    run = RunFolder.create(tmp_path / "run", "resume")
    with pytest.raises(RunFolderError, match=r"yet: nothing was asked .*\. It begins when flower-server is started"):
        verify_run_audit(run, None, {})
    report, _ = verify_run_audit(run, "ab" * 32, {})  # a checkpoint names an entry
    assert (report.ok, report.reason) == (
        False,
        "The log is missing: it was deleted or moved away. Sites have countersigned none of its entries.",
    )

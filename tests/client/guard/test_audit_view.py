"""``flower-client --audit``: what was asked, what left, what was refused, from logs of every format."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.app import main
from client.guard.audit_view import audit_to_json, choose_rows, read_audit, render_audit
from fedmed.errors import ConfigError, FedmedError, RunFolderError
from fedmed.protocol.kinds import KINDS
from fedmed.storage.audit import AuditLog
from tests.client.support.hospital import HospitalSite

V1 = Path(__file__).parents[2] / "fixtures" / "v1" / "federation" / "kits" / "site_01" / "state"
LIMITS = {"suppression": {"k": 10, "k_row": 5}}


@pytest.fixture
def site(tmp_path: Path) -> HospitalSite:
    """A hospital that was asked four things, one of them in vain."""
    site = HospitalSite(tmp_path, policy=LIMITS | {"max_rounds": 4})
    site.ask("query")
    site.ask("train", site.model, round=1)
    site.ask("evaluate", site.model, round=1, part="test")
    with pytest.raises(FedmedError):
        site.ask("train", site.model, {"rounds": 50}, round=9)
    return site


def test_rows_say_what_was_asked_what_left_and_why_not(site: HospitalSite) -> None:
    rows, plans = read_audit(site.state)
    assert [row.asked for row in rows[1:]] == ["sites get ready", "training", "test", "training"]
    assert [row.result for row in rows] == ["", "answered", "answered", "answered", "refused"]
    assert [(row.round, row.part) for row in rows[1:]] == [(None, None), (1, None), (1, "test"), (9, None)]
    (sent,) = [entry for entry in site.events("sent") if entry["kind"] == "train" and "text" not in entry]
    assert rows[2].left == {part["name"]: part["bytes"] for part in sent["parts"]}
    assert "policy.max_rounds: found 50" in rows[4].why
    assert rows[2].request == {"plan": {"sha256": plans[0].sha256}, "round": 1}
    assert [plan.plan["rounds"] for plan in plans] == [4, 50]


def test_every_kind_and_part_has_its_words(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    phases = [(name, phase) for name, kind in KINDS.items() for phase in kind.phases]
    for name, phase in phases:
        log.append("received", kind=name, run="r", round=1, of=phase.part, parts=[])
        log.append("sent", kind=name, run="r", round=1, of=phase.part, parts=[])
    rows, _ = read_audit(tmp_path)
    assert [row.asked for row in rows] == [phase.title for _, phase in phases]


def test_table_is_what_a_person_reads(site: HospitalSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(site.file), "--audit"]) == 0
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if "2026" in line or "20" in line]
    assert [word in "".join(lines) for word in ("sites get ready", "training", "test", "refused")] == [True] * 4
    assert "first asked" in told
    assert "model tiny, 50 rounds of 1 epochs" in told
    assert told.rstrip().endswith(f"The chain holds: {len(site.audit())} entries.")
    assert main(["--config", str(site.file), "--audit", "--last", "1"]) == 0
    told = capsys.readouterr().out
    assert "sites get ready" not in told
    assert "4 earlier rows are not shown" in told


def test_json_has_the_same(site: HospitalSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(site.file), "--audit", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(audit_to_json(site.state))
    assert told["ok"]
    assert [row["result"] for row in told["rows"]] == ["", "answered", "answered", "answered", "refused"]


def test_since_takes_a_date_and_refuses_another_word(site: HospitalSite) -> None:
    rows, _ = read_audit(site.state)
    assert choose_rows(rows, since=rows[2].time) == rows[2:]
    assert choose_rows(rows, since="2999-01-01") == []
    assert choose_rows(rows, since="2000-01-01", last=2) == rows[-2:]
    assert choose_rows(rows, last=0) == []
    with pytest.raises(ConfigError, match="--since is 'yesterday'"):
        choose_rows(rows, since="yesterday")


def test_log_of_the_first_format_is_read() -> None:
    rows, plans = read_audit(V1)
    assert [row.result for row in rows].count("answered") == 11
    assert [row.asked for row in rows if row.result][:3] == ["sites get ready", "training", "validation"]
    assert plans == []
    assert "The chain holds: 26 entries." in render_audit(V1)


def test_unanswered_request_and_damaged_lines_are_told(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("received", kind="train", run="r", round=1, of=None, parts=[{"name": "model", "bytes": 2**21}])
    rows, _ = read_audit(tmp_path)
    assert [(row.result, row.came) for row in rows] == [("unanswered", {"model": 2**21})]
    with log.path.open("ab") as file:
        file.write(b"\xff[[[\n")
    assert len(read_audit(tmp_path)[0]) == 1
    assert "The chain is broken" in render_audit(tmp_path)
    with pytest.raises(RunFolderError, match=r"There is no audit log .* yet: this site has answered nothing"):
        read_audit(tmp_path / "none")


def test_a_withdrawal_is_a_row_once_in_logs_of_old_and_new(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    counts = {"listed": 1, "matched": 1, "images": {"train": 2}, "further": {"train": 9}}
    log.append("exclusions", **counts, salt="1")
    for number, salt in ((2, "2"), (2, "3"), (4, "4")):
        log.append("received", kind="train", run="r", round=1, of=None, parts=[])
        found = counts | {"images": {"train": number}, "lines": [], "salt": salt}
        log.append("sent", kind="train", run="r", round=1, of=None, parts=[], exclusions=found)
    rows, _ = read_audit(tmp_path)
    words = "images left out because patients withdrew"
    assert [row.asked for row in rows] == [words, "training", words, "training", "training", words]
    assert 'images: {"train": 4}' in rows[-1].why
    assert "salt" not in rows[0].why + rows[-1].why


@pytest.mark.parametrize("options", [["--last", "3"], ["--since", "2026-01-01"]])
def test_options_go_with_the_table(site: HospitalSite, options: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--config", str(site.file), *options])
    assert "--since and --last go with --audit" in capsys.readouterr().err

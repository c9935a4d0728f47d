"""The log holds what a hospital was asked, and what is refused cannot fill it."""

import contextlib
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord

from client.guard import message_log
from client.guard.message_log import MessageLog, count_unwritten, record_refusal
from client.guard.received import MOST_BYTES as LONGEST_REQUEST
from client.guard.received import RequestWriter
from fedmed.errors import FedmedError, PolicyError, WireError
from fedmed.protocol.messages import REQUEST
from fedmed.storage.audit import AuditLog, verify_audit
from tests.client.support.hospital import PLAN, HospitalSite

LIMITS = {"suppression": {"k": 10, "k_row": 5}}


def seal(plan: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_request_is_kept_as_it_came_and_its_plan_once(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=LIMITS)
    site.ask("query")
    site.ask("train", site.model, round=1)
    site.ask("train", site.model, {"seed": 4}, round=2, best_round=1)
    first, second, third = site.events("received")
    digest, other = seal(PLAN), seal(PLAN | {"seed": 4})
    assert first["request"] == {"plan": {"sha256": digest}}
    assert first["plans"] == {digest: PLAN}
    assert second["request"] == {"plan": {"sha256": digest}, "round": 1}
    assert "plans" not in second
    assert third["request"] == {"plan": {"sha256": other}, "round": 2, "best_round": 1}
    assert third["plans"] == {other: PLAN | {"seed": 4}}
    assert "model" not in json.dumps([third["request"], third["plans"][other]["seed"]])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"a": ' * 200 + "1" + "}" * 200,
        '{"a": NaN}',
        '{"a": "' + "x" * LONGEST_REQUEST + '"}',
        '{"a": 1e999}',
    ],
)
def test_what_is_too_long_or_unreadable_is_kept_as_length_and_hash(tmp_path: Path, text: str) -> None:
    site = HospitalSite(tmp_path, policy=LIMITS)
    message = site.message("query", None, {"plan": PLAN})
    message.content[REQUEST] = ConfigRecord({"json": text})
    with pytest.raises(WireError):
        site.send(message)
    (told,) = site.events("received")
    assert told["request"] == {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    assert site.restart().ask("query").content, "the log can be opened again"


def test_nested_second_plan_is_kept_by_its_hash(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=LIMITS)
    other = PLAN | {"model": {"name": "other"}}
    values = {"plan": PLAN, "round": 1, "other": {"name": "teacher", "plan": other, "sha256": "0" * 64}}
    told = RequestWriter().write(site.message("query", None, values))
    assert told["request"] == values | {
        "plan": {"sha256": seal(PLAN)},
        "other": {"name": "teacher", "plan": {"sha256": seal(other)}, "sha256": "0" * 64},
    }
    assert told["plans"] == {seal(PLAN): PLAN, seal(other): other}


def ask_in_vain(site: HospitalSite, times: int = 1, number: int = 99) -> None:
    for _ in range(times):
        with pytest.raises(FedmedError):
            site.ask("train", site.model, round=number)


def test_same_refusal_is_written_once_and_counted(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=LIMITS)
    ask_in_vain(site, 30)
    assert [entry["event"] for entry in site.audit()] == ["policy", "received", "failed", "sent"]
    assert count_unwritten(site.state) == 29
    ask_in_vain(site.restart(), 1)
    assert len(site.events("received")) == 1, "another process knows it too"
    ask_in_vain(site, 1, number=98)
    assert len(site.events("received")) == 2, "another request is written in full"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def read(log: AuditLog) -> list[dict[str, Any]]:
    assert verify_audit(log.path).ok
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def refuse(log: MessageLog, number: int = 0) -> bool:
    log.open_message()
    log.append("received", kind="train", request={"round": number})
    log.append("sent", kind="train", text="no")
    return log.close("no")


def test_count_is_written_at_most_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a thousand of them take seconds of a disk
    audit, clock = AuditLog(tmp_path / "audit.jsonl"), Clock()
    log = MessageLog(lambda: audit, tmp_path, clock)
    assert refuse(log)
    for _ in range(1234):
        assert not refuse(log)
        clock.now += timedelta(seconds=1)
    again = [entry["fields"] for entry in read(audit) if entry["event"] == "refused_again"]
    assert len(again) == 20, "1,234 seconds"
    assert sum(fields["times"] for fields in again) + count_unwritten(tmp_path) == 1234
    assert again[0]["refusals"] == [{"text": "train: no", "times": 61}]
    log.open_message()
    log.append("received", kind="query")
    clock.now += timedelta(seconds=61)
    log.accept()
    assert count_unwritten(tmp_path) == 0, "the next message that is answered brings the rest"


def test_a_day_of_different_refusals_is_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_log, "MOST_REFUSED_BYTES", 20_000)
    audit, clock = AuditLog(tmp_path / "audit.jsonl"), Clock()
    log = MessageLog(lambda: audit, tmp_path, clock)
    written = sum(refuse(log, number) for number in range(500))
    assert 20 < written < 60
    assert audit.path.stat().st_size < 22_000
    (bound,) = [entry["fields"] for entry in read(audit) if entry["event"] == "refusals_only_counted"]
    assert bound["until"] == "2026-03-01T24:00Z"
    assert count_unwritten(tmp_path) == 500 - written
    clock.now += timedelta(days=1)
    assert refuse(log, 501), "the next day begins anew"
    (again,) = [entry["fields"] for entry in read(audit) if entry["event"] == "refused_again"]
    assert again["times"] == 500 - written


def test_bound_holds_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_log, "MOST_REFUSED_BYTES", 20_000)
    audit, clock = AuditLog(tmp_path / "audit.jsonl"), Clock()
    for number in range(200):
        refuse(MessageLog(lambda: audit, tmp_path, clock), number)
    assert audit.path.stat().st_size < 22_000


def test_nothing_is_answered_when_the_log_grows_beyond_all_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_log, "MOST_BYTES", 10_000)
    site = HospitalSite(tmp_path, policy=LIMITS)
    for _ in range(200):
        with contextlib.suppress(PolicyError):
            site.ask("query")
    with pytest.raises(PolicyError, match="audit log has grown"):
        site.ask("query")
    assert (site.state / "audit.jsonl").stat().st_size < 14_000
    assert len(site.events("sent")) < 15


def test_what_is_refused_before_the_guard_is_counted_as_well(tmp_path: Path) -> None:
    for _ in range(50):
        record_refusal(tmp_path, "train", "the run is one of the app 'x'")
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["refused"]
    assert count_unwritten(tmp_path) == 49

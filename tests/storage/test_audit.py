import errno
import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from fedmed.errors import RunFolderError
from fedmed.storage.audit import GENESIS, AuditLog, verify_audit


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(1, 5):
        log.append("update_received", site=f"site_0{number}", round=1, num_bytes=100 * number)
    return log


def read_lines(log):
    return log.path.read_bytes().splitlines(keepends=True)


def seal(record):
    """The documented hash, computed independently."""
    rest = {key: value for key, value in record.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_entries_are_chained_as_documented(log):
    previous = GENESIS
    for number, line in enumerate(read_lines(log), start=1):
        record = json.loads(line)
        assert record["sequence"] == number
        assert record["event"] == "update_received"
        assert record["fields"] == {"site": f"site_0{number}", "round": 1, "num_bytes": 100 * number}
        assert record["prev"] == previous
        assert record["hash"] == seal(record)
        assert abs((datetime.now(UTC) - datetime.fromisoformat(record["time"])).total_seconds()) < 60
        previous = record["hash"]
    assert (log.head, log.length) == (previous, 4)
    report = verify_audit(log.path)
    assert (report.ok, report.num_entries, report.first_bad_line, report.reason) == (True, 4, None, None)
    assert report.head == log.head


def test_only_the_owner_may_read(tmp_path):
    path = tmp_path / "new" / "audit.jsonl"
    AuditLog(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    AuditLog(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_log(tmp_path):
    log = AuditLog(tmp_path / "a")
    assert (log.head, log.length) == (GENESIS, 0)
    assert verify_audit(log.path, expected_head=GENESIS).ok
    with pytest.raises(RunFolderError, match="No such file"):
        verify_audit(tmp_path / "none")


def test_reopening_continues_the_chain(log):
    again = AuditLog(log.path)
    assert (again.head, again.length) == (log.head, 4)
    again.append("run_resumed", event="a field of this name is allowed")
    log.append("round_closed")
    assert log.length == 6
    assert verify_audit(log.path, expected_head=again.head).ok


def change_value(lines):
    lines[1] = lines[1].replace(b"site_02", b"site_09")


def change_and_seal(lines):
    record = json.loads(lines[1])
    record["fields"]["site"] = "site_09"
    record["hash"] = seal(record)
    lines[1] = json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def add_space(lines):
    lines[1] = lines[1].replace(b'{"event"', b'{ "event"')


def repeat_key(lines):
    lines[1] = lines[1].replace(b'{"event"', b'{"event":"other","event"')


@pytest.mark.parametrize(
    ("harm", "bad_line"),
    [
        (change_value, 2),
        (change_and_seal, 3),
        (add_space, 2),
        (repeat_key, 2),
        (lambda lines: lines.pop(1), 2),
        (lambda lines: lines.pop(0), 1),
        (lambda lines: lines.insert(2, lines.pop(1)), 2),
        (lambda lines: lines.insert(1, lines[0]), 2),
        (lambda lines: lines.insert(1, b"\n"), 2),
        (lambda lines: lines.insert(1, b"\xff\x00\n"), 2),
        (lambda lines: lines.insert(1, b"[" * 100_000 + b"\n"), 2),
        (lambda lines: lines.insert(1, b"[]\n"), 2),
    ],
)
def test_tampering_is_found_and_not_continued(log, harm, bad_line):
    lines = read_lines(log)
    harm(lines)
    log.path.write_bytes(b"".join(lines))
    report = verify_audit(log.path)
    assert not report.ok
    assert report.first_bad_line == bad_line
    assert report.num_entries == bad_line - 1
    assert report.reason
    with pytest.raises(RunFolderError, match=f"broken in line {bad_line}"):
        AuditLog(log.path)


def test_a_cut_is_found_against_a_known_head(log):
    head = log.head
    log.path.write_bytes(b"".join(read_lines(log)[:3]))
    assert verify_audit(log.path).ok
    report = verify_audit(log.path, expected_head=head)
    assert not report.ok
    assert report.num_entries == 3
    assert "cut off" in report.reason
    with pytest.raises(RunFolderError, match="cut off while in use"):
        log.append("next")


@pytest.mark.parametrize("torn", [b'{"event":"upd', b"\x00" * 40])
def test_a_torn_last_line_is_moved_aside_and_recorded(log, torn):
    head = log.head
    with log.path.open("ab") as file:
        file.write(torn)
    report = verify_audit(log.path)
    assert not report.ok
    assert report.first_bad_line == 5
    assert "incomplete" in report.reason
    again = AuditLog(log.path)
    assert again.length == 5
    assert verify_audit(log.path, expected_head=head).ok
    record = json.loads(read_lines(log)[-1])
    assert record["event"] == "torn_line_removed"
    assert record["fields"] == {
        "num_bytes": len(torn),
        "sha256": hashlib.sha256(torn).hexdigest(),
        "moved_to": "audit.jsonl.torn",
    }
    aside = log.path.with_name("audit.jsonl.torn")
    assert aside.read_bytes() == torn + b"\n"
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600


def test_a_full_disk_leaves_whole_lines(log, monkeypatch):
    head, before, real = log.head, log.path.read_bytes(), os.write

    def write_half(descriptor, data):
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:-40])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half)
        with pytest.raises(RunFolderError, match="No space left"):
            log.append("next")
    assert log.path.read_bytes() == before
    assert log.head == head
    log.append("next")
    assert verify_audit(log.path).ok


@pytest.mark.parametrize("value", [float("nan"), {1}, b"x"])
def test_fields_must_be_json(log, value):
    with pytest.raises(ValueError, match="plain JSON"):
        log.append("odd", value=value)
    assert verify_audit(log.path).num_entries == 4


def test_several_writers_keep_one_chain(tmp_path):
    """Each writer opens the file for itself, so the lock works between threads as it does between processes."""

    def append_many(name):
        log = AuditLog(tmp_path / "a")
        for number in range(30):
            log.append("tick", writer=name, number=number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(append_many, "xyz"))
    report = verify_audit(tmp_path / "a")
    assert report.ok
    assert report.num_entries == 90


def at(log, number, moment):
    """Give an entry another time, and seal the chain anew from there on."""
    records = [json.loads(line) for line in read_lines(log)]
    records[number - 1]["time"] = moment
    for place, record in enumerate(records):
        record["prev"] = records[place - 1]["hash"] if place else GENESIS
        record["hash"] = seal(record)
    log.path.write_text("".join(json.dumps(one, sort_keys=True, separators=(",", ":")) + "\n" for one in records))
    return AuditLog(log.path)


def test_oldest_entries_are_deleted_and_the_log_says_so(log):
    log = at(at(log, 1, "2020-01-01T00:00:00.000+00:00"), 2, "2020-01-02T00:00:00.000+00:00")
    second, head = json.loads(read_lines(log)[1])["hash"], log.head
    assert log.delete_before(datetime(2021, 1, 1, tzinfo=UTC)) == 2
    entries = [json.loads(line) for line in read_lines(log)]
    assert [entry["sequence"] for entry in entries] == [3, 4, 5]
    assert entries[-1]["event"] == "deleted"
    assert entries[-1]["fields"] == {"audit_log": {"hash": second, "up_to": 2}, "entries": 2}
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    report = verify_audit(log.path, head, [(4, head), (2, second), (1, "0" * 64)])
    assert (report.ok, report.num_entries) == (True, 3)
    assert not verify_audit(log.path, expected=[(3, "0" * 64)]).ok
    log.append("next")
    again = AuditLog(log.path)
    assert (again.length, again.head) == (6, log.head)
    assert again.holds(4, head)
    assert again.delete_before(datetime(2021, 1, 1, tzinfo=UTC)) == 0
    assert again.delete_before(datetime(2999, 1, 1, tzinfo=UTC)) == 3, (
        "the newest entry stays, and the one that says so"
    )
    assert verify_audit(log.path).ok
    assert [json.loads(line)["sequence"] for line in read_lines(log)] == [6, 7]


def test_a_beginning_that_is_gone_without_an_entry_is_found(log):
    log = at(log, 1, "2020-01-01T00:00:00.000+00:00")
    log.delete_before(datetime(2021, 1, 1, tzinfo=UTC))
    lines = read_lines(log)
    log.path.write_bytes(b"".join(lines[1:]))
    report = verify_audit(log.path)
    assert not report.ok
    assert "Its beginning is missing" in report.reason
    with pytest.raises(RunFolderError, match="Its beginning is missing"):
        AuditLog(log.path)


def test_entries_that_must_be_there(log):
    hashes = [json.loads(line)["hash"] for line in read_lines(log)]
    assert verify_audit(log.path, expected=list(enumerate(hashes, start=1))).ok
    assert verify_audit(log.path, expected=[(0, GENESIS)]).ok
    for wrong in ((5, hashes[3]), (1, hashes[1]), (0, hashes[0]), (10**12, hashes[0])):
        report = verify_audit(log.path, expected=[wrong])
        assert not report.ok
        assert f"does not hold the entry {wrong[0]} that the other side has countersigned" in report.reason
    assert [log.holds(number, hashes[1]) for number in (1, 2, 3, 9)] == [False, True, False, False]

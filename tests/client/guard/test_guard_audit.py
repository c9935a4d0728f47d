"""What a hospital's audit log says of what came and left, and that nothing leaves without it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from client import site as site_module
from client.guard import guard as guard_module
from client.guard.guard import NotRecordedError
from client.hospital.said import take_lines
from fedmed.config.client import PolicyConfig
from fedmed.errors import PolicyError, RunFolderError, WireError, describe_error
from fedmed.protocol.kinds import HEADS, KINDS
from fedmed.protocol.messages import REPORT, read_values
from fedmed.storage.audit import AuditLog
from tests.client.support.hospital import PATIENT, HospitalSite


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_audit_names_every_part_that_came_and_left(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    asked = {
        "query": (None, {}),
        "train": (site.model, {"round": 1}),
        "evaluate": (site.model, {"round": 1, "part": "test"}),
    }
    replies = {kind: site.ask(kind, model, **values) for kind, (model, values) in asked.items()}
    assert [entry["event"] for entry in site.audit()] == ["policy", *["received", "sent"] * 3]
    for received, sent, (kind, reply) in zip(
        site.events("received"), site.events("sent"), replies.items(), strict=True
    ):
        assert received["kind"] == sent["kind"] == kind
        assert (sent["run"], sent["round"]) == ("run1", 0 if kind == "query" else 1)
        assert sent["of"] == ("test" if kind == "evaluate" else None)
        expected = []
        for name, record in reply.content.items():
            data = record["json"].encode() if name == REPORT else record["bytes"].data
            expected.append({"name": name, "bytes": len(data), "sha256": sha256(data)})
        assert [{key: part[key] for key in ("name", "bytes", "sha256")} for part in sent["parts"]] == expected
        assert {part["name"] for part in sent["parts"]} == set(KINDS[kind].leaving) - {HEADS}
        assert sent["parts"][0]["keys"] == sorted(read_values(reply, REPORT))
    models = [part for entry in site.events("received") for part in entry["parts"] if part["name"] == "model"]
    assert models == [{"name": "model", "bytes": len(site.model), "sha256": sha256(site.model)}] * 2


def test_policy_in_force_is_in_the_audit_log(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy={"study": "skin"})
    site.ask("query")
    assert site.events("policy") == [PolicyConfig(study="skin", min_images=2).model_dump(mode="json")]
    with pytest.raises(PolicyError):
        site.restart(policy={"study": "eyes"}).ask("query")
    assert [entry["study"] for entry in site.events("policy")] == ["skin", "eyes"]


def test_audit_entry_is_on_the_disk_before_the_reply_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path)
    site.ask("query")
    append = AuditLog.append

    def fail(self: AuditLog, event: str, /, **fields: Any) -> None:
        if event == "sent":
            raise RunFolderError(f"The audit log {self.path} cannot be written: no space left.")
        append(self, event, **fields)

    monkeypatch.setattr(AuditLog, "append", fail)
    with pytest.raises(RunFolderError) as caught:
        site.ask("query")
    assert not caught.value.shareable


def test_refusal_and_its_text_are_in_the_audit_log(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy={"study": "eyes"})
    with pytest.raises(PolicyError) as caught:
        site.ask("train", site.model, round=1)
    assert [entry["event"] for entry in site.audit()] == ["policy", "received", "refused", "sent"]
    (sent,) = site.events("sent")
    text = describe_error(caught.value)
    assert sent["text"] == text
    assert sent["parts"] == [{"name": "error", "bytes": len(text), "sha256": sha256(text.encode())}]


def test_fault_of_ours_is_not_told_in_detail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(f"{PATIENT} has a bad image")

    monkeypatch.setattr(site_module, "fit", fail)
    with pytest.raises(ValueError, match="bad image"):
        site.ask("train", site.model, round=1)
    (sent,) = site.events("sent")
    assert sent["text"] == "the site's program failed (ValueError); the site's log says more"
    assert PATIENT not in (site.state / "audit.jsonl").read_text()


def test_withdrawn_patients_are_counted_and_not_named_in_the_audit_log(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, exclude="withdrawn.txt")
    file = tmp_path / "withdrawn.txt"
    file.write_text(f"{PATIENT}-000\n{PATIENT}-001\nNOBODY\n")
    site.ask("query")
    site.ask("query")
    counts = site.exclusions()[-1]
    assert (counts["listed"], counts["matched"], sum(counts["images"].values())) == (3, 2, 4)
    file.write_text(f"{PATIENT}-000\n")
    before = read_values(site.ask("query"), REPORT)["num_images"]["train"]
    assert [entry["listed"] for entry in site.exclusions()] == [3, 3, 1]
    assert len({entry["salt"] for entry in site.exclusions()}) == 3, "the log's head, which leaves, tells none"
    file.write_text("\n".join(str(row["patient"]) for row in site.rows))
    assert read_values(site.ask("train", site.model, round=1), REPORT) == {"declined": True}
    assert before > 0
    assert PATIENT not in (site.state / "audit.jsonl").read_text()


def test_the_console_is_told_of_a_withdrawal_and_of_a_line_that_matches_nobody(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, exclude="withdrawn.txt")
    file = tmp_path / "withdrawn.txt"
    file.write_text("")
    take_lines()
    site.ask("query")
    assert take_lines() == [], "nobody is left out"
    file.write_text(f"\n{PATIENT}-000\nNOBODY-KNOWN\nNOBODY-KNOWN\n")
    site.ask("query")
    withdrawn, unknown = take_lines()
    images = site.exclusions()[-1]["images"]
    assert withdrawn.startswith("A withdrawal is in effect.")
    assert f"train {images['train']} and " in withdrawn
    assert unknown.startswith("1 of 2 lines in the file of withdrawn patients (exclude in client.yaml)")
    assert ": line 3." in unknown
    assert PATIENT not in withdrawn + unknown
    assert "NOBODY" not in withdrawn + unknown
    site.ask("query")
    assert take_lines() == [], "told once"
    assert site.exclusions()[-1]["lines"] == [3]


def test_audit_log_holds_few_keys_of_what_arrived(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    with pytest.raises(WireError, match="holds 'key00000', which is not known here"):
        site.ask("query", **{f"key{number:05d}": 1 for number in range(5000)})
    (part,) = site.events("received")[0]["parts"]
    assert (len(part["keys"]), part["num_keys"]) == (40, 5001)


def assert_says_nothing(error: BaseException) -> None:
    assert describe_error(error) == "the site could not do this; the site's log says why"


@pytest.mark.parametrize("kind", ["query", "train"])
def test_nothing_leaves_with_a_broken_audit_log(tmp_path: Path, kind: str) -> None:
    site = HospitalSite(tmp_path)
    site.state.mkdir()
    (site.state / "audit.jsonl").write_text(f'{{"{PATIENT}": 1}}\n')
    with pytest.raises(NotRecordedError) as caught:
        site.ask(kind, site.model if kind == "train" else None, round=1)
    assert_says_nothing(caught.value)
    assert "broken" in str(caught.value.__cause__)  # for the log at the site


def test_nothing_leaves_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path, policy={"study": "eyes"})
    with pytest.raises(PolicyError):
        site.ask("query")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(NotRecordedError) as caught:  # a refusal that would be told otherwise
        site.ask("query")
    assert_says_nothing(caught.value)
    with pytest.raises(NotRecordedError):
        site.restart().ask("query")


@pytest.mark.parametrize("error", [PolicyError(f"{PATIENT} told"), ValueError(PATIENT), SystemExit(PATIENT)])
def test_nothing_leaves_where_the_hospital_cannot_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    site = HospitalSite(tmp_path)

    def fail(*_: Any) -> None:
        raise error

    for name in ("find_hospital", "_find_guard"):
        with monkeypatch.context() as patch:
            patch.setattr(guard_module, name, fail)
            with pytest.raises(NotRecordedError) as caught:
                site.ask("query")
            assert_says_nothing(caught.value)
            assert PATIENT not in str(caught.value)


def test_an_app_that_wants_to_exit_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise SystemExit(PATIENT)

    monkeypatch.setattr(site_module, "fit", fail)
    with pytest.raises(SystemExit):
        site.ask("train", site.model, round=1)
    assert site.events("sent")[0]["text"] == "the site's program failed (SystemExit); the site's log says more"

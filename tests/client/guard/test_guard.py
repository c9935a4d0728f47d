"""What a hospital lets in: plans within its policy, at its hours, and requests that it can carry out."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from client import site as site_module
from client.guard import requests as request_module
from client.guard.guard import Guard
from client.guard.policy import Refusal, check_hours, check_plan
from client.hospital.site_data import find_hospital
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.distillation.teachers import files as teacher_files
from fedmed.errors import ConfigError, FedmedError, PolicyError, RunFolderError, TrainingError, WireError
from fedmed.models import list_models
from fedmed.storage.audit import AuditLog
from tests.client.support.hospital import PATIENT, PLAN, POLICY, HospitalSite
from tests.support.approval import approve
from tests.support.fopro import TEACHER, make_fopro

IN_CLIENT_YAML = "in server.yaml, or the policy in the site's client.yaml."


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
        "validation_tables": True,
    }
    site = HospitalSite(tmp_path, policy=policy)
    site.ask("query")
    site.ask("train", site.model, round=4)
    site.ask("evaluate", site.model, round=4, part="validation")
    assert site.events("refused") == []


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
    policy = PolicyConfig(hours=["20:00-06:00"], validation_tables=True)
    guard = Guard(policy, audit, tmp_path, clock=lambda: datetime(2026, 3, 1, 14, 30))
    approve(tmp_path, PLAN)
    messages = {
        "query": site.message("query", None, {"plan": PLAN}),
        "train": site.message("train", site.model, {"plan": PLAN, "round": 1}),
        "evaluate": site.message("evaluate", site.model, {"plan": PLAN, "round": 1, "part": "validation"}),
    }
    for kind in ("query", "evaluate"):
        guard.check(messages[kind], guard.receive(messages[kind]))
    with pytest.raises(PolicyError, match=r"policy\.hours: found 14:30, allowed 20:00-06:00\. The site trains at"):
        guard.check(messages["train"], guard.receive(messages["train"]))


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
    from fedmed.protocol.tensors import pack_tensors, unpack_tensors

    site = HospitalSite(tmp_path)
    broken = {n: t * float("nan") if t.is_floating_point() else t for n, t in unpack_tensors(site.model).items()}
    with pytest.raises(TrainingError, match="training loss is no finite number"):
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


def test_simulation_has_no_guard(tmp_path: Path) -> None:
    from tests.support.federation import Federation

    federation = Federation(tmp_path / "run", {"rounds": 1})
    federation.go()
    assert not list(federation.run.sites.rglob("audit.jsonl"))
    assert find_hospital({"run-dir": "x", "site": "y"}) is None


@pytest.mark.parametrize(
    ("teacher", "remedy"),
    [
        (TEACHER | {"source": "file"}, "Set teacher_file in its client.yaml"),
        (
            {"name": "efficientnet_lite0", "source": "package"},
            r"'fedmed-hospitals\[teachers\]'.*teacher: none",
        ),
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

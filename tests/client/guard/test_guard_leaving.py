"""What a hospital lets out: what is on its list, with numbers that are large enough, and nobody's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.guard import audit as site_audit
from client.guard.message_parts import list_parts
from fedmed.config import Plan
from fedmed.distillation.network import build_network
from fedmed.errors import FedmedError, PolicyError, describe_error
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.metrics.site_tables import FEDERATED
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, make_content, read_tables
from tests.client.support import second_model
from tests.client.support.hospital import FILE, PATIENT, PLAN, POLICY, HospitalSite, make_rows
from tests.support.fopro import make_fopro


def test_test_tables_are_refused(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy={"test_tables": False})
    expected = (
        "policy.test_tables: found a request for tables of the test images, allowed no such tables. The federation can "
        "go on without this site's test figures, or the site changes its client.yaml."
    )
    with pytest.raises(PolicyError) as caught:
        site.ask("evaluate", site.model, round=1, part="test")
    assert str(caught.value) == f"The site's policy refuses this request. {expected}"


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
        site.let_out(message, answer)
    assert str(caught.value) == (
        f"The reply was not sent: {problem}. This is a fault of the software; please report it."
    )
    assert [entry["reason"] for entry in site.events("withheld")] == [problem]
    assert [part["name"] for entry in site.events("sent") for part in entry["parts"]] == ["error"]
    assert PATIENT not in json.dumps([site.events("withheld"), site.events("sent")])


TOLD = {"num_images": 500, "loss": 1.0, "learning_rate": 0.1, "train_s": 1.0}


@pytest.mark.parametrize(
    "told",
    [
        {"num_images": 500, "prompt_bands": [1.0]},
        TOLD | {"prompt_bands": [1.0] * 9},
        TOLD | {"prompt_bands": [[1.0]]},
        TOLD | {"prompt_bands": PATIENT},
        TOLD | {"mas_weight": [0.5]},
        TOLD | {"mas_weight": 1e-300},
        TOLD | {"group_losses": {"a": [9, PATIENT]}},
        TOLD | {"group_losses": [9]},
        TOLD | {"start_loss": {PATIENT: 1}},
        TOLD | {"loss": PATIENT},
    ],
)
def test_what_a_number_may_not_be_does_not_leave_in_its_place(tmp_path: Path, told: dict[str, Any]) -> None:
    site = HospitalSite(tmp_path)

    def answer(message: Message, context: Context) -> Message:
        return Message(make_content(REPORT, told, model=site.model), reply_to=message)

    message = site.message("train", site.model, {"plan": PLAN, "round": 1})
    with pytest.raises(PolicyError, match="its report is malformed") as caught:
        site.let_out(message, answer)
    assert PATIENT not in str(caught.value)
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
        site.let_out(message, answer)
    assert PATIENT not in str(caught.value)


def test_validation_scores_leave_only_where_allowed(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, make_rows((160, 96, 24)))
    held_back = read_tables(site.ask("evaluate", site.model, round=1, part="validation")).site
    assert held_back.row_images.any()
    assert not held_back.areas.any()
    assert read_tables(site.ask("evaluate", site.model, round=1, part="test")).site.areas.any()
    generous = site.restart(policy=POLICY | {"validation_scores": True})
    assert read_tables(generous.ask("evaluate", site.model, round=1, part="validation")).site.areas.any()


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


def test_list_of_what_leaves_is_what_the_app_sends(tmp_path: Path) -> None:
    """A key that is on the list but never sent would be a hole that nobody needs."""
    everything = {"suppression": {"k": 1, "k_row": 1}, "validation_tables": True, "min_images": 2}
    site = HospitalSite(tmp_path, policy=everything, share_class_counts=True)
    sent: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for kind, values in {"query": {}, "train": {"round": 1}, "evaluate": {"round": 1, "part": "test"}}.items():
        replies = [] if kind == "query" else [site.ask(kind, model_sha256="0" * 64, **values)]
        replies.append(site.ask(kind, None if kind == "query" else site.model, **values))
        for reply in replies:
            sent[kind] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    for values in ({"round": 1, "model_sha256": "0" * 64}, {"round": 1}):
        for kind in ("recalibrate", "calibrate", "figure", "alert"):
            asked = values | ({"part": "validation"} if kind in {"figure", "alert"} else {})
            changes = {"batch_norm": "recalibrate"} | ({"choice": "figure"} if kind == "figure" else {})
            changes |= {"operating": {"alert_classes": ["b"], "sensitivity": 0.9}} if kind == "alert" else {}
            model = None if "model_sha256" in values else site.model
            reply = site.ask(f"evaluate.{kind}", model, changes, **asked)
            sent[kind] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    alone = {"benefit": True, "losses": "site"}
    declining = site.restart(policy=everything | {"benefit": False})
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
    network = build_network(Plan.model_validate(PLAN | plan))
    reply = site.ask("train", network.pack(), plan, round=1)
    sent["train"] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    small = site.restart(policy=everything | {"min_images": 1000})
    for kind, reply in (
        ("train", small.ask("train", site.model, round=1)),
        ("evaluate", second_model.ask(site)),
        ("distil", second_model.distil(small)),
        ("distil", second_model.distil(site, with_model=False, model_sha256="0" * 64)),
        ("distil", second_model.distil(site)),
    ):
        sent[kind] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    for reply in (site.compare(b"x", with_model=False, model_sha256="0" * 64), site.compare(b"x")):
        sent["release"] |= {key for part in list_parts(reply.content) for key in part.get("keys", [])}
    assert sent == {name: set(kind.report) for name, kind in KINDS.items()}
    assert site_audit.AUDIT_FILE == "audit.jsonl"

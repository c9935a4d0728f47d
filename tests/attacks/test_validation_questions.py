"""A server that asks for more of the validation images than the choice of the best round needs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedmed.errors import FedmedError, PolicyError, WireError
from fedmed.metrics.rounding import has_digits
from fedmed.protocol.kinds import TABLES
from fedmed.protocol.messages import REPORT, read_values
from fedmed.protocol.tensors import pack_tensors, unpack_tensors
from tests.client.support.hospital import FILE, PATIENT, HospitalSite

FIGURE = {"choice": "figure"}
LIMITS = {"suppression": {"k": 10, "k_row": 5}}


def make_rows(counts: tuple[int, ...] = (100, 60, 6)) -> list[dict[str, object]]:
    """One image a patient, of two classes with enough of them and one with too few, dealt out in no order."""
    labels = [label for label, count in zip("abc", counts, strict=True) for _ in range(count)]
    random.Random(1).shuffle(labels)
    return [
        {"file": f"scans/{FILE}-{number:03d}.png", "label": label, "patient": f"{PATIENT}-{number:03d}"}
        for number, label in enumerate(labels)
    ]


@pytest.fixture
def hospital(tmp_path: Path) -> HospitalSite:
    return HospitalSite(tmp_path, make_rows(), policy=LIMITS)


def make_model(hospital: HospitalSite, shift: float) -> bytes:
    tensors = dict(unpack_tensors(hospital.model))
    tensors["5.bias"] = tensors["5.bias"] + shift * (tensors["5.bias"] + 0.1)
    return pack_tensors(tensors)


def ask_figure(hospital: HospitalSite, model: bytes | None, plan: dict[str, Any] | None = None, **values: Any) -> Any:
    reply = hospital.ask("evaluate.figure", model, FIGURE | (plan or {}), **{"round": 1, "part": "validation"} | values)
    return read_values(reply, REPORT)


@pytest.mark.parametrize("choice", ["figure", "tables"])
@pytest.mark.parametrize("values", [{"round": 0}, {"round": 1}, {"round": 4, "best_round": 4}, {"remember": True}])
def test_tables_of_validation_images_are_refused_whatever_the_model(
    hospital: HospitalSite, choice: str, values: dict[str, Any]
) -> None:
    asked = {"round": 1, "part": "validation"} | values
    for number in range(3):
        with pytest.raises(FedmedError, match=r"validation_tables|choice: figure"):
            hospital.ask("evaluate", make_model(hospital, number), {"choice": choice}, **asked)
    events = hospital.events("sent")
    assert {part["name"] for event in events for part in event["parts"]} == {"error"}


def test_a_plan_of_figures_gets_no_tables_where_the_site_allows_them(tmp_path: Path) -> None:
    generous = HospitalSite(tmp_path, make_rows(), policy=LIMITS | {"validation_tables": True})
    assert TABLES in generous.ask("evaluate", generous.model, {}, round=1, part="validation").content
    with pytest.raises(WireError, match="choice: figure"):
        generous.ask("evaluate", generous.model, FIGURE, round=1, part="validation")
    with pytest.raises(WireError, match="choice: tables"):
        generous.ask("evaluate.figure", generous.model, {}, round=1, part="validation")


def test_figures_are_of_classes_with_enough_patients_and_rounded(hospital: HospitalSite) -> None:
    told = ask_figure(hospital, hospital.model)
    assert set(told) == {"model_sha256", "n", "accuracy", "balanced_accuracy"}
    assert told["n"] % 10 == 0
    assert has_digits(told["accuracy"])
    assert has_digits(told["balanced_accuracy"])
    kept = json.loads((hospital.state / "runs/run1/figures.json").read_text())
    assert kept["classes"] == [0, 1], "of the third class there are too few in any part"


def test_a_repetition_is_answered_from_store_and_one_model_a_round_is_scored(hospital: HospitalSite) -> None:
    """The plan has 4 rounds; the same request may come again three times, from the start or after a restart."""
    told = [ask_figure(hospital, make_model(hospital, number), round=number) for number in (1, 2, 3)]
    assert ask_figure(hospital, make_model(hospital, 3), round=3) == told[2]
    file = hospital.state / "runs/run1/figures.json"
    kept = json.loads(file.read_text())
    kept["answers"][told[1]["model_sha256"]]["accuracy"] = 0.123
    file.write_text(json.dumps(kept))
    assert ask_figure(hospital, make_model(hospital, 2), round=2)["accuracy"] == 0.123, "it is not computed again"
    assert ask_figure(hospital, None, round=2, model_sha256=told[1]["model_sha256"])["accuracy"] == 0.123
    assert ask_figure(hospital.restart(), make_model(hospital, 2), round=2)["accuracy"] == 0.123
    with pytest.raises(PolicyError, match="after 4 answers, allowed once, and 3 repetitions"):
        ask_figure(hospital, make_model(hospital, 2), round=2)
    for number in (1, 2, 3):
        with pytest.raises(PolicyError, match=r"(another model|a step back).*allowed rounds in their order, and one"):
            ask_figure(hospital, make_model(hospital, 9), round=number)
    ask_figure(hospital, make_model(hospital, 4), round=4)
    assert len(json.loads(file.read_text())["answers"]) == 4
    with pytest.raises(FedmedError, match="up to the plan's last round, 4"):
        ask_figure(hospital, make_model(hospital, 5), round=5)


def test_another_plan_does_not_change_the_classes_of_the_run(hospital: HospitalSite) -> None:
    first = ask_figure(hospital, hospital.model, round=1)
    stricter = hospital.restart(policy={"suppression": {"k": 10, "k_row": 1}})
    assert ask_figure(stricter, make_model(hospital, 1), round=2)["n"] == first["n"]


@pytest.mark.parametrize("counts", [(30, 20, 6), (9, 9, 9)])
def test_a_site_with_few_images_tells_only_that(tmp_path: Path, counts: tuple[int, ...]) -> None:
    few = HospitalSite(tmp_path, make_rows(counts), policy=LIMITS)
    told = ask_figure(few, few.model)
    assert set(told) == {"model_sha256", "n"}
    assert told["n"] == 0


def test_a_damaged_store_tells_nothing(hospital: HospitalSite) -> None:
    ask_figure(hospital, hospital.model)
    (hospital.state / "runs/run1/figures.json").write_text("{")
    with pytest.raises(FedmedError, match="cannot be read"):
        ask_figure(hospital, hospital.model)


def test_the_guard_lets_no_finer_figures_out(hospital: HospitalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = (("round_number", lambda value: 0.12345, "3 digits"), ("round_down", max, "multiple"))
    for number, (name, value, reason) in enumerate(changes, start=1):
        with monkeypatch.context() as patch:
            patch.setattr(f"client.answers.figure.{name}", value)
            with pytest.raises(PolicyError, match="The reply was not sent"):
                ask_figure(hospital, make_model(hospital, number), round=number)
        assert reason in hospital.events("withheld")[-1]["reason"]


def test_only_bits_of_messages(hospital: HospitalSite) -> None:
    reply: Message = hospital.ask("evaluate.figure", hospital.model, FIGURE, round=1, part="validation")
    assert list(reply.content) == [REPORT]

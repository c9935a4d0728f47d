"""Requests that bring a second model, at a hospital's door: what they may be, what they give, and what may leave."""

from pathlib import Path
from typing import Any

import pytest
import torch

from client import site as app
from client.guard.message_parts import list_parts
from fedmed.config import Plan
from fedmed.distillation.network import get_network
from fedmed.errors import PolicyError, WireError
from fedmed.metrics.site_tables import FEDERATED, STUDENT, TEACHER
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import MODEL, REPORT, REQUEST, read_model, read_tables, read_values
from fedmed.training.network import Network
from tests.client.support.hospital import PLAN, POLICY, HospitalSite
from tests.client.support.second_model import DISTIL, SMALL, SMALL_MODEL, ask, distil

STRANGE = "a network that does not follow from the approved plan"


@pytest.fixture
def site(tmp_path: Path) -> HospitalSite:
    return HospitalSite(tmp_path)


def test_both_networks_are_scored_on_the_same_images(site: HospitalSite) -> None:
    assert read_values(ask(site), REPORT)["mismatch"] is None, "6 images of 3 patients, and k = 6"
    site = site.restart(policy=POLICY | {"suppression": {"k": 3, "k_row": 3}})
    reply = ask(site)
    tables = read_tables(reply)
    assert set(tables.models) == {FEDERATED, STUDENT}
    assert set(tables.paired) == {STUDENT}
    assert (tables.paired[STUDENT]["site"].cells.sum(axis=(2, 3)) == tables.site.counts.sum(axis=-1)).all()
    assert read_values(reply, REPORT)["mismatch"] > 0
    received = site.events("received")[-1]["parts"]
    assert [part["name"] for part in received] == [REQUEST, MODEL, "other_model"]


def test_distance_is_told_of_enough_images_only(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"suppression": {"k": 500, "k_row": 5}})
    assert read_values(ask(site), REPORT)["mismatch"] is None


def test_guard_holds_a_distance_of_few_images_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"suppression": {"k": 500, "k_row": 5}})
    monkeypatch.setattr(app, "measure_own_mismatch", lambda *_: 1.0)
    with pytest.raises(PolicyError, match="its distance is of fewer than k = 500"):
        ask(site)


def test_student_is_trained_and_only_that_leaves(site: HospitalSite) -> None:
    reply = distil(site)
    assert set(read_values(reply, REPORT)) == set(KINDS["distil"].report) - {"missing_model", "declined"}
    assert [part["name"] for part in list_parts(reply.content)] == [REPORT, MODEL]
    before, after = (
        Network(Plan.model_validate(SMALL)),
        Network(Plan.model_validate(SMALL)),
    )
    before.fill(SMALL_MODEL, {})
    after.fill(read_model(reply), {})
    state, trained = before.model.state_dict(), after.model.state_dict()
    assert all(not state[name].equal(trained[name]) for name in state if "weight" in name)
    assert read_model(distil(site.restart())) == read_model(reply)  # round 1 again, with the same bits
    assert site.answered("distil, distilled") == [2]


def test_projector_goes_on_where_it_was(site: HospitalSite) -> None:
    distil(site)
    kept = site.state / "runs" / "run1" / "distil"
    assert [path.name for path in kept.glob("*.safetensors")] == ["round_00001.safetensors"]
    with_it = read_model(distil(site, round=2))
    for path in kept.glob("*"):
        path.unlink()
    assert read_model(distil(site, round=2)) != with_it


def test_large_network_is_left_as_it_was(site: HospitalSite) -> None:
    network = get_network(Plan.model_validate(PLAN))  # one for all of this process: other tests may have trained it
    network.model.zero_grad()
    distil(site)
    packed = Network(Plan.model_validate(PLAN))
    packed.fill(site.model, {})
    for name, tensor in packed.model.state_dict().items():
        assert tensor.equal(network.model.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in network.model.parameters())
    assert all(parameter.grad is None or not torch.any(parameter.grad) for parameter in network.model.parameters())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": TEACHER}, "Allowed: a student with the validation"),
        ({"part": "test"}, "Allowed: a student with the validation"),
        ({"name": "local"}, "not what was agreed"),
        ({"other": {"sha256": "0" * 64}}, "its hash differs"),
        ({"other": {"sha256": 3}}, "not what was agreed"),
        ({"other": {"extra": 3}}, "not what was agreed"),
        ({"other": {"plan": SMALL | {"seed": 4}}}, "another run or other images"),
        ({"other": {"plan": SMALL | {"classes": ["a", "b"]}}}, "another run or other images"),
        (
            {"other": {"plan": SMALL | {"model": {"name": "nothing"}}}},
            STRANGE,
        ),
        ({"other": {"plan": SMALL | {"calibrate": False}}}, STRANGE),
        ({"plan": PLAN | {"student": None}}, STRANGE),
        ({"other": {"plan": {"seed": 1}}}, "plan cannot be read"),
        ({"packed": None}, "no readable part 'other_model'"),
    ],
)
def test_what_was_not_agreed_is_refused(site: HospitalSite, values: dict[str, Any], reason: str) -> None:
    with pytest.raises((WireError, PolicyError), match=reason):
        ask(site, **values)


def test_policy_is_asked_about_both_networks(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"models": ["tiny"]})
    plan = PLAN | {"student": {"model": {"name": "resnet18"}}}
    with pytest.raises(PolicyError, match=r"policy\.models: found 'resnet18'"):
        ask(site, plan=plan, other={"plan": SMALL | {"model": {"name": "resnet18"}}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "'distil' cannot be read. Needed: temperature and feature_weight"),
        ({"temperature": 0.0, "feature_weight": 1.0}, r"'distil\.temperature' is 0\.0\. Allowed: above 0, up to 100"),
    ],
)
def test_distillation_says_how(site: HospitalSite, settings: dict[str, float] | None, words: str) -> None:
    with pytest.raises(WireError, match=words):
        distil(site, distil=settings)


def test_distillation_needs_a_teacher_and_a_round(site: HospitalSite) -> None:
    with pytest.raises(WireError, match="brings none to learn from"):
        site.ask("train.distil", SMALL_MODEL, round=1, distil=DISTIL)
    with pytest.raises(WireError, match="round 0"):
        distil(site, round=0)


def test_second_model_is_no_part_of_other_requests(site: HospitalSite) -> None:
    with pytest.raises(WireError, match="parts that were not agreed"):
        ask(site, "evaluate.recalibrate", part=None)


def test_tested_once_with_its_teacher(site: HospitalSite) -> None:
    """Asked again, the stored answer is given."""
    test: dict[str, Any] = {"name": TEACHER, "part": "test", "plan": SMALL, "model": SMALL_MODEL}
    test |= {"other": {"plan": PLAN}, "packed": site.model}
    first = read_tables(ask(site, **test))
    assert set(first.paired) == {TEACHER}
    again = read_tables(ask(site, **test))
    assert (first.site.counts == again.site.counts).all()
    assert "mismatch" not in read_values(ask(site, **test), REPORT)
    assert site.answered("test") == [3]

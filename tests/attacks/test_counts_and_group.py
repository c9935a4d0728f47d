"""A server reads numbers of images by class, and those of a small group, out of one update; and changes its plan.

Attack 1 on one step at a vanishing rate: with the last layer at 0 the bias moves by the rate times the gradient, which
is ``1/K - n_c/n``. Attack 2 weighs all groups but one with 0. Attack 4 asks what the plan does not say.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedmed.config import Plan
from fedmed.errors import FedmedError, PolicyError
from fedmed.protocol.messages import REPORT, read_model, read_values
from fedmed.protocol.tensors import pack_tensors, unpack_tensors
from tests.attacks.support.hospital import IMAGES, PLAN, AttackedHospital, make_network, needs_images
from tests.client.support.hospital import CLASSES, HospitalSite
from tests.client.support.hospital import PLAN as SMALL_PLAN
from tests.support.approval import approve

ONE_STEP: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0}


def one_step(lr: float = 1e-6, batch_size: int = 100_000, **optimizer: Any) -> dict[str, Any]:
    settings = {"lr": lr, **ONE_STEP, **optimizer}
    return {"training": {"optimizer": settings, "batch_size": batch_size, "schedule": {"name": "constant"}}}


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one batch at a vanishing rate": (one_step(), {}),
    "a rate of 1e-9": (one_step(1e-9, 32), {}),
    "a batch just above half": (one_step(0.02, 700), {}),
    "no momentum": (one_step(0.02, 32), {}),
    "much momentum": (one_step(1e-9, 32, momentum=0.999999), {}),
    "kept momentum": ({"training": {"optimizer": {"lr": 0.02}, "batch_size": 32, "keep_momentum": True}}, {}),
    "a warm-up that never ends": ({"training": {"schedule": {"warmup_epochs": 10**8}, "batch_size": 32}}, {}),
    "a vanishing loss": ({"loss": {"ce": 1e-9}}, {}),
    "a group of one": (
        one_step() | {"losses": "groups", "loss_attribute": "sex x age_group"},
        {"group_weights": {"female, 0-19": 1.0, "male, 60+": 0.0}},
    ),
}


@pytest.fixture
def small(tmp_path: Path) -> HospitalSite:
    site = HospitalSite(tmp_path)
    site.approves = False
    approve(site.state, SMALL_PLAN)
    return site


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_that_was_not_approved_is_refused(small: HospitalSite, name: str) -> None:
    plan, values = VARIANTS[name]
    with pytest.raises(PolicyError, match="has not approved the plan"):
        small.ask("train", small.model, plan, round=1, **values)
    assert len(small.events("refused")) == 1


REFUSED = ["one batch at a vanishing rate", "a rate of 1e-9", "much momentum", "a warm-up that never ends"]


@pytest.mark.parametrize("name", [*REFUSED, "a vanishing loss", "a group of one"])
def test_a_step_that_tells_counts_is_refused_even_if_it_was_approved(tmp_path: Path, name: str) -> None:
    site = HospitalSite(tmp_path)  # approves whatever it is asked about
    plan, values = VARIANTS[name]
    with pytest.raises(PolicyError, match=r"max_learning_rate|fixed bounds of a hospital"):
        site.ask("train", site.model, plan, round=1, **values)


def test_counts_cannot_be_read_from_an_update_that_a_plan_may_ask_for(tmp_path: Path) -> None:
    """The whole of the images as one batch, at a usual rate: several steps, so the counts are not those read."""
    site = HospitalSite(tmp_path)
    start = unpack_tensors(site.model)
    start["5.weight"].zero_()
    start["5.bias"].zero_()
    reply = site.ask("train", pack_tensors(start), one_step(0.05), round=1)
    told, update = read_values(reply, REPORT), unpack_tensors(read_model(reply))
    gradient = -update["5.bias"].double() / 0.05
    read = ((1 / len(CLASSES) - gradient) * int(str(told["num_images"]))).round().tolist()
    from client.hospital.site_data import open_site

    labels = open_site(site.config).data.train.labels
    assert read != torch.bincount(labels, minlength=len(CLASSES)).double().tolist()


T = {"optimizer": {"lr": 0.02}, "batch_size": 32}
DRIFT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "batch_size 2, lr 1e-30": ("train", {"training": T | {"optimizer": {"lr": 1e-30}, "batch_size": 2}}, {"round": 2}),
    "lr 1e6": ("train", {"training": T | {"optimizer": {"lr": 1e6}}}, {"round": 2}),
    "16 pixels": ("train", {"image_size": 17}, {"round": 3}),
    "focal, gamma 50": ("train", {"loss": {"focal": {"weight": 1e30, "gamma": 50}}}, {"round": 3}),
    "back to round 1": ("train", {}, {"round": 1}),
    "recalibrate": ("evaluate.recalibrate", {}, {"round": 1}),
    "calibrate": ("evaluate.calibrate", {}, {"round": 0}),
    "test before training": ("evaluate", {}, {"round": 1, "part": "test"}),
    "another crossing": (
        "evaluate",
        {"fairness": {"attributes": ["sex", "age_group"], "intersections": [["age_group", "sex"]]}},
        {"round": 1, "part": "validation"},
    ),
}
PLAIN = {"student": None, "calibrate": False}


@pytest.mark.parametrize("name", DRIFT)
def test_what_the_plan_does_not_say_is_refused_and_written_down(tmp_path: Path, name: str) -> None:
    site = HospitalSite(tmp_path)
    site.approves = False
    approve(site.state, SMALL_PLAN | PLAIN)
    kind, plan, values = DRIFT[name]
    if name == "back to round 1":
        site.ask("train", site.model, PLAIN, round=2)
    with pytest.raises(PolicyError):
        site.ask(kind, site.model, PLAIN | plan, **values)
    assert len(site.events("refused")) == 1


# --- the same with real images ----------------------------------------------------------------------------------------


@pytest.fixture
def hospital(tmp_path: Path) -> AttackedHospital:
    attacked = AttackedHospital(tmp_path / "site", IMAGES)
    attacked.approves = False
    approve(attacked.state, PLAN)
    return attacked


@needs_images
def test_real_hospital_refuses_every_step_and_every_drift(hospital: AttackedHospital) -> None:
    model = make_network().pack()
    asked = [("train", plan, {"round": 1, **values}) for plan, values in VARIANTS.values()]
    asked += [one for name, one in DRIFT.items() if name != "back to round 1"]
    for kind, plan, values in asked:
        with pytest.raises(FedmedError):
            hospital.ask(kind, model, plan, **values)
    assert len(hospital.events("refused")) == len(asked)
    assert Plan.model_validate(PLAN).sha256 in hospital.events("refused")[0]["refusals"][0]["allowed"]

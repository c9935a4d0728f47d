"""One patient with many images is one patient, where losses and weights by group are concerned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from client.answers.answering import choose_batch
from client.answers.group_weights import hold_weights
from client.answers.losses import Risks, tell_training
from client.hospital.bounded import bound_batch
from client.hospital.site_data import Site, open_site
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.fairness.figures.group_losses import disclose_group_losses
from fedmed.protocol.messages import REPORT, read_values
from tests.client.support.hospital import CLASSES, FILE, PATIENT, PLAN, HospitalSite

GROUPS = ["one patient"] * 12 + ["many"] * 24
PATIENTS = ["p0"] * 12 + [f"q{number}" for number in range(24)]


def test_losses_of_one_patient_are_not_told_nor_do_they_follow() -> None:
    losses = torch.ones(36)
    assert disclose_group_losses(losses, GROUPS, 10, PATIENTS) == {}
    assert set(disclose_group_losses(losses, GROUPS, 10)) == {"one patient", "many"}, "without ids, images count"


def test_one_patient_has_no_weight_of_its_own() -> None:
    held = hold_weights({"one patient": 20.0, "many": 0.05}, GROUPS, [0] * 36, 10, PATIENTS)
    assert held == {"one patient": pytest.approx(0.05), "many": 0.05}


def make_images(patients: tuple[int, ...], each: int) -> list[dict[str, object]]:
    """Return rows of so many patients of every class, with so many images each."""
    labels = [label for label, number in zip(CLASSES, patients, strict=True) for _ in range(number)]
    return [
        {"file": f"scans/{FILE}-{number:03d}-{image}.png", "label": label, "patient": f"{PATIENT}-{number:03d}"}
        for number, label in enumerate(labels)
        for image in range(each)
    ]


def count_by_class(site: Site) -> list[int]:
    part = site.data.validation
    found = [{site.patient_of(item) for item, own in zip(part.items, part.labels.tolist(), strict=True) if own == label}
             for label in range(len(CLASSES))]  # fmt: skip
    return [len(patients) for patients in found]


def test_images_of_few_patients_are_not_trained_on(tmp_path: Path) -> None:
    """Hundreds of images of fewer than k = 10 patients: no update, no number of images."""
    rows = make_images((5, 4, 3), 20)
    few = HospitalSite(tmp_path, rows, policy={"suppression": {"k": 10, "k_row": 5}})
    assert open_site(few.config).count_patients("train") < 10
    assert len(open_site(few.config).data.train) > 50
    assert read_values(few.ask("train", few.model, round=1), REPORT) == {"declined": True}
    assert read_values(few.ask("query"), REPORT)["num_images"]["train"] == 0
    enough = few.restart(policy={"suppression": {"k": 5, "k_row": 2}})
    assert read_values(enough.ask("train", few.model, round=1), REPORT)["num_images"] >= 50


def test_figures_and_sums_are_of_k_patients(tmp_path: Path) -> None:
    """Only one class has k_row patients; it has fewer than k of them and far more than k images."""
    rows = make_images((45, 10, 10), 4)
    asked: dict[str, Any] = {"round": 1}
    open_policy: dict[str, Any] = {"suppression": {"k": 3, "k_row": 3}}
    hospital = HospitalSite(tmp_path, rows, policy=open_policy)
    counts = count_by_class(open_site(hospital.config))
    k = counts[0] + 1
    assert max(counts[1:]) < counts[0] < k <= sum(counts)
    for limits, is_told in (({"k": k, "k_row": counts[0]}, False), ({"k": counts[0], "k_row": counts[0]}, True)):
        state = f"state{is_told}"
        site = hospital.restart(policy={"suppression": limits}, state_dir=state)
        plan = {"choice": "figure"}
        figure = read_values(site.ask("evaluate.figure", site.model, plan, part="validation", **asked), REPORT)
        temperature = read_values(site.ask("evaluate.calibrate", site.model, plan, **asked), REPORT)
        assert (figure["n"] > 0, temperature["n"] > 0) == (is_told, is_told), limits


def test_a_prompt_is_of_twenty_patients() -> None:
    """1000 images of 19 patients say nothing of their prompt; of 20 they do."""

    def tell(num_patients: int) -> Any:
        site: Any = SimpleNamespace(
            policy=PolicyConfig(), round_down=lambda number: number, count_patients=lambda part: num_patients
        )
        told = {"prompt_bands": [1.0, 1.0, 1.0]}
        result: Any = SimpleNamespace(num_images=1000, loss=1.0, learning_rate=0.1, train_s=1.0, told=told)
        return tell_training(result, Risks(), site).prompt_bands

    assert tell(19) is None
    assert tell(20) == [1.0, 1.0, 1.0]


def test_a_batch_is_of_half_of_the_patients_at_most(tmp_path: Path) -> None:
    site = open_site(HospitalSite(tmp_path, make_images((12, 12, 12), 3)).config)
    half = site.count_patients("train") // 2
    assert half < len(site.data.train) // 2
    plan = Plan.model_validate(PLAN | {"training": {"batch_size": 200}})
    assert choose_batch(plan, site).training.batch_size == half
    assert bound_batch(site.policy, plan, 1000).training.batch_size == 200

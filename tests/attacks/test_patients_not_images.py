"""One patient with many images is one patient, where losses and weights by group are concerned."""

import pytest
import torch

from client.answers.group_weights import hold_weights
from fedmed.fairness.figures.group_losses import disclose_group_losses

GROUPS = ["one patient"] * 12 + ["many"] * 24
PATIENTS = ["p0"] * 12 + [f"q{number}" for number in range(24)]


def test_losses_of_one_patient_are_not_told_nor_do_they_follow() -> None:
    losses = torch.ones(36)
    assert disclose_group_losses(losses, GROUPS, 10, PATIENTS) == {}
    assert set(disclose_group_losses(losses, GROUPS, 10)) == {"one patient", "many"}, "without ids, images count"


def test_one_patient_has_no_weight_of_its_own() -> None:
    held = hold_weights({"one patient": 20.0, "many": 0.05}, GROUPS, [0] * 36, 10, PATIENTS)
    assert held == {"one patient": pytest.approx(0.05), "many": 0.05}

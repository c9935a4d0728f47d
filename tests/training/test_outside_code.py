"""Networks and losses from outside fedmed are tried before a round is spent on them."""

from typing import Any

import pytest
import torch
from torch import nn

from fedmed.aggregation.extension import explained_failure
from fedmed.errors import CheckpointError, ExtensionError, ExtensionFailedError, FederationError
from fedmed.training.outside_code import try_loss, try_network


def make(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, outputs))


class Loss(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, logits_BK: torch.Tensor, target_B: torch.Tensor, weights_B: torch.Tensor | None) -> Any:
        return self.value


def test_a_network_that_gives_logits_passes_and_keeps_its_mode() -> None:
    model = make(5).train()
    try_network("mine:build", model, 5, 4)
    assert model.training


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (make(6), r"gives \(2, 6\) for two images\. Needed: logits, \(2, 5\)"),
        (nn.Identity(), r"gives \(2, 3, 4, 4\)"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ConstantPad1d((0, 2), 0.0)), "no parameter to train"),
    ],
)
def test_a_network_of_another_shape_is_refused(model: nn.Module, what: str) -> None:
    with pytest.raises(ExtensionError, match=what):
        try_network("mine:build", model, 5, 4)


def test_a_network_that_fails_is_named() -> None:
    with pytest.raises(ExtensionFailedError, match="The model 'mine:build' cannot be run: RuntimeError"):
        try_network("mine:build", make(5), 5, 8)


def test_registered_names_are_not_tried() -> None:
    try_network("resnet18", nn.Identity(), 5, 4)
    try_loss({"ce": 1.0}, Loss("nothing"), 5)


@pytest.mark.parametrize("value", [torch.zeros(2), 0.5, None])
def test_a_loss_must_give_a_scalar(value: Any) -> None:
    with pytest.raises(ExtensionError, match="The loss 'mine:build' gives no scalar"):
        try_loss({"ce": 0.5, "mine:build": 0.5}, Loss(value), 5)
    try_loss({"mine:build": 1.0}, Loss(torch.tensor(0.5)), 5)


def test_a_loss_has_no_parameters() -> None:
    loss = Loss(torch.tensor(0.5))
    loss.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ExtensionError, match="parameters of its own"):
        try_loss({"mine:build": 1.0}, loss, 5)


def test_failures_of_others_code_become_one_line_and_ours_pass() -> None:
    with (
        pytest.raises(FederationError, match=r"The rule 'mine:Rule' has ended with KeyError: 'oops'\. Mend it"),
        explained_failure("rule", "mine:Rule"),
    ):
        raise KeyError("oops")
    with pytest.raises(CheckpointError), explained_failure("rule", "mine:Rule"):
        raise CheckpointError("the disk is full")
    with pytest.raises(KeyError), explained_failure("rule", "q_fedavg"):
        raise KeyError("a fault of fedmed's own")

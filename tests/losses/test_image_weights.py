"""Weights of images in the training loss, against sums written out."""

import numpy as np
import pytest
import torch

from fedmed.losses import build_loss, list_losses

COUNTS = [50, 10, 0, 3]
MEANS = [name for name in list_losses() if name != "cws"]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(6, 4)), requires_grad=True)
    return logits, torch.tensor(rng.integers(0, 4, 6)), torch.tensor([0.0, 2.0, 1.0, 0.5, 3.0, 1.0])


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_over_images_is_weighted_image_by_image(name, batch):
    logits, target, weights = batch
    loss = build_loss({name: 2.0}, COUNTS)
    single = [loss(logits[i : i + 1], target[i : i + 1]).item() for i in range(6)]
    expected = sum(w * value for w, value in zip(weights.tolist(), single, strict=True)) / 6
    assert loss(logits, target, weights).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", MEANS)
def test_weights_of_one_change_nothing_but_rounding(name, batch):
    logits, target, _ = batch
    loss = build_loss({name: 1.0}, COUNTS)
    assert loss(logits, target, torch.ones(6)).item() == pytest.approx(loss(logits, target).item())


def test_an_image_of_weight_zero_has_no_gradient(batch):
    logits, target, weights = batch
    (gradient,) = torch.autograd.grad(build_loss({"ce": 1.0, "focal": 1.0}, COUNTS)(logits, target, weights), logits)
    assert (gradient[0] == 0).all()
    assert (gradient[1:].abs().sum(dim=1) > 0).all()


def test_class_wise_statistics_are_not_weighted(batch):
    logits, target, weights = batch
    both, ce, cws = (build_loss(terms, COUNTS) for terms in ({"ce": 1.0, "cws": 1.0}, {"ce": 1.0}, {"cws": 1.0}))
    assert cws(logits, target, weights).item() == cws(logits, target).item()
    assert both(logits, target, weights).item() == pytest.approx(
        ce(logits, target, weights).item() + cws(logits, target).item()
    )

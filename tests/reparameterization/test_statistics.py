"""Recalibrated BatchNorm equals the statistics of the pooled images."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization.statistics import (
    apply_sums,
    collect_sums,
    pool_sums,
    statistics_from_sums,
    tracked_norms,
)
from tests.reparameterization.support.networks import SmallNet, draw, randomize


def make_sites(images: Tensor) -> dict[str, list[Tensor]]:
    return {"b": [images[:3], images[3:4]], "a": [images[4:10]], "c": [images[10:11], images[11:]]}


def test_statistics_by_hand() -> None:
    # Values 1, 2, 6 about c = 2: sums 3, 3, 17. Mean 3, variance (4 + 1 + 9) / 2 = 7.
    mean, variance = statistics_from_sums(torch.tensor([[3.0], [3.0], [17.0]]), torch.tensor([2.0]))
    assert (mean.item(), variance.item()) == (3.0, 7.0)
    with pytest.raises(ReparameterizationError, match="fewer than two"):
        statistics_from_sums(torch.ones(3, 1), torch.zeros(1))


def test_sums_of_sites_are_sums_of_the_pooled_images() -> None:
    model, images = randomize(SmallNet()).double(), draw(13, 3, 16, 16)
    pooled = pool_sums({site: collect_sums(model, batches) for site, batches in make_sites(images).items()})
    whole = collect_sums(model, [images])
    for name, values in whole.items():
        torch.testing.assert_close(pooled[name], values, rtol=1e-12, atol=1e-9)
    assert whole["bn1"][0].tolist() == [13 * 8 * 8] * 8


def test_batch_statistics_equal_the_pooled_ones_of_the_same_batches() -> None:
    """The oracle is torch's train mode: what each BatchNorm of a network in training gets, batch by batch, pooled."""
    model, images = randomize(SmallNet()).double(), draw(13, 3, 16, 16)
    sites = {"a": [images[:4], images[4:7]], "b": [images[7:]]}
    inputs: dict[str, list[Tensor]] = {}
    twin = copy.deepcopy(model).train()
    for name, norm in tracked_norms(twin).items():
        norm.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        for batch in (batch for batches in sites.values() for batch in batches):
            twin(batch)
    state = copy.deepcopy(model.state_dict())
    sums = {site: collect_sums(model, batches, batch_statistics=True) for site, batches in sites.items()}
    assert all(value.equal(state[name]) for name, value in model.state_dict().items()), "the model is as before"
    apply_sums(model, pool_sums(sums))
    for name, norm in tracked_norms(model).items():
        x_NCHW = torch.cat(inputs[name])
        torch.testing.assert_close(norm.running_mean, x_NCHW.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(norm.running_var, x_NCHW.var((0, 2, 3)), rtol=1e-10, atol=1e-12)
        assert norm.momentum == 0.1


def test_float32_does_not_cancel() -> None:
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(1))
    images = 1e4 + draw(50, 1, 8, 8).float()
    apply_sums(model, collect_sums(model, [images]))
    assert model[1].running_var.item() == pytest.approx(images.double().var().item(), rel=1e-6)


def test_the_model_is_as_before() -> None:
    model = randomize(SmallNet()).train()
    model.bn1.eval()
    state = copy.deepcopy(model.state_dict())
    collect_sums(model, [torch.randn(2, 3, 16, 16)])
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.bn1.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_sums_that_cannot_be_true_are_refused() -> None:
    model = SmallNet()
    sums = collect_sums(model, [torch.randn(2, 3, 16, 16)])
    with pytest.raises(ReparameterizationError, match="no BatchNorm sums"):
        pool_sums({})
    for change in (float("nan"), -1.0):
        wrong = copy.deepcopy(sums)
        wrong["bn1"][2, 0] = change
        with pytest.raises(ReparameterizationError, match="site 'b' cannot be true"):
            pool_sums({"a": sums, "b": wrong})
    with pytest.raises(ReparameterizationError, match="of another network"):
        pool_sums({"a": sums, "b": {"bn1": sums["bn1"]}})
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ReparameterizationError, match="of another network"):
        apply_sums(model, {"bn1": sums["bn1"]})
    sums["block.1"][0] = 1
    with pytest.raises(ReparameterizationError, match="fewer than two"):
        apply_sums(model, sums)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())


def test_layers_without_values_keep_theirs() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert apply_sums(model, collect_sums(model, [])) == 0.0
    assert model[0].running_var.tolist() == [1.0, 1.0, 1.0]

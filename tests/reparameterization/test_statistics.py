"""Recalibrated BatchNorm equals the statistics of the pooled images."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization.statistics import (
    apply_sums,
    collect_sums,
    count_passes,
    pool_sums,
    recalibrate,
    statistics_from_sums,
    tracked_norms,
)
from tests.reparameterization.networks import SmallNet, draw, randomize


def pooled_statistics(model: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """One pass over all images as one batch, in which every BatchNorm first takes the statistics of its own input."""

    def take(norm: nn.Module, args: tuple[Tensor]) -> None:
        norm.running_mean.copy_(args[0].mean((0, 2, 3)))
        norm.running_var.copy_(args[0].var((0, 2, 3)))

    oracle = copy.deepcopy(model).eval()
    norms = tracked_norms(oracle)
    for norm in norms.values():
        norm.register_forward_pre_hook(take)
    with torch.no_grad():
        oracle(images)
    return {name: (norm.running_mean, norm.running_var) for name, norm in norms.items()}


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


def test_enough_passes_equal_one_pass_over_all_images() -> None:
    model, images = randomize(SmallNet()).double(), draw(13, 3, 16, 16)
    expected = pooled_statistics(model, images)
    trained = copy.deepcopy(model).train()
    passes = count_passes(model, images[:2])
    assert passes == 3  # the stem's, the bag's three side by side, the block's
    changes = recalibrate(model, make_sites(images), passes)
    assert min(changes) > 1e-3  # no pass was in vain
    for name, norm in tracked_norms(model).items():
        torch.testing.assert_close(norm.running_mean, expected[name][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(norm.running_var, expected[name][1], rtol=1e-10, atol=1e-12)
    # And torch's own pass in train mode, up to the n / (n - 1) between the variance it keeps and the one it divides by.
    for norm in tracked_norms(trained).values():
        norm.momentum = 1.0
    trained(images)
    for name, norm in tracked_norms(trained).items():
        torch.testing.assert_close(norm.running_var, expected[name][1], rtol=5e-3, atol=0)
    # It stays: one more pass changes nothing.
    assert recalibrate(model, make_sites(images), 1)[0] < 1e-10


def test_each_pass_makes_one_more_stage_exact() -> None:
    model, images = randomize(SmallNet()).double(), draw(13, 3, 16, 16)
    expected = {name: mean for name, (mean, _) in pooled_statistics(model, images).items()}
    recalibrate(model, make_sites(images), 1)
    own = {name: norm.running_mean for name, norm in tracked_norms(model).items()}
    torch.testing.assert_close(own["bn1"], expected["bn1"], rtol=1e-10, atol=1e-12)
    assert (own["block.1"] - expected["block.1"]).abs().max() > 1e-3


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
    recalibrate(model, {"a": [images]}, 2)
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

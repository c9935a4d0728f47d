"""The matrix of forms: train to train, train to deploy, deploy to deploy work; deploy to train is a clear error."""

import copy

import pytest
import torch
from torch import nn

from fedmed.errors import CheckpointError
from fedmed.reparameterization import describe_form, load_into_deploy_form, load_state, reparameterize
from tests.reparameterization.support.networks import SmallNet, randomize


def test_forms_are_told_apart() -> None:
    model = SmallNet()
    for thing in (model, model.state_dict()):
        assert (describe_form(thing).name, describe_form(thing).num_bags, describe_form(thing).num_batch_norms) == (
            "train",
            1,
            2,
        )
    for fold_bn, name in ((False, "plain"), (True, "folded")):
        merged = reparameterize(model, fold_bn)
        assert describe_form(merged).name == describe_form(merged.state_dict()).name == name
    assert "train form (1 bags" in str(describe_form(model))


def test_train_to_train() -> None:
    source, target = randomize(SmallNet()), SmallNet()
    load_state(target, source.state_dict())
    assert all(value.equal(target.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_either_form_into_the_deploy_form(fold_bn: bool, form: str) -> None:
    source = randomize(SmallNet())
    expected = reparameterize(source, fold_bn)
    state = (source if form == "train" else expected).state_dict()
    loaded = load_into_deploy_form(SmallNet, state, fold_bn)
    assert not any(module.training for module in loaded.modules())
    assert list(loaded.state_dict()) == list(expected.state_dict())
    assert all(value.equal(expected.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("fold_bn", [False, True])
def test_deploy_into_the_train_form_is_a_clear_error(fold_bn: bool) -> None:
    target = SmallNet()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(CheckpointError, match="Merged weights cannot be split into branches"):
        load_state(target, reparameterize(SmallNet(), fold_bn).state_dict())
    assert all(value.equal(before[name]) for name, value in target.state_dict().items())


def test_folded_weights_into_a_network_without_bags() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    folded = reparameterize(make(), True).state_dict()
    with pytest.raises(CheckpointError, match="cannot be split"):
        load_state(make(), folded)
    assert torch.equal(load_into_deploy_form(make, folded, True)[0].weight, folded["0.weight"])


def test_train_weights_into_a_deploy_form_name_the_way() -> None:
    model = SmallNet()
    with pytest.raises(CheckpointError, match="load_into_deploy_form"):
        load_state(reparameterize(model), model.state_dict())


def test_other_weights_are_refused() -> None:
    state = SmallNet().state_dict()
    state["more"] = torch.zeros(1)
    for load in (lambda: load_state(SmallNet(), state), lambda: load_into_deploy_form(SmallNet, state)):
        with pytest.raises(CheckpointError, match="1 unexpected \\(more\\)"):
            load()
    small = SmallNet().state_dict() | {"fc.bias": torch.zeros(6)}
    with pytest.raises(CheckpointError, match=r"1 of another shape \(fc\.bias\)"):
        load_state(SmallNet(), small)


def test_another_fold_bn_is_named() -> None:
    folded = reparameterize(SmallNet(), True).state_dict()
    with pytest.raises(CheckpointError, match="another 'fold_bn' than False"):
        load_into_deploy_form(SmallNet, folded, False)

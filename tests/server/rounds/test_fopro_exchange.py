"""Federations that keep a head at the sites, or whose teacher is the global model itself."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedmed.distillation.network import build_network
from fedmed.export.onnx_file import ExportError
from fedmed.export.run import load_network
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.history import read_history
from tests.support.federation import Federation
from tests.support.fopro import make_fopro

Make = Callable[..., Federation]
HEADS = {
    "main": {"projector.0", "projector.1", "projector.3", "auxiliary"},
    "aux": {"model.5"},
}
"""Layers that stay: of the network "tiny" the last one is the fifth."""


def go(make: Make, name: str, **changes: Any) -> Federation:
    federation = make(name, rounds=2, fopro=make_fopro(**changes), calibrate=False)
    federation.go()
    return federation


def model_of(federation: Federation, round_number: int) -> dict[str, torch.Tensor]:
    return load_file(RunCheckpoints(federation.run.checkpoints).load(round_number).model_path)


def state_of(federation: Federation, site: str, round_number: int) -> dict[str, torch.Tensor]:
    file = federation.run.sites / site / "state" / f"round_{round_number:05d}.safetensors"
    kept = load_file(file)
    return {name.removeprefix("local/"): tensor for name, tensor in kept.items() if name.startswith("local/")}


@pytest.mark.parametrize("exchange", HEADS)
def test_a_head_stays_at_the_site_and_goes_on_learning(make_federation: Make, exchange: str) -> None:
    federation = go(make_federation, exchange, exchange=exchange)
    initial = build_network(federation.config.make_plan())
    everything = set(initial.whole.state_dict())
    kept = {name for name in everything if name.rpartition(".")[0] in HEADS[exchange]}
    assert set(model_of(federation, 2)) == everything - kept
    states = {site: [state_of(federation, site, number) for number in (1, 2)] for site in federation.sites}
    weight = "projector.0.weight" if exchange == "main" else "model.5.weight"
    for first, second in states.values():
        assert set(first) == set(second) == kept
        assert not first[weight].equal(initial.whole.state_dict()[weight])
        assert not first[weight].equal(second[weight])
    assert not states["site_01"][1][weight].equal(states["site_02"][1][weight])
    network = build_network(federation.config.make_plan())
    path = RunCheckpoints(federation.run.checkpoints).load(2).model_path
    network.fill(path.read_bytes(), {f"local/{name}": tensor for name, tensor in states["site_01"][1].items()})
    assert network.whole.state_dict()[weight].equal(states["site_01"][1][weight])


def test_by_default_everything_travels(make_federation: Make) -> None:
    network = build_network(make_federation(fopro=make_fopro()).config.make_plan())
    assert set(network.shared) == set(network.whole.state_dict())
    assert network.local == []


def test_a_model_whose_projector_stays_is_released_as_any_other(make_federation: Make) -> None:
    federation = go(make_federation, "main", exchange="main")
    assert not federation.config.make_plan().is_personal
    released = load_file(federation.run.model / "model.safetensors")
    assert {name.split(".")[0] for name in released} == {"0", "1", "5"}


def test_a_model_whose_last_layer_stays_is_one_of_each_site(make_federation: Make) -> None:
    federation = go(make_federation, "aux", exchange="aux")
    manifest = json.loads((federation.run.model / "manifest.json").read_text())
    assert "last layer stays" in manifest["limits"]
    chosen = json.loads(federation.run.finished_file.read_text())["chosen_round"]
    with pytest.raises(ExportError, match=r"The network's last layer stays at the sites.*has to be named with --site"):
        load_network(federation.run, federation.config, chosen)
    for site in federation.sites[:2]:
        network = load_network(federation.run, federation.config, chosen, site)
        last = network.model.get_submodule("5")
        assert isinstance(last, nn.Linear)
        assert last.weight.equal(state_of(federation, site, chosen)["model.5.weight"])


def test_a_federation_can_be_its_own_teacher(make_federation: Make) -> None:
    federation = make_federation(rounds=2, fopro={"teacher": "self", "hidden": 8}, calibrate=False)
    plan = federation.config.make_plan()
    assert plan.fopro is not None
    assert (plan.fopro.teacher.name, plan.fopro.weight, plan.fopro.prompt.mode) == ("self", 1.0, "none")
    federation.go()
    told = [record.fopro for record in read_history(federation.run.history_file)]
    assert [record.teacher for record in told] == ["self", "self"]
    assert all(0 < record.ekd <= 4 and record.bands is None for record in told)
    assert not any(name.startswith("fpg.") for name in model_of(federation, 2))
    assert federation.run.read_distillation() == {"fopro": "self", "teacher": None}
    assert "which is not FoPro-KD" in (federation.run.report / "index.html").read_text()

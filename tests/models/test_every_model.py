"""What every registered network must do, one test for each property, at small widths and sizes."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed.aggregation import WeightedUpdate, average_updates
from fedmed.models import create_model
from fedmed.reparameterization import convert, describe_form, load_into_deploy_form, reparameterize, verify
from fedmed.reparameterization.verify import use_branches
from fedmed.seeding import seeded_torch
from fedmed.storage.tensor_files import write_tensors
from tests.models.support.names import SHIPPED
from tests.reparameterization.support.networks import randomize

NUM_CLASSES = 5
SIDE = 64  # the last maps of the multi-branch networks then have 2 x 2 positions, so that attention has a choice
FEW_BLOCKS = {"local_depths": [1, 1, 1, 1], "global_depths": [1, 1, 1, 1]}
SMALL: dict[str, dict[str, Any]] = {
    "hemf": {"width": 16, **FEW_BLOCKS},
    "came": {"width": 32, **FEW_BLOCKS},
    "hifuse_tiny": {"width": 32},
    "hifuse_small": {"width": 32},
    "hifuse_base": {"width": 32},
    **{f"adsr_resnet{depth}": {"gate": "depthwise"} for depth in (34, 50, 101)},
    # The published levels have their own tests, in test_erohprf.py.
    "mixnet_s_erohprf": {"levels": [3]},
    "mobilenet_v2_erohprf": {"width_mult": 0.25, "levels": [3, 5]},
}
# Larger relatives of networks that are tested always.
SLOW = {
    *(f"adsr_resnet{depth}" for depth in (34, 50, 101)),
    *(f"hifuse_{size}" for size in ("small", "base")),
    *(f"shufflenet_v2_{size}_erohprf" for size in ("x1_0", "x1_5", "x2_0")),
}
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SHIPPED]


@dataclass
class Case:
    """A network with statistics as after training; tests copy it before they change it."""

    name: str
    network: nn.Module

    def create(self) -> nn.Module:
        return create_model(self.name, NUM_CLASSES, **SMALL.get(self.name, {}))


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with seeded_torch(0, "tests", "every model"):
        made = Case(request.param, nn.Identity())
        made.network = randomize(made.create())
    yield made
    torch.set_num_threads(threads)


def draw_images(num_images: int = 2, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(num_images, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network.eval()(images)
    return logits


def largest(values: Tensor) -> float:
    return float(values.abs().max())


def test_shapes(case: Case) -> None:
    for height, width in ((SIDE, SIDE), (32, 96)):
        logits = evaluate(case.network, draw_images(3, height, width))
        assert logits.shape == (3, NUM_CLASSES)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


def test_gradient_flow(case: Case) -> None:
    network = copy.deepcopy(case.network).train()
    nn.functional.cross_entropy(network(draw_images(4)), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} is dead"
        assert parameter.grad.isfinite().all(), name
        # Biases and shifts in front of a BatchNorm have gradient 0 by algebra; a weight must move.
        assert parameter.dim() == 1 or parameter.grad.any(), f"{name} does not move"


def test_batch_independence(case: Case) -> None:
    network, images = copy.deepcopy(case.network).double(), draw_images(3).double()
    together = evaluate(network, images)
    alone = torch.cat([evaluate(network, image[None]) for image in images])
    assert largest(together - alone) <= 1e-10 * largest(together)


def test_checkpoint_round_trip(case: Case) -> None:
    state = case.network.state_dict()
    content = safetensors.torch.save(state)  # refuses tensors that share memory
    fresh = case.create()
    fresh.load_state_dict(safetensors.torch.load(content), strict=True)
    assert list(fresh.state_dict()) == list(state)
    assert all(value.equal(state[name]) for name, value in fresh.state_dict().items())
    images = draw_images()
    assert evaluate(fresh, images).equal(evaluate(case.network, images))


def test_average_of_equal_networks_is_the_network(case: Case, tmp_path: Path) -> None:
    state = {name: value.numpy() for name, value in case.network.state_dict().items()}
    write_tensors(tmp_path / "update", state)
    updates = [WeightedUpdate(site, tmp_path / "update", weight) for site, weight in (("a", 3.0), ("b", 7.0))]
    averaged = dict(average_updates(updates))
    assert list(averaged) == list(state)
    assert all((values == state[name]).all() and values.dtype == state[name].dtype for name, values in averaged.items())
    assert {name for name, values in averaged.items() if values.dtype.kind != "f"} == {
        name for name in state if name.endswith("num_batches_tracked")
    }


def test_autocast(case: Case) -> None:
    images = draw_images()
    expected = evaluate(case.network, images)
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(case.network, images).float()
    assert largest(actual - expected) <= 0.1 * largest(expected)
    network = copy.deepcopy(case.network).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(network(draw_images(4)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_reparameterize(case: Case) -> None:
    network, images = copy.deepcopy(case.network).train(), draw_images()
    merged = reparameterize(network)
    expected = evaluate(use_branches(network), images)
    assert largest(evaluate(merged, images) - expected) <= 1e-4 * max(1.0, largest(expected))
    assert describe_form(merged).num_bags == 0


def test_fold_every_batch_norm_and_prove_it(case: Case) -> None:
    network, images = copy.deepcopy(case.network).train().double(), draw_images(1, 32, 32)
    conversion = convert(network, True)
    assert not any(isinstance(module, _BatchNorm) for module in conversion.model.modules())
    proof = verify(network, conversion.model, images, places=conversion.places).require()
    assert len(proof.blocks) > 15
    assert max(block.relative_error for block in proof.blocks) <= 1e-10
    assert proof.comparisons[0].relative_error <= 1e-9


def test_train_form_weights_load_into_the_deploy_form(case: Case) -> None:
    expected = reparameterize(case.network, True)
    loaded = load_into_deploy_form(case.create, case.network.state_dict(), True)
    assert list(loaded.state_dict()) == list(expected.state_dict())
    assert all(value.equal(expected.state_dict()[name]) for name, value in loaded.state_dict().items())

"""HEMF: counts, golden vectors of whole networks, ablation switches and options."""

import pytest
import torch

from fedmed.models import create_model
from fedmed.models.blocks.fusion import GLOBAL, LOCAL
from tests.models.support.multibranch import check_network, count_parameters, expected_zeros, stage_maps, zero_gradients

DENSE_MAPS = {
    **stage_maps(LOCAL, (1.153289, 2.369534), (1.124849, 2.324693), (1.066098, 2.248811), (0.996581, 2.217089)),
    **stage_maps(GLOBAL, (0.012268, 1.020934), (0.013254, 1.014958), (0.005469, 1.015001), (0.006901, 1.016960)),
    **stage_maps("fused", (-0.013629, 0.826147), (0.396697, 0.953653), (0.356983, 0.891327), (0.379792, 0.934466)),
}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 66_678_263),
        ({"dense_mlp": False}, 59_640_983),
        ({"width": 32}, 7_484_599),
        ({"width": 48}, 16_754_759),
        # Two more pairs of norms a stage, one more norm a branch and fusion block: (2 * 4 + 4) * (C = 1440 in all)
        ({"share_norms": False}, 66_678_263 + 12 * 1440),
    ],
)
def test_parameter_counts(options: dict, count: int) -> None:
    assert count_parameters("hemf", **options) == count
    assert count_parameters("hemf", 10, **options) - count == 3 * (8 * options.get("width", 96) + 1)


def test_counts_of_parts() -> None:
    with torch.device("meta"):
        model = create_model("hemf", 7)
    for stage, width in enumerate((96, 192, 384, 768)):
        local, wide = (model.branches[branch][stage][1:] for branch in (LOCAL, GLOBAL))
        count = [sum(parameter.numel() for parameter in part.parameters()) for part in (local, wide)]
        assert count == [4 * (10 * width**2 + 14 * width), 3 * (5 * width**2 + 31 * width) + 4 * width]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dense", "logits", "loss", "gradient", "maps"),
    [
        (True, [[-0.21833, 0.81315, -0.75002, 0.67320, 0.88534, 0.66871, 1.20043],
                [-0.40997, 0.71409, -0.52446, 0.55276, 0.65849, 0.68678, 0.77683]], 3.455994, 99.82715, DENSE_MAPS),
        (False, [[-0.69274, 0.89452, -0.38954, 0.34184, 0.69845, 0.93078, 1.37422],
                 [-0.58395, 0.60065, -0.24930, 0.17823, 0.45016, 0.97711, 1.01291]], 3.894011, 104.52806, {}),
    ],
    ids=["dense", "depthwise"],
)  # fmt: skip
def test_golden_network(dense: bool, logits: list, loss: float, gradient: float, maps: dict) -> None:
    check_network("hemf", {"dense_mlp": dense}, logits=logits, loss=loss, gradient=gradient, maps=maps)


def test_every_parameter_learns_but_where_batch_norm_forbids() -> None:
    model = create_model("hemf", 5, width=16, local_depths=[1, 1, 1, 1], global_depths=[1, 1, 1, 1])
    zeros = expected_zeros((LOCAL, GLOBAL), squeeze=True)
    assert len(zeros) == 30
    assert zero_gradients(model) == zeros


def test_memories_learn_at_their_default_start() -> None:
    model = create_model("hemf", 2, width=16)
    model(torch.randn(2, 3, 64, 64))[:, 0].sum().backward()
    memories = [p for name, p in model.named_parameters() if "memory." in name]
    assert len(memories) == 4 * 2 * 2
    assert all(parameter.std().item() == pytest.approx(0.001, rel=0.5) for parameter in memories)
    assert all(parameter.grad.abs().max() > 0 for parameter in memories)


# Rows of the published ablation: local, global, memory attention, gates, squeezed MLP.
ABLATION = [(1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (1, 1, 0, 0, 0), (1, 1, 1, 0, 0), (1, 1, 0, 1, 0), (1, 1, 1, 1, 0)]


@pytest.mark.parametrize("row", ABLATION)
def test_ablation(row: tuple[int, ...]) -> None:
    names = ("local", "global", "memory_attention", "gates", "squeezed_mlp")
    options = {name: bool(value) for name, value in zip(names, row, strict=True)}
    model = create_model("hemf", 3, width=16, **options)
    y = model(torch.randn(2, 3, 64, 64))
    y.square().sum().backward()
    assert y.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())
    names = " ".join(name for name, _ in model.named_parameters())
    found = tuple(int(part in names) for part in (LOCAL, GLOBAL, "memory.keys", "gates.0", "mlp.squeeze"))
    assert found == row


def test_new_weights() -> None:
    model = create_model("hemf", 7, width=32)
    for branch in model.branches.values():
        for module in branch.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.weight.numel() > 1000:
                std = 0.2 if isinstance(module, torch.nn.Conv2d) else 0.02
                assert module.weight.std().item() == pytest.approx(std, rel=0.1)
                assert not module.bias.any()
    small = create_model("hemf", 7, width=16, conv_init_std=0.02)
    assert small.branches[LOCAL][3][1].parts["dense"].weight.std().item() == pytest.approx(0.02, rel=0.05)

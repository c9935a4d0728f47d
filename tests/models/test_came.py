"""CAME: counts, golden vectors of whole networks and options."""

import pytest
import torch

from fedmed.models import create_model
from fedmed.models.blocks.fusion import GLOBAL, LOCAL, MEMORY
from tests.models.support.multibranch import check_network, count_parameters, expected_zeros, stage_maps, zero_gradients

SHARED_MAPS = {
    **stage_maps(LOCAL, (-0.046549, 1.700811), (-0.027303, 1.577124), (0.083655, 1.564808), (-0.008525, 1.519593)),
    **stage_maps(MEMORY, (0.001934, 0.580738), (-0.005045, 0.582203), (0.003610, 0.585918), (-0.001677, 0.590501)),
}
SHIPPED_MAPS = {
    **SHARED_MAPS,
    **stage_maps(GLOBAL, (0.072340, 1.056599), (0.101370, 1.043417), (0.059595, 1.044212), (0.104966, 1.046763)),
    **stage_maps("fused", (0.096336, 0.800983), (0.273337, 0.844512), (0.338779, 0.885526), (0.412173, 0.915770)),
}
DEFAULT_MAPS = {
    **SHARED_MAPS,
    **stage_maps(GLOBAL, (0.101126, 1.058402), (0.119225, 1.078577), (0.154610, 1.122102), (0.291658, 1.170959)),
    **stage_maps("fused", (0.058833, 0.902270), (0.308027, 0.958895), (0.410553, 0.993574), (0.460042, 1.043411)),
}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 111_771_049),
        ({"dense_mlp": True}, 224_523_049),
        ({"dense_mlp": True, "legacy_layout": True}, 224_523_049),
        ({"width": 32}, 12_509_645),
    ],
)
def test_parameter_counts(options: dict, count: int) -> None:
    assert count_parameters("came", **options) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "logits", "loss", "gradient", "maps"),
    [
        ({}, [[-1.74960, -0.90931, 0.05944, 0.89298, -0.47622, 1.40433, -0.70357],
              [-1.56123, -1.07146, 0.32396, 0.81454, -0.81728, 1.11934, -0.75093]], 3.419239, 101.24345, DEFAULT_MAPS),
        ({"dense_mlp": True}, [[-1.06663, 0.09870, -0.24687, 1.13928, -0.84863, 0.98748, -0.78440],
                               [-1.05868, -0.18983, -0.28863, 0.84248, -1.10375, 0.90326, -1.14686]],
         3.360476, 130.43237, {}),
        ({"dense_mlp": True, "legacy_layout": True},
         [[-1.45277, -0.70220, -0.47821, 1.04794, -0.82284, 1.40419, -0.50840],
          [-1.48694, -0.87988, -0.69361, 0.72580, -1.00586, 1.01596, -0.83173]], 2.823323, 115.5808, SHIPPED_MAPS),
    ],
    ids=["default", "dense", "shipped"],
)  # fmt: skip
def test_golden_network(options: dict, logits: list, loss: float, gradient: float, maps: dict) -> None:
    check_network("came", options, logits=logits, loss=loss, gradient=gradient, maps=maps)


def test_every_parameter_learns_but_where_batch_norm_forbids() -> None:
    model = create_model("came", 5, width=32, local_depths=[1, 1, 1, 1])
    # The shift of a memory's norm adds the same to a slot's logits of all positions, over which the softmax runs.
    shifts = {f"branches.{MEMORY}.{stage}.1.norm.bias" for stage in range(4)}
    assert zero_gradients(model) == expected_zeros((LOCAL, GLOBAL, MEMORY), squeeze=False) | shifts
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):  # a key's bias adds the same to all logits of a query
            width = parameter.numel() // 3
            assert parameter.grad[width : 2 * width].abs().max() < 1e-12


@pytest.mark.parametrize("off", ["local", "global", "memory_attention", "gates"])
def test_ablation(off: str) -> None:
    model = create_model("came", 3, width=32, **{off: False})
    y = model(torch.randn(2, 3, 64, 64))
    y.square().sum().backward()
    assert y.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())
    there = {LOCAL: off != "local", GLOBAL: off != "global", MEMORY: off != "memory_attention"}
    assert list(model.branches) == [branch for branch, on in there.items() if on]


def test_legacy_layout_and_shift_change_the_result_and_no_tensor() -> None:
    model = create_model("came", 3, width=32).eval()
    x = torch.randn(1, 3, 64, 64)
    for option in ("legacy_layout", "disable_shift_when_covered"):
        other = create_model("came", 3, width=32, **{option: True}).eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert not torch.equal(other(x), model(x))

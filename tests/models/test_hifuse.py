"""HiFuse: counts and golden vectors of whole networks; what the three multi-branch networks have in common."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmed.errors import ConfigError
from fedmed.models import create_model
from fedmed.models.blocks.fusion import GLOBAL, LOCAL
from fedmed.models.hifuse import VARIANTS
from tests.models.support.golden import fill_by_size
from tests.models.support.multibranch import (
    check_network,
    count_parameters,
    expected_zeros,
    export,
    stage_maps,
    zero_gradients,
)

NARROW = {"hemf": 16, "came": 32, "hifuse_tiny": 32}
COUNTS = {"tiny": (54_673_217, 118_086_497), "small": (58_250_993, 121_664_273), "base": (68_984_321, 132_397_601)}
TINY_MAPS = {
    **stage_maps(LOCAL, (0.633955, 1.551584), (0.563410, 1.537289), (0.606078, 1.518263), (0.579868, 1.508962)),
    **stage_maps(GLOBAL, (0.115299, 1.068080), (0.142842, 1.088135), (0.194385, 1.148356), (0.297885, 1.183969)),
    **stage_maps("fused", (0.067880, 0.824511), (0.339237, 0.901242), (0.361109, 0.948292), (0.441848, 0.963134)),
}
BASE_MAPS = {
    (LOCAL, 3): (5.032588, 9.328011), (GLOBAL, 3): (3.459792, 7.171431), ("fused", 3): (0.337839, 0.999527),
    (LOCAL, 4): (0.541977, 1.487904), (GLOBAL, 4): (0.537097, 1.430103), ("fused", 4): (0.436342, 1.015213),
}  # fmt: skip
SMALL_MAPS = {
    (LOCAL, 3): (1.719363, 3.280823), (GLOBAL, 3): (0.879356, 2.261430), ("fused", 3): (0.326777, 1.008657),
    (LOCAL, 4): (0.556239, 1.491043), (GLOBAL, 4): (0.500485, 1.338269), ("fused", 4): (0.451314, 1.021664),
}  # fmt: skip
GOLDEN: list[tuple[str, bool, list, float, float, dict]] = [
    ("tiny", False, [[1.48450, -0.25253, 1.06120, 0.11403, 0.51616, -0.92535, 0.59860],
                     [1.16036, -0.24892, 0.60564, 0.09845, 0.33182, -1.00062, 0.69610]], 2.226451, 84.81914, TINY_MAPS),
    ("small", False, [[1.55389, 0.44586, 0.74546, -0.26878, 0.62789, -0.92840, 1.13890],
                      [1.12040, 0.30091, 0.47906, -0.53248, 0.84074, -1.13965, 1.18681]],
     2.083492, 102.43432, SMALL_MAPS),
    ("base", False, [[1.10077, -0.29235, -0.00062, 0.45082, 0.68795, -1.98461, 0.84256],
                     [0.91420, -0.54467, -0.14508, 0.11387, 1.39139, -1.68147, 1.02084]],
     2.716768, 135.93159, BASE_MAPS),
    ("tiny", True, [[1.68729, -0.14725, 1.08063, 0.08359, 0.62153, -0.47275, 0.36281],
                    [1.52107, 0.02092, 0.95031, 0.31589, 0.55234, -1.06061, 0.45386]], 2.748352, 97.35421,
     stage_maps("fused", (0.067892, 0.792924), (0.329084, 0.857347), (0.360745, 0.900873), (0.420355, 0.910991))),
    ("small", True, [[1.77967, 0.08382, 0.64006, -0.97637, 0.40173, -0.36927, 1.02715],
                     [1.63311, 0.31148, 0.29023, -0.70277, 0.65544, -0.39962, 1.12636]], 2.386436, 117.90275,
     {("fused", 3): (0.339287, 0.900889), ("fused", 4): (0.403466, 0.904898)}),
    ("base", True, [[1.35853, 0.24063, 0.20801, -0.73568, 1.23314, -1.24207, 0.68043],
                    [1.06973, 0.00343, -0.30974, -1.02133, 1.50828, -0.99351, 0.96168]], 2.608900, 148.46111,
     {("fused", 3): (0.330394, 0.894796), ("fused", 4): (0.385595, 0.912506)}),
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts(variant: str) -> None:
    name = f"hifuse_{variant}"
    assert (count_parameters(name), count_parameters(name, dense_mlp=True)) == COUNTS[variant]
    assert count_parameters(name, 10) == COUNTS[variant][0] + 3 * 769


def test_narrow_count() -> None:
    assert count_parameters("hifuse_tiny", width=32) == 6_115_621


@pytest.mark.parametrize(
    ("network", "logits", "loss", "gradient", "maps"),
    [pytest.param(row[:2], *row[2:], marks=[pytest.mark.slow] if index else []) for index, row in enumerate(GOLDEN)],
    ids=[f"{row[0]}-{'dense' if row[1] else 'depthwise'}" for row in GOLDEN],
)
def test_golden_network(network: tuple[str, bool], logits: list, loss: float, gradient: float, maps: dict) -> None:
    variant, dense = network
    check_network(f"hifuse_{variant}", {"dense_mlp": dense}, logits=logits, loss=loss, gradient=gradient, maps=maps)


def test_every_parameter_learns_but_where_batch_norm_forbids() -> None:
    model = create_model("hifuse_tiny", 5, width=32)
    assert zero_gradients(model) == expected_zeros((LOCAL, GLOBAL), squeeze=False)


@pytest.mark.parametrize("off", ["local", "global", "gates"])
def test_ablation(off: str) -> None:
    model = create_model("hifuse_tiny", 3, width=32, **{off: False})
    y = model(torch.randn(2, 3, 64, 64))
    y.square().sum().backward()
    assert y.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert (LOCAL in model.branches, GLOBAL in model.branches) == (off != "local", off != "global")


def test_double_sigmoid_changes_the_result_and_no_tensor() -> None:
    model = create_model("hifuse_tiny", 3, width=32).eval()
    legacy = create_model("hifuse_tiny", 3, width=32, double_sigmoid=True).eval()
    legacy.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(legacy(x), model(x))


def narrow(name: str, **options: Any) -> nn.Module:
    """Return a filled network in eval mode, whose running statistics come from data."""
    model = fill_by_size(create_model(name, 4, width=NARROW[name], **options))
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 64)])
def test_sizes_and_batch_independence(name: str, size: tuple[int, int]) -> None:
    model = narrow(name)
    x = torch.randn(3, 3, *size)
    with torch.no_grad():
        y = model(x)
        alone = torch.cat([model(image[None]) for image in x])
        strided = model(x.contiguous(memory_format=torch.channels_last))
    assert y.shape == (3, 4)
    torch.testing.assert_close(alone, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(strided, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("size", [(230, 224), (208, 208), (31, 32), (32, 16)])
def test_other_sizes_are_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]} pixels. Allowed: multiples of 32"):
        narrow(name)(torch.randn(1, 3, *size))


@pytest.mark.parametrize("name", NARROW)
def test_stages_halve_the_map_and_double_the_channels(name: str) -> None:
    features = narrow(name).forward_features(torch.randn(1, 3, 64, 96))
    width = NARROW[name]
    assert [tuple(y.shape) for y in features] == [(1, width * 2**i, 16 // 2**i, 24 // 2**i) for i in range(4)]


@pytest.mark.parametrize("name", NARROW)
def test_one_image_trains(name: str) -> None:
    narrow(name).train()(torch.randn(1, 3, 64, 64)).sum().backward()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        narrow(name).train()(torch.randn(1, 3, 32, 32))
    for norm in ("group", "layer"):
        model = create_model(name, 4, width=NARROW[name], fusion_norm=norm)
        model(torch.randn(1, 3, 32, 32)).sum().backward()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = narrow(name)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(x).float()
        whole = copy.deepcopy(model).to(dtype)(x.to(dtype)).float()
    assert (mixed - y).norm() < 0.05 * y.norm()
    assert (whole - y).norm() < 0.1 * y.norm()
    with torch.autocast("cpu", dtype=dtype):
        loss = functional.cross_entropy(model.train()(x).float(), torch.tensor([0, 1]))
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NARROW)
def test_state_dict(name: str) -> None:
    model = narrow(name)
    state = model.state_dict()
    counters = [key for key, value in state.items() if not value.is_floating_point()]
    assert all(key.endswith("num_batches_tracked") for key in counters)
    pointers = [value.data_ptr() for value in state.values()]
    assert len(set(pointers)) == len(pointers)  # no tensor under two names
    other = create_model(name, 4, width=NARROW[name]).eval()
    other.load_state_dict({key: 0.5 * value + 0.5 * value if value.is_floating_point() else value
                           for key, value in state.items()})  # fmt: skip
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_export_with_another_batch(name: str) -> None:
    model = narrow(name, local_depths=[1, 1, 1, 1])
    x = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(export(model, x[:2])(x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hemf", {"width": 24}, "'width' is 24. Allowed: a multiple of 16"),
        ("came", {"width": 48}, "'width' is 48. Allowed: a multiple of 32"),
        ("hemf", {"local": False, "global": False}, "'local', 'global' are all off"),
        ("hemf", {"global": "no"}, "'global' is 'no'. Allowed: true, false"),
        ("hemf", {"squeezed": True}, "no option 'squeezed'. Did you mean 'squeezed_mlp'?"),
        ("hifuse_tiny", {"memory_attention": True}, "The model 'hifuse_tiny' has no option 'memory_attention'"),
        ("came", {"gates": 1}, "'gates' is 1. Allowed: true, false"),
        ("came", {"local_depths": [2, 2, 2]}, "'local_depths' is .* Allowed: four whole numbers from 1"),
        ("hifuse_base", {"global_depths": [2, 2, 0, 2]}, "'global_depths' is "),
        ("hemf", {"fusion_norm": "instance"}, "'fusion_norm' is 'instance'. Allowed: batch, group, layer"),
        ("hemf", {"drop_path": 1.5}, "'drop_path' is 1.5"),
        ("hemf", {"conv_init_std": 0}, "'conv_init_std' is 0"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create_model(name, 3, **options)


@pytest.mark.slow
def test_overfits_a_few_images() -> None:
    depths = [1, 1, 1, 1]
    model = create_model("hifuse_tiny", 2, width=32, local_depths=depths, global_depths=depths)
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05

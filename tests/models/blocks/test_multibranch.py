"""Blocks of HiFuse, CAME and HEMF against golden vectors, and their properties."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.blocks.attention import ChannelGate, ExternalAttention, ResidualMemory, SpatialGate
from fedmed.models.blocks.fusion import CONTEXT, GLOBAL, LOCAL, MEMORY, PREVIOUS, FusionBlock, FusionDesign
from fedmed.models.blocks.local_block import LocalBlock, spread_drop_path
from fedmed.models.blocks.norms import ChannelNorm, ConvNorm, make_fusion_norm
from fedmed.models.blocks.retention import (
    RetentionStage,
    attend_axially,
    compute_frequencies,
    compute_log_decay,
    compute_positions,
    rotate,
)
from fedmed.models.blocks.stems import PatchMerge
from fedmed.models.blocks.windows import (
    WindowAttention,
    WindowBlock,
    choose_window_shift,
    compute_mask,
    make_relative_index,
)
from fedmed.models.came import LOCAL_PARTS as CAME_PARTS
from fedmed.models.hemf import LOCAL_PARTS as HEMF_PARTS
from fedmed.models.hifuse import LOCAL_PARTS as HIFUSE_PARTS
from tests.models.support.golden import block_inputs, check_vector, fill_in_order

CPU = torch.device("cpu")


def window_stage(depth: int, **options: bool) -> nn.Sequential:
    return nn.Sequential(*(WindowBlock(16, 4, choose_window_shift(index), **options) for index in range(depth)))


@pytest.mark.parametrize(
    ("parts", "order", "vector"),
    [
        (HIFUSE_PARTS, ["depthwise", "norm", "pointwise"],
         (0.249861, 0.813558, [0.44530, -0.22602, 0.20244, 0.38184], [-0.76234, -0.44001])),
        (CAME_PARTS, ["depthwise", "dense", "pointwise", "norm"],
         (-0.095543, 0.775901, [0.38424, -1.78671, -0.07236, 0.43692], [-0.78315, -0.62617])),
        (HEMF_PARTS, ["dense", "depthwise", "pointwise", "norm"],
         (0.163653, 0.759765, [0.38070, -1.11962, 0.14134, 0.33887], [-0.88107, -0.36479])),
    ],
    ids=["hifuse", "came", "hemf"],
)  # fmt: skip
def test_local_block(parts: tuple[str, ...], order: list[str], vector: tuple) -> None:
    block = fill_in_order(LocalBlock(16, parts), [f"parts.{part}" for part in order])
    check_vector(block(*block_inputs((2, 16, 5, 7))), *vector)


@pytest.mark.parametrize(
    ("size", "vector"),
    [
        ((8, 10), (0.079665, 0.653128, [0.44518, -1.26037, 0.14502, 0.73213], [0.76287, 0.92168])),
        ((7, 7), (0.125957, 0.669381, [0.95633, -0.47116, 0.27855, 0.42874], [0.46983, -0.63658])),
    ],
)
def test_hifuse_global_stage(size: tuple[int, int], vector: tuple) -> None:
    parts = ["norm", "attention.bias_table", "attention.qkv", "attention.project", "linear"]
    stage = fill_in_order(window_stage(2), [f"{index}.{part}" for index in range(2) for part in parts])
    check_vector(stage(*block_inputs((2, 16, *size))), *vector)


@pytest.mark.parametrize(
    ("legacy", "vector"),
    [
        (False, (0.098093, 0.635103, [1.90952, 0.81382, 0.87733, 0.58565], [0.80826, 1.04083])),
        (True, (0.088113, 0.641562, [0.93503, -1.08771, 0.45246, 0.36981], [1.14032, 1.02524])),
    ],
)
def test_came_global_stage(legacy: bool, vector: tuple) -> None:
    parts = ["conv", "norm", "attention.bias_table", "attention.qkv", "attention.project", "linear"]
    stage = window_stage(2, convolution=True, legacy_layout=legacy)
    fill_in_order(stage, [f"{index}.{part}" for index in range(2) for part in parts])
    x = block_inputs((2, 16, 8, 10))[0]
    check_vector(stage(x), *vector)
    check_vector(stage(x.contiguous(memory_format=torch.channels_last)), *vector)


def test_patch_merge() -> None:
    merge = fill_in_order(PatchMerge(16), ["linear", "norm"])
    y_BCHW = merge(*block_inputs((2, 16, 4, 6)))
    vector = (0.003152, 1.056490, [1.76099, 0.65238, 0.04241, -0.76382], [-0.08511, -1.28626])
    check_vector(y_BCHW.permute(0, 2, 3, 1), *vector)  # the vector is that of tokens


def test_retention_stage() -> None:
    layers = [f"retentions.{index}.{part}" for index in range(2) for part in ("query", "key", "value", "lepe", "out")]
    stage = RetentionStage(32, 2)
    fill_in_order(stage, ["norms_a.0", "norms_b.0", *layers, "linears.0", "linears.1"])
    vector = (-0.007510, 0.981568, [-0.10918, -0.47091, -0.03834, 0.32055], [-0.73517, -1.76598])
    check_vector(stage(*block_inputs((2, 32, 4, 6))), *vector)


def test_external_attention() -> None:
    attention = fill_in_order(ExternalAttention(16, heads=8), ["keys", "values"])
    vector = (0.013433, 0.024476, [-0.00703, -0.00944, -0.01097, -0.00720], [0.02518, 0.01288])
    check_vector(attention(*block_inputs((2, 16, 4, 4))), *vector)
    residual = fill_in_order(ResidualMemory(16), ["norm", "attention.keys", "attention.values"])
    vector = (-0.020794, 0.578507, [0.53312, -0.96045, 0.27320, 0.50084], [0.61168, 0.62217])
    check_vector(residual(*block_inputs((2, 16, 4, 4))), *vector)


def check_fusion(block: FusionBlock, maps: dict[str, Tensor], previous: Tensor | None, vectors: list[tuple]) -> None:
    check_vector(block.eval()(maps, previous), *vectors[0])
    check_vector(block.train()(maps, previous), *vectors[1])


HEMF_FUSION = FusionDesign(
    context_order=(PREVIOUS, LOCAL, GLOBAL),
    merge_order=(GLOBAL, LOCAL, CONTEXT),
    spatial_on=(LOCAL, GLOBAL),
    channel_on=(LOCAL, GLOBAL),
    memory_heads=8,
    squeeze=True,
    dense_mlp=True,
)
MLP = ["mlp.spatial", "mlp.expand", "mlp.reduce.conv", "mlp.reduce.norm", "mlp.middle_norm"]


def conv_norm(name: str) -> list[str]:
    return [f"{name}.conv", f"{name}.norm"]


def per_branch(parts: list[str], branches: tuple[str, ...] = (LOCAL, GLOBAL)) -> list[str]:
    return [f"recalibrations.{branch}.{part}" for branch in branches for part in parts]


@pytest.mark.parametrize(
    ("first", "vectors"),
    [
        (True, [(-0.000343, 0.781990, [0.24090, 1.21169, 1.06858, 0.68939], [0.62889, 1.74414]),
                (0.011352, 1.021941, [0.91897, 0.45427, 0.01926, -0.49980], [-0.68815, 1.29043])]),
        (False, [(0.176356, 0.747331, [0.70100, 0.92312, 0.91938, 0.39752], [-1.67454, 0.47863]),
                 (0.410785, 1.033657, [-0.85717, 1.01513, 1.08763, 0.29362], [-2.04164, 1.84242])]),
    ],
)  # fmt: skip
def test_hemf_fusion(first: bool, vectors: list[tuple]) -> None:
    block = FusionBlock(32, (LOCAL, GLOBAL), HEMF_FUSION, first=first)
    order = [*conv_norm(f"projections.{LOCAL}"), *conv_norm(f"projections.{GLOBAL}"), *per_branch(["norm"])]
    order += [*per_branch(["memory.keys", "memory.values"]), *per_branch(["gates.0.conv"])]
    order += per_branch(["gates.1.squeeze", "gates.1.excite"])
    order += [*([] if first else conv_norm("previous")), "context_norm", *conv_norm("context"), "merge_norm"]
    fill_in_order(block, [*order, *conv_norm("mlp.squeeze"), *MLP])
    local, wide, previous = block_inputs((2, 32, 4, 4), (2, 32, 4, 4), (2, 16, 8, 8))
    check_fusion(block, {LOCAL: local, GLOBAL: wide}, None if first else previous, vectors)


def test_came_fusion() -> None:
    branches = (LOCAL, GLOBAL, MEMORY)
    design = FusionDesign(
        context_order=(*branches, PREVIOUS),
        merge_order=(*branches, CONTEXT),
        spatial_on=branches,
        spatial_kernel=3,
        channel_on=branches,
        channel_ratio=8,
        dense_mlp=True,
    )
    block = FusionBlock(16, branches, design, first=False)
    order = [name for branch in branches for name in conv_norm(f"projections.{branch}")] + conv_norm("previous")
    order += per_branch(["gates.0.conv"], branches)
    order += per_branch(["gates.1.squeeze", "gates.1.excite"], branches)
    fill_in_order(block, [*order, "context_norm", *conv_norm("context"), "merge_norm", *MLP])
    *maps, previous = block_inputs((2, 16, 4, 4), (2, 16, 4, 4), (2, 16, 4, 4), (2, 8, 8, 8))
    vectors = [
        (0.205902, 0.799150, [-1.21976, -1.01946, 0.43961, -0.04962], [0.75806, -0.23850]),
        (0.421346, 1.057071, [0.29052, -0.88923, 1.44547, 0.46892], [2.08730, -0.02650]),
    ]
    check_fusion(block, dict(zip(branches, maps, strict=True)), previous, vectors)


@pytest.mark.parametrize(
    ("dense", "vectors"),
    [
        (True, [(0.451167, 0.812929, [0.03616, 0.45779, 1.20897, 0.05167], [-0.96493, 0.45109]),
                (0.414906, 1.050714, [-0.18808, -0.01585, 0.79914, -0.60989], [-2.11381, 0.65046])]),
        (False, [(0.443048, 0.825503, [0.20642, 0.35937, 1.18092, -0.03835], [-0.96758, 0.30872]),
                 (0.414906, 1.051572, [0.91295, 0.05220, 0.36952, -1.08587], [-1.17543, 1.01104])]),
    ],
)  # fmt: skip
def test_hifuse_fusion(dense: bool, vectors: list[tuple]) -> None:
    design = FusionDesign(
        context_order=(PREVIOUS, LOCAL, GLOBAL),
        merge_order=(GLOBAL, LOCAL, CONTEXT),
        spatial_on=(LOCAL,),
        spatial_order="max_mean",
        spatial_norm=True,
        channel_on=(GLOBAL,),
        dense_mlp=dense,
    )
    block = FusionBlock(32, (LOCAL, GLOBAL), design, first=False)
    order = [f"recalibrations.{GLOBAL}.gates.0.{part}" for part in ("squeeze", "excite")]
    order += [*conv_norm(f"recalibrations.{LOCAL}.gates.0.conv"), *conv_norm(f"projections.{LOCAL}")]
    order += [*conv_norm(f"projections.{GLOBAL}"), *conv_norm("previous"), "context_norm", "merge_norm"]
    fill_in_order(block, [*order, *conv_norm("context"), *MLP])
    local, wide, previous = block_inputs((2, 32, 4, 4), (2, 32, 4, 4), (2, 16, 8, 8))
    check_fusion(block, {LOCAL: local, GLOBAL: wide}, previous, vectors)


def test_window_index_and_partition() -> None:
    index = make_relative_index()
    assert (index.diagonal() == 6 * 13 + 6).all()
    assert torch.equal(index + index.T, torch.full_like(index, 168))  # swapping query and key negates both differences
    # An attention that only looks at itself gives the values back, each to its own place.
    attention = WindowAttention(32, 1, shift=3)
    with torch.no_grad():
        attention.bias_table.fill_(-1e4)[6 * 13 + 6] = 0
        attention.qkv.weight.copy_(torch.cat([torch.zeros(64, 32), torch.eye(32)]))
        attention.project.weight.copy_(torch.eye(32))
        for layer in (attention.qkv, attention.project):
            layer.bias.zero_()
    x = torch.randn(2, 9, 15, 32)
    torch.testing.assert_close(attention(x), x)


@pytest.mark.parametrize(("side", "fraction"), [(7, 0.7397), (14, 0.4298)])
def test_share_of_masked_pairs(side: int, fraction: float) -> None:
    mask = compute_mask(side, side, (3, 3), torch.zeros(1))
    assert set(mask.unique().tolist()) == {-100.0, 0.0}
    assert (mask < 0).float().mean().item() == pytest.approx(fraction, abs=5e-5)
    assert not compute_mask(side, side, (0, 0), torch.zeros(1)).any()


def test_shift_where_one_window_covers_the_map() -> None:
    published = WindowAttention(32, 1, shift=3)
    swin = WindowAttention(32, 1, shift=3, disable_shift_when_covered=True)
    swin.load_state_dict(published.state_dict())
    assert published.choose_shift(7, 14) == (3, 3)
    assert swin.choose_shift(7, 14) == (0, 3)
    x = torch.randn(1, 7, 7, 32)
    assert not torch.allclose(swin(x), published(x))


@pytest.mark.parametrize(("legacy", "reached"), [(False, 14 * 14), (True, 56 * 56)])
def test_came_block_is_local(legacy: bool, reached: int) -> None:
    block = WindowBlock(96, 3, 0, convolution=True, legacy_layout=legacy)
    x = torch.randn(1, 96, 56, 56)
    moved = x.clone()
    moved[:, :, 28, 28] += 1.0
    with torch.no_grad():
        changed = (block(moved) - block(x)).abs().amax(dim=(0, 1)) > 0
    assert changed.sum() == reached
    assert changed[21:35, 21:35].all()  # the convolution reaches into windows that start at 21 and at 28


def test_retention_tables() -> None:
    gammas = [0.5, 0.61445, 0.70270, 0.77075, 0.82322, 0.86369, 0.89489, 0.91895]
    torch.testing.assert_close(compute_log_decay().exp(), torch.tensor(gammas), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        compute_frequencies(12), torch.tensor([10000 ** (-j / 5) for j in range(6)]), rtol=1e-6, atol=0
    )
    positions = compute_positions(3, 5, 12, CPU)
    assert positions.row_decay[1, 4, 2] == pytest.approx(2 * math.log(1 - 2**-1.375), rel=1e-6)
    assert positions.column_decay.shape == (8, 3, 3)
    assert positions.sin[2, 1, 0, 0] == pytest.approx(math.sin(11), abs=1e-6)  # raster index 2 * 5 + 1


def test_rotation_keeps_products_of_interleaved_pairs() -> None:
    """Rotated products depend on the difference of positions alone, as for complex numbers."""
    q, k = torch.randn(2, 1, 4, 6, 8, 12, dtype=torch.float64)
    positions = compute_positions(4, 6, 12, CPU)
    angle = torch.atan2(positions.sin, positions.cos).double()
    turn = torch.polar(torch.ones_like(angle), angle)

    def turn_pairs(z: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    expected = torch.einsum("bhwnd,bijnd->bnhwij", turn_pairs(q), turn_pairs(k))
    found = torch.einsum("bhwnd,bijnd->bnhwij", rotate(q, positions), rotate(k, positions))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_axial_attention_without_decay_is_plain() -> None:
    q, k, v = torch.randn(3, 2, 4, 6, 8, 12, dtype=torch.float64)
    plain = compute_positions(4, 6, 12, CPU)._replace(row_decay=torch.zeros(8, 6, 6), column_decay=torch.zeros(8, 4, 4))
    rows = torch.einsum("bhwnd,bhxnd->bhnwx", q, k).div(math.sqrt(12)).softmax(-1)
    columns = torch.einsum("bhwnd,bxwnd->bwnhx", q, k).div(math.sqrt(12)).softmax(-1)
    expected = torch.einsum("bwnhx,bxwnd->bhwnd", columns, torch.einsum("bhnwx,bhxnd->bhwnd", rows, v))
    torch.testing.assert_close(attend_axially(q, k, v, plain), expected)


def test_axial_attention_of_one_row_or_column() -> None:
    q, k, v = torch.randn(3, 1, 1, 6, 8, 12)
    wide = compute_positions(1, 6, 12, CPU)
    logits = torch.einsum("bhwnd,bhxnd->bhnwx", q, k) / math.sqrt(12) + wide.row_decay
    along = torch.einsum("bhnwx,bhxnd->bhwnd", logits.softmax(-1), v)
    torch.testing.assert_close(attend_axially(q, k, v, wide), along)  # the step along columns is the identity
    # Without shared axes the order of the steps shows: transposing the map is not transposing the result.
    q, k, v = torch.randn(3, 1, 5, 5, 8, 12)
    square = compute_positions(5, 5, 12, CPU)
    turned = attend_axially(*(z.transpose(1, 2) for z in (q, k, v)), square).transpose(1, 2)
    assert not torch.allclose(turned, attend_axially(q, k, v, square))


def test_external_attention_is_doubly_normalised_and_shares_its_memory() -> None:
    attention = ExternalAttention(16, heads=8)
    with torch.no_grad():
        attention.keys.weight.normal_()
        attention.values.weight.normal_()
    x = torch.randn(2, 16, 3, 5)
    torch.testing.assert_close(attention.compute_weights(x).sum(3), torch.ones(2, 15, 8))
    turn = torch.randperm(15)
    permuted = x.flatten(2)[..., turn].unflatten(2, (3, 5))
    torch.testing.assert_close(attention(permuted).flatten(2), attention(x).flatten(2)[..., turn])
    groups = torch.randperm(8)
    swapped = x.unflatten(1, (8, 2))[:, groups].flatten(1, 2)
    torch.testing.assert_close(attention(swapped), attention(x).unflatten(1, (8, 2))[:, groups].flatten(1, 2))


def test_gates_stay_in_their_range() -> None:
    x = torch.randn(4, 32, 6, 6)
    single, double = ChannelGate(32, 16), ChannelGate(32, 16, double_sigmoid=True)
    with torch.no_grad():
        for gate in (single, double):
            gate.excite.weight.normal_(std=3)
    assert ((single.compute_gate(x) > 0) & (single.compute_gate(x) < 1)).all()
    assert single.compute_gate(x).min() < 0.5
    assert ((double.compute_gate(x) >= 0.5) & (double.compute_gate(x) <= 0.7311)).all()
    spatial = SpatialGate(7).compute_gate(x)
    assert spatial.shape == (4, 1, 6, 6)
    assert ((spatial > 0) & (spatial < 1)).all()


def test_spatial_gate_pools_mean_then_max_or_the_reverse() -> None:
    x = torch.randn(1, 4, 2, 2)
    for order, expected in [("mean_max", x.mean(1)), ("max_mean", x.amax(1))]:
        gate = SpatialGate(3, order)
        with torch.no_grad():
            gate.conv.weight.zero_()[0, 0, 1, 1] = 1.0  # reads the first map alone
        torch.testing.assert_close(gate.compute_gate(x)[:, 0], torch.sigmoid(expected))


def test_channel_norm_equals_the_formula() -> None:
    norm = ChannelNorm(6).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    torch.testing.assert_close(norm(x), (x - mean) / torch.sqrt(variance + 1e-6))


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_fusion_norms(kind: str) -> None:
    y = ConvNorm(3, 48, norm=kind)(torch.randn(4, 3, 8, 8))
    assert y.mean().item() == pytest.approx(0, abs=1e-4)
    assert y.std().item() == pytest.approx(1, abs=1e-2)
    # Over itself alone, one channel would always be 0.
    assert isinstance(make_fusion_norm(kind, 1), nn.BatchNorm2d if kind == "batch" else nn.Identity)


def test_drop_path_rises_to_its_rate_and_keeps_the_mean() -> None:
    assert spread_drop_path(0.3, [2, 2]) == [[0.0, pytest.approx(0.1)], [pytest.approx(0.2), pytest.approx(0.3)]]
    block = LocalBlock(8, HIFUSE_PARTS, drop_path=0.5)
    x = torch.randn(64, 8, 4, 4)
    residual = block.train()(x) - x
    kept = residual.abs().amax(dim=(1, 2, 3)) > 0
    assert 10 < kept.sum() < 54
    torch.testing.assert_close(residual[kept], 2 * (block.eval()(x) - x)[kept])


def test_layer_norm_is_the_fused_one() -> None:
    """Of a map with channels last nothing is copied on the way in or out."""
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    y = ChannelNorm(8)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, functional.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=1e-6).permute(0, 3, 1, 2))

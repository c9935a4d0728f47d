"""Every rule against torch's own execution of the unmerged form, in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization import algebra, chains
from tests.reparameterization.support.networks import draw, randomize

EXACT = {"rtol": 0.0, "atol": 1e-12}


def make_pair(outputs: int, inputs: int, *sides: int, seed: int = 0, bias: bool = True) -> tuple[Tensor, Tensor | None]:
    return draw(outputs, inputs, *sides, seed=seed), draw(outputs, seed=seed + 100) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 2), (6, 1)])
def test_batch_norm_behind_a_convolution(bias: bool, affine: bool, groups: int, stride: int) -> None:
    conv = nn.Conv2d(6, 12, 3, stride, padding=1, groups=groups, bias=bias).double()
    norm = randomize(nn.BatchNorm2d(12, affine=affine)).double().eval()
    x = draw(2, 6, 7, 5)
    weight, shift = algebra.fold_batch_norm(conv.weight, conv.bias, norm)
    torch.testing.assert_close(functional.conv2d(x, weight, shift, stride, 1, 1, groups), norm(conv(x)), **EXACT)


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Linear(6, 4), nn.BatchNorm1d(4), (5, 6)),
        (nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), (2, 6, 9)),
        (nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), (2, 2, 4, 5, 6)),
    ],
)
def test_batch_norm_behind_other_layers(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    layer, norm, x = layer.double(), randomize(norm).double().eval(), draw(*shape)
    expected = norm(layer(x))
    weight, bias = algebra.fold_batch_norm(layer.weight, layer.bias, norm)
    layer.weight.data, layer.bias.data = weight, bias
    torch.testing.assert_close(layer(x), expected, **EXACT)


def test_batch_norm_by_hand() -> None:
    norm = nn.BatchNorm2d(1, eps=0.0)
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(4.0)
    norm.weight.data.fill_(10.0)
    norm.bias.data.fill_(1.0)
    # a = 10 / 2 = 5; W = 5 * 2; b = 1 + 5 * (7 - 3).
    weight, bias = algebra.fold_batch_norm(torch.full((1, 1, 1, 1), 2.0), torch.tensor([7.0]), norm)
    assert (weight.item(), bias.item(), weight.dtype) == (10.0, 21.0, torch.float64)


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(1, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.LayerNorm(4),
    ],
)
def test_norms_of_the_input_are_refused(norm: nn.Module) -> None:
    with pytest.raises(ReparameterizationError, match=f"{type(norm).__name__} cannot be merged"):
        algebra.fold_batch_norm(draw(4, 4, 1, 1), None, norm)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_batch_norm_before_a_convolution(groups: int) -> None:
    conv = nn.Conv2d(6, 12, 3, groups=groups).double()
    norm, x = randomize(nn.BatchNorm2d(6)).double().eval(), draw(2, 6, 7, 5)
    weight, bias = chains.fold_batch_norm_before(norm, conv.weight, conv.bias, groups=groups)
    torch.testing.assert_close(functional.conv2d(x, weight, bias, groups=groups), conv(norm(x)), **EXACT)


def test_batch_norm_before_a_linear_layer() -> None:
    layer, norm, x = nn.Linear(6, 4).double(), randomize(nn.BatchNorm1d(6)).double().eval(), draw(5, 6)
    weight, bias = chains.fold_batch_norm_before(norm, layer.weight, layer.bias)
    torch.testing.assert_close(functional.linear(x, weight, bias), layer(norm(x)), **EXACT)


def test_batch_norm_before_padding_needs_no_shift() -> None:
    conv, norm = nn.Conv2d(3, 3, 3, padding=1).double(), randomize(nn.BatchNorm2d(3)).double().eval()
    with pytest.raises(ReparameterizationError, match="near the border"):
        chains.fold_batch_norm_before(norm, conv.weight, conv.bias, padded=True)
    norm.bias.data = norm.running_mean * norm.weight.data * torch.rsqrt(norm.running_var + norm.eps)
    weight, bias = chains.fold_batch_norm_before(norm, conv.weight, conv.bias, padded=True)
    x = draw(1, 3, 4, 4)
    torch.testing.assert_close(functional.conv2d(x, weight, bias, padding=1), conv(norm(x)), **EXACT)


def test_padding_by_hand() -> None:
    padded = algebra.pad_kernel(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 3, 5)
    assert padded[0, 0].tolist() == [[0, 0, 0, 0, 0], [0, 1, 2, 3, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 4), (1, 1)])
def test_padding_that_cannot_be_centred(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="cannot be centred"):
        algebra.pad_kernel(draw(1, 1, 1, 3), height, width)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 6), (1, 1), (2, 5)])
def test_parallel_branches_of_several_sizes(stride: int, size: tuple[int, int]) -> None:
    sizes = [(7, 1), (1, 5), (3, 3), (1, 1)]
    pairs = [make_pair(4, 2, *sides, seed=index, bias=index > 0) for index, sides in enumerate(sizes)]
    x = draw(2, 4, *size)
    expected = sum(
        functional.conv2d(x, weight, bias, stride, (weight.shape[2] // 2, weight.shape[3] // 2), 1, 2)
        for weight, bias in pairs
    )
    weight, bias = algebra.merge_parallel(pairs)
    assert weight.shape == (4, 2, 7, 5)
    torch.testing.assert_close(functional.conv2d(x, weight, bias, stride, (3, 2), 1, 2), expected, **EXACT)


def test_addition_needs_one_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        algebra.add_kernels([make_pair(2, 2, 3, 3), make_pair(2, 2, 1, 1)])
    with pytest.raises(ValueError, match="one shape"):
        algebra.add_kernels([])


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_identity_and_average_pooling(groups: int) -> None:
    x = draw(2, 6, 6, 7)
    weight, bias = algebra.identity_kernel(6, groups, (3, 5))
    torch.testing.assert_close(functional.conv2d(x, weight, bias, 1, (1, 2), 1, groups), x, **EXACT)
    weight, bias = algebra.average_pool_kernel(6, groups, (3, 2))
    expected = functional.avg_pool2d(x, (3, 2), 2, padding=1)
    torch.testing.assert_close(functional.conv2d(x, weight, bias, 2, 1, 1, groups), expected, **EXACT)


def test_identity_has_a_centre_and_groups_divide() -> None:
    with pytest.raises(ValueError, match="no centre"):
        algebra.identity_kernel(4, size=2)
    with pytest.raises(ValueError, match="do not divide"):
        algebra.identity_kernel(4, groups=3)


def test_concatenation_over_one_input_and_over_slices() -> None:
    pairs = [make_pair(4, 3, 3, 3), make_pair(2, 3, 1, 5, seed=1)]
    x = draw(2, 3, 6, 6)
    weight, bias = algebra.concatenate_kernels(pairs)
    expected = torch.cat(
        [functional.conv2d(x, *pairs[0], padding=1), functional.conv2d(x, *pairs[1], padding=(0, 2))], 1
    )
    torch.testing.assert_close(functional.conv2d(x, weight, bias, padding=(1, 2)), expected, **EXACT)

    depthwise = [make_pair(4, 1, 3, 3), make_pair(2, 1, 5, 5, seed=1)]
    x = draw(2, 6, 6, 6)
    weight, bias = algebra.concatenate_kernels(depthwise)
    parts = zip(x.split([4, 2], dim=1), depthwise, strict=True)
    expected = torch.cat(
        [functional.conv2d(part, *pair, padding=pair[0].shape[-1] // 2, groups=part.shape[1]) for part, pair in parts],
        1,
    )
    torch.testing.assert_close(functional.conv2d(x, weight, bias, padding=2, groups=6), expected, **EXACT)


@pytest.mark.parametrize(("groups", "into"), [(6, 1), (6, 2), (6, 3), (6, 6), (2, 1), (1, 1)])
def test_fewer_groups(groups: int, into: int) -> None:
    weight, x = draw(12, 6 // groups, 3, 3), draw(2, 6, 5, 5)
    wide = chains.ungroup_kernel(weight, groups, into)
    assert wide.shape == (12, 6 // into, 3, 3)
    expected = functional.conv2d(x, weight, groups=groups)
    torch.testing.assert_close(functional.conv2d(x, wide, groups=into), expected, **EXACT)


def test_more_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be one of 4 groups"):
        chains.ungroup_kernel(draw(12, 1, 3, 3), 6, 4)


@pytest.mark.parametrize(
    ("first", "second", "common"), [(1, 1, 1), (2, 1, 1), (1, 3, 1), (6, 2, 2), (6, 6, 6), (2, 3, 1)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_then_spatial_without_padding(first: int, second: int, common: int, stride: int) -> None:
    pointwise = make_pair(12, 6 // first, 1, 1)
    spatial = make_pair(6, 12 // second, 3, 5, seed=1)
    x = draw(2, 6, 9, 8)
    middle = functional.conv2d(x, *pointwise, padding=1, groups=first)
    expected = functional.conv2d(middle, *spatial, stride=stride, groups=second)
    weight, bias = chains.merge_pointwise_then_spatial(pointwise, spatial, groups=(first, second))
    assert weight.shape == (6, 6 // common, 3, 5)
    actual = functional.conv2d(x, weight, bias, stride, 1, groups=common)
    torch.testing.assert_close(actual, expected, **EXACT)


def test_pointwise_then_padded_spatial() -> None:
    pointwise, spatial, x = make_pair(4, 3, 1, 1), make_pair(5, 4, 3, 3, seed=1), draw(2, 3, 6, 6)
    with pytest.raises(ReparameterizationError, match="near the border"):
        chains.merge_pointwise_then_spatial(pointwise, spatial, padding=1)
    middle = functional.conv2d(x, *pointwise)
    # With border="bias" the train form pads with the 1x1's bias, which is what the 1x1 makes of zeros.
    weight, bias = chains.merge_pointwise_then_spatial(pointwise, spatial, padding=1, border="bias")
    actual = functional.conv2d(x, weight, bias, padding=1)
    framed = functional.pad(middle - pointwise[1][:, None, None], (1, 1, 1, 1)) + pointwise[1][:, None, None]
    torch.testing.assert_close(actual, functional.conv2d(framed, *spatial), **EXACT)
    # And that the refusal is needed: with zeros the border differs, the inside does not.
    plain = functional.conv2d(middle, *spatial, padding=1)
    torch.testing.assert_close(actual[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1], **EXACT)
    assert (actual - plain).abs().max() > 0.1


def test_pointwise_without_bias_then_padded_spatial() -> None:
    pointwise, spatial, x = make_pair(4, 3, 1, 1, bias=False), make_pair(5, 4, 3, 3, seed=1), draw(2, 3, 6, 6)
    weight, bias = chains.merge_pointwise_then_spatial(pointwise, spatial, padding=1)
    expected = functional.conv2d(functional.conv2d(x, *pointwise), *spatial, padding=1)
    torch.testing.assert_close(functional.conv2d(x, weight, bias, padding=1), expected, **EXACT)


@pytest.mark.parametrize(("first", "second", "common"), [(1, 1, 1), (6, 1, 1), (6, 3, 3)])
def test_spatial_then_pointwise_at_any_padding(first: int, second: int, common: int) -> None:
    spatial, pointwise, x = make_pair(12, 6 // first, 3, 5), make_pair(9, 12 // second, 1, 1, seed=1), draw(2, 6, 7, 7)
    middle = functional.conv2d(x, *spatial, stride=2, padding=(1, 2), groups=first)
    weight, bias = chains.merge_spatial_then_pointwise(spatial, pointwise, groups=(first, second))
    actual = functional.conv2d(x, weight, bias, 2, (1, 2), groups=common)
    torch.testing.assert_close(actual, functional.conv2d(middle, *pointwise, groups=second), **EXACT)


def test_two_spatial_kernels() -> None:
    first, second, x = make_pair(4, 3, 3, 3), make_pair(5, 4, 5, 1, seed=1), draw(2, 3, 9, 9)
    weight, bias = chains.merge_sequential(first, second)
    assert weight.shape == (5, 3, 7, 3)
    expected = functional.conv2d(functional.conv2d(x, *first, padding=1), *second, stride=2)
    torch.testing.assert_close(functional.conv2d(x, weight, bias, 2, padding=1), expected, **EXACT)
    with pytest.raises(ReparameterizationError, match="larger than 1×1"):
        chains.merge_sequential(first, second, padding=1)


def test_sequential_arguments_are_checked() -> None:
    pair = make_pair(4, 3, 3, 3)
    with pytest.raises(ValueError, match="border is 'wrap'"):
        chains.merge_sequential(pair, pair, border="wrap")
    with pytest.raises(ValueError, match="reads 3 channels, the first makes 4"):
        chains.merge_sequential(pair, pair)
    with pytest.raises(ValueError, match="1×1 kernel is needed; found 3×3"):
        chains.merge_pointwise_then_spatial(pair, pair)


def test_average_pooling_behind_a_pointwise_convolution() -> None:
    """A branch of the Diverse Branch Block: 1x1, then average pooling."""
    pointwise, x = make_pair(4, 3, 1, 1), draw(2, 3, 6, 6)
    weight, bias = chains.merge_pointwise_then_spatial(pointwise, algebra.average_pool_kernel(4, size=3))
    expected = functional.avg_pool2d(functional.conv2d(x, *pointwise), 3, 1)
    torch.testing.assert_close(functional.conv2d(x, weight, bias), expected, **EXACT)


def test_float32_in_float64_out_and_differentiable() -> None:
    conv, norm = nn.Conv2d(2, 2, 3), randomize(nn.BatchNorm2d(2))
    weight, bias = algebra.fold_batch_norm(conv.weight, conv.bias, norm)
    (algebra.pad_kernel(weight, 5, 5).sum() + bias.sum()).backward()
    assert weight.dtype == bias.dtype == torch.float64
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in (*conv.parameters(), *norm.parameters()))

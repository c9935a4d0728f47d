"""Every rule against torch's own execution of the unmerged form, in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization import algebra
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
    weight, bias = algebra.fold_batch_norm_before(norm, conv.weight, conv.bias, groups=groups)
    torch.testing.assert_close(functional.conv2d(x, weight, bias, groups=groups), conv(norm(x)), **EXACT)


def test_batch_norm_before_a_linear_layer() -> None:
    layer, norm, x = nn.Linear(6, 4).double(), randomize(nn.BatchNorm1d(6)).double().eval(), draw(5, 6)
    weight, bias = algebra.fold_batch_norm_before(norm, layer.weight, layer.bias)
    torch.testing.assert_close(functional.linear(x, weight, bias), layer(norm(x)), **EXACT)


def test_batch_norm_before_padding_needs_no_shift() -> None:
    conv, norm = nn.Conv2d(3, 3, 3, padding=1).double(), randomize(nn.BatchNorm2d(3)).double().eval()
    with pytest.raises(ReparameterizationError, match="near the border"):
        algebra.fold_batch_norm_before(norm, conv.weight, conv.bias, padded=True)
    norm.bias.data = norm.running_mean * norm.weight.data * torch.rsqrt(norm.running_var + norm.eps)
    weight, bias = algebra.fold_batch_norm_before(norm, conv.weight, conv.bias, padded=True)
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


def test_float32_in_float64_out_and_differentiable() -> None:
    conv, norm = nn.Conv2d(2, 2, 3), randomize(nn.BatchNorm2d(2))
    weight, bias = algebra.fold_batch_norm(conv.weight, conv.bias, norm)
    (algebra.pad_kernel(weight, 5, 5).sum() + bias.sum()).backward()
    assert weight.dtype == bias.dtype == torch.float64
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in (*conv.parameters(), *norm.parameters()))

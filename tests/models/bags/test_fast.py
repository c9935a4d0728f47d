"""The fast bag, in torch and by every native instruction set of this machine, against autograd through its branches."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.bags import fast_torch as fast_bag_torch
from fedmed.models.bags.fast import can_run_fast, fast_bag
from fedmed.models.bags.fast_moments import is_small
from fedmed.models.blocks.depthwise import FastDepthwiseConv2d, fast_depthwise
from fedmed.native import FORMS, VARIABLE, native_form

# Odd, even, smaller than the kernel, one pixel wide; around the sizes where another way of computing begins.
SIZES = [
    (1, 1), (2, 2), (1, 2), (2, 5), (3, 3), (4, 4), (5, 7), (7, 7), (8, 8), (9, 6),
    (13, 14), (14, 14), (15, 13), (16, 16), (21, 22), (28, 28), (23, 40), (37, 33), (70, 1), (33, 57),
]  # fmt: skip
LEVELS = [(3,), (5,), (7,), (3, 5), (3, 7), (3, 5, 7, 9), (3, 5, 7, 9, 11)]
EPS = 1e-5


def list_forms() -> list[str]:
    best = native_form()
    return ["0", *(FORMS[: FORMS.index(best) + 1] if best else ())]


@pytest.fixture(params=list_forms())
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which form runs; "0" is pure torch."""
    monkeypatch.setenv(VARIABLE, request.param)
    assert native_form() == (None if request.param == "0" else request.param)
    return request.param


def list_shapes(levels: tuple[int, ...]) -> list[tuple[int, int]]:
    return [shape for k in levels for shape in ((k, 1), (1, k), (k, k - 2), (k - 2, k), (k, k))]


def draw(size, levels=(3, 5, 7), batch=2, channels=5, dtype=torch.float64):
    """Return x and the branches' kernels, scales and shifts."""
    shapes = list_shapes(levels)
    x = torch.randn(batch, channels, *size, dtype=dtype) + 0.5
    kernels = [torch.randn(channels, 1, *shape, dtype=dtype) for shape in shapes]
    scales = [torch.rand(channels, dtype=dtype) + 0.5 for _ in shapes]
    return x, kernels, scales, [torch.randn(channels, dtype=dtype) for _ in shapes]


def sum_branches(x, kernels, scales, shifts, *, stride, eps):
    """The definition."""
    total, means, variances = 0, [], []
    for kernel, scale, shift in zip(kernels, scales, shifts, strict=True):
        padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        z = functional.conv2d(x, kernel, None, stride, padding, 1, x.shape[1])
        means.append(z.detach().mean((0, 2, 3)))
        variances.append(z.detach().var((0, 2, 3), unbiased=False))
        total = total + functional.batch_norm(z, None, None, scale, shift, True, 0.1, eps)
    return total, torch.stack(means, 1), torch.stack(variances, 1)


def step(bag, stride, tensors) -> dict[str, list[Tensor]]:
    """Return outputs, statistics and gradients, by name."""
    x, *parameters = tensors
    groups = [[t.clone().requires_grad_() for t in group] for group in ([x], *parameters)]
    y, mean, variance = bag(groups[0][0], *groups[1:], stride=stride, eps=EPS)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(y.dtype)
    y.backward(g)
    found = {"y": [y.detach()], "mean": [mean], "variance": [variance]}
    names = ("x", "kernels", "scales", "shifts")
    return found | {name: [t.grad for t in group] for name, group in zip(names, groups, strict=True)}


def compare(found, expected, tolerance: float) -> None:
    for name, wanted in expected.items():
        assert [t.shape for t in found[name]] == [t.shape for t in wanted], name
        error = max((f.double() - w).abs().max().item() for f, w in zip(found[name], wanted, strict=True))
        assert error <= tolerance * max(w.abs().max().item() for w in wanted), f"{name}: {error}"


def check(size, stride, **options) -> None:
    tensors = draw(size, **options)
    compare(step(fast_bag, stride, tensors), step(sum_branches, stride, tensors), 1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_the_branches(form: str, size: tuple[int, int], stride: int, batch: int) -> None:
    if batch * math.prod(-(-side // stride) for side in size) > 1:
        check(size, stride, batch=batch)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", [(3, 2), (7, 7), (22, 24)])
def test_equal_for_other_levels(form: str, levels: tuple[int, ...], size: tuple[int, int]) -> None:
    for stride in (1, 2):
        check(size, stride, levels=levels)


@pytest.mark.parametrize("channels", [1, 16, 37])
def test_equal_for_other_widths_and_two_threads(form: str, channels: int) -> None:
    torch.set_num_threads(2)  # the fixture of this folder sets it back
    for size in ((6, 5), (11, 12)):
        check(size, 1, channels=channels, batch=3, levels=(3, 7))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(2, 2), (7, 7), (14, 14), (30, 31)])
def test_float32_is_as_exact_as_the_branches(form: str, size: tuple[int, int], stride: int) -> None:
    x, *parameters = draw(size, batch=8, channels=20)
    x = functional.relu6(2 * x)
    truth = step(sum_branches, stride, [x, *parameters])
    single = [x.float(), *([t.float() for t in group] for group in parameters)]
    compare(step(fast_bag, stride, single), truth, 1e-4)


def test_sizes_cover_both_ways_of_the_torch_form() -> None:
    assert {is_small(*size) for size in SIZES} == {True, False}


def test_one_position_raises_as_batch_norm_does(form: str) -> None:
    for size, stride in (((1, 1), 1), ((2, 2), 2)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            fast_bag(*draw(size, batch=1), stride=stride, eps=EPS)


def test_what_cannot_run() -> None:
    x, kernels, scales, shifts = draw((6, 6))
    assert can_run_fast(x, kernels, 1)
    assert not can_run_fast(x, kernels, 3)
    assert not can_run_fast(x, [torch.ones(10, 1, 3, 3)], 1)  # multiplier 2
    assert not can_run_fast(x, [torch.ones(5, 5, 3, 3)], 1)  # dense
    assert not can_run_fast(x, [torch.ones(5, 1, 4, 3)], 1)
    assert not can_run_fast(x, [torch.ones(5, 1, 13, 13)], 1)
    with pytest.raises(ValueError, match="stride 1 or 2"):
        fast_bag(x, kernels, scales, shifts, stride=3, eps=EPS)


def test_gradient_of_a_frozen_input_and_layout(form: str) -> None:
    x, kernels, scales, shifts = draw((9, 12))
    kernels = [kernel.requires_grad_() for kernel in kernels]
    y, mean, variance = fast_bag(x, kernels, scales, shifts, stride=1, eps=EPS)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not mean.requires_grad
    assert not variance.requires_grad
    y.square().sum().backward()
    assert all(kernel.grad is not None for kernel in kernels)
    assert x.grad is None


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_moments_in_float32(form: str, kind: torch.dtype) -> None:
    x, *parameters = draw((12, 12), dtype=torch.float32)
    plain, mean, variance = fast_bag(x, *parameters, stride=1, eps=EPS)
    with torch.autocast("cpu", dtype=kind):
        y, half_mean, half_variance = fast_bag(x, *parameters, stride=1, eps=EPS)
    assert y.dtype == kind
    assert torch.equal(y, plain.to(kind))
    assert torch.equal(half_mean, mean)
    assert torch.equal(half_variance, variance)
    for parameter in parameters[0]:
        parameter.requires_grad_()
    with torch.autocast("cpu", dtype=kind):
        fast_bag(x.to(kind), *parameters, stride=1, eps=EPS)[0].float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in parameters[0])


def test_wishes_for_coarser_products_are_set_aside_and_kept() -> None:
    place = torch.backends.mkldnn.matmul
    before = place.fp32_precision
    try:
        place.fp32_precision = "bf16"
        with fast_bag_torch.true_precision():
            assert place.fp32_precision == "ieee"
        assert place.fp32_precision == "bf16"
    finally:
        place.fp32_precision = before


def saved_bytes(run) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, storages counted once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(seen.values())


def test_no_map_but_the_input_is_kept(form: str) -> None:
    channels = 24
    x, kernels, scales, shifts = draw((32, 32), channels=channels, batch=4, dtype=torch.float32)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    kept = saved_bytes(lambda: fast_bag(x, kernels, scales, shifts, stride=1, eps=EPS))
    parameters = sum(t.nbytes for group in (kernels, scales, shifts) for t in group)
    assert kept - parameters - x.nbytes < 5000 * 32  # about 4 kB per channel; lanes fill up to 32 channels
    branches = saved_bytes(lambda: sum_branches(x, kernels, scales, shifts, stride=1, eps=EPS))
    assert branches > 15 * x.nbytes


def test_gradients_may_be_taken_once_only(form: str) -> None:
    x, *parameters = draw((5, 5))
    x.requires_grad_()
    y = fast_bag(x, *parameters, stride=1, eps=EPS)[0]
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [3, 5, 7, 11])
def test_fast_depthwise_convolution(form: str, side: int, layout: torch.memory_format) -> None:
    for size in ((1, 1), (4, 3), (17, 20)):
        for stride in (1, 2):
            host = nn.Conv2d(20, 20, side, stride, side // 2, groups=20).double()
            ours = FastDepthwiseConv2d(20, side, stride).double()
            ours.load_state_dict(host.state_dict())
            x = torch.randn(3, 20, *size, dtype=torch.float64).contiguous(memory_format=layout)
            results = []
            for layer in (host, ours):
                leaf = x.clone().requires_grad_()
                y = layer(leaf)
                y.backward(torch.ones_like(y) + y.detach())
                results.append([y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad])
            torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_fast_depthwise_leaves_the_rest_to_torch(form: str) -> None:
    x, kernel = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 3, 5, requires_grad=True)
    expected = functional.conv2d(x, kernel, None, 1, (1, 2), 1, 4)
    assert torch.equal(fast_depthwise(x, kernel), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast_depthwise(x, torch.randn(4, 1, 3, 3, requires_grad=True)).dtype == torch.bfloat16

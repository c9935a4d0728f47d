"""The fast bag in torch operators, for any device: autograd function and the small algebra in float64."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedmed.models.bags.fast_moments import (
    add_moment_gradient,
    is_small,
    second_moments,
    split_channels,
    weight_gradient,
)
from fedmed.models.bags.fast_tables import Shapes, branch_tables, count_outputs, first_table, get_shapes, kind_of
from fedmed.models.blocks.depthwise import convolve, to_channels_last

PRECISIONS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
)


@contextlib.contextmanager
def true_precision() -> Iterator[None]:
    """Keep torch from rounding float32 factors to TF32 or bfloat16: variances are differences of moments."""
    changed = [(place, place.fp32_precision) for place in PRECISIONS if place.fp32_precision not in ("none", "ieee")]
    try:
        for place, _ in changed:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, before in changed:
            place.fp32_precision = before


class TorchBag(torch.autograd.Function):
    """The bag in torch operators, for any device. Saves the input and about 400 numbers per channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, eps: float, native: None, *parameters: Tensor) -> Any:
        """Return y, mean and variance; the parameters are kernels, scales, shifts."""
        branches = len(parameters) // 3
        shapes = get_shapes(parameters[:branches])
        reach_y, reach_x = (min(max(max(s) for s in shapes) // 2, side - 1) for side in x.shape[2:])
        w = torch.cat([kernel.flatten(1) for kernel in parameters[:branches]], 1).double()  # (C, P)
        gamma, beta = (torch.stack(parameters[n * branches : (n + 1) * branches], 1).double() for n in (1, 2))
        owner, place, _, _ = branch_tables(shapes, reach_y, reach_x, (torch.float64, x.device))
        inner = to_channels_last(x)
        count = x.shape[0] * count_outputs(x.shape[2], stride) * count_outputs(x.shape[3], stride)
        with true_precision():
            m = _first_moments(inner, stride, (reach_y, reach_x))
            v = _multiply_moments(inner, stride, (reach_y, reach_x), shapes, w)
        mean = ((m @ place.T) * w) @ owner.T / count
        variance = ((v.double() * w) @ owner.T / count - mean.square()).clamp_(min=0)
        deviation = (variance + eps).rsqrt()
        a = gamma * deviation
        kernel = ((a @ owner) * w) @ place
        bias = (beta - a * mean).sum(1)
        y = convolve(inner, kernel.to(x.dtype).view(-1, 1, 2 * reach_y + 1, 2 * reach_x + 1), bias.to(x.dtype), stride)
        ctx.save_for_backward(x, v, m, mean, deviation, *parameters[: 2 * branches])
        ctx.settings = (stride, (reach_y, reach_x), count)
        mean, variance = mean.to(x.dtype), variance.to(x.dtype)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *statistics: Tensor) -> Any:
        """Return the gradients of everything that ``forward`` takes."""
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        (x, v, m, mean, deviation), parameters = saved[:5], saved[5:]
        stride, reach, count = ctx.settings
        branches = len(parameters) // 2
        shapes = get_shapes(parameters[:branches])
        w = torch.cat([kernel.flatten(1) for kernel in parameters[:branches]], 1).double()
        gamma = torch.stack(parameters[branches:], 1).double()
        owner, place, _, _ = branch_tables(shapes, *reach, (torch.float64, x.device))
        inner, g = to_channels_last(x), to_channels_last(g.to(x.dtype))
        with torch.autocast(x.device.type, enabled=False), true_precision():
            to_taps = _gradient_by_chunks(inner, g, stride, reach).double() @ place.T  # (C, P)
            to_shift = _sum_positions(g).double().unsqueeze(1)  # (C, 1)
            to_scale = (w * to_taps) @ owner.T - mean * to_shift  # to a, (C, branches)
            a = gamma * deviation
            to_square = -0.5 * a * deviation.square() * to_scale / count
            to_mean = -a * to_shift / count - 2 * mean * to_square
            spread_a, spread_mean = a @ owner, to_mean @ owner  # (C, P)
            dw = spread_a * to_taps + 2 * (to_square @ owner) * v.double() + spread_mean * (m @ place.T)
            window = ((spread_a * w) @ place, (spread_mean * w) @ place)
            wanted = ctx.needs_input_grad[0]
            dx = _input_gradient((inner, g), window, (shapes, w, to_square), stride, reach) if wanted else None
        pieces = dw.to(x.dtype).split([height * width for height, width in shapes], 1)
        kernels = [piece.reshape(-1, 1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
        scales = (deviation * to_scale).to(x.dtype).T.contiguous().unbind()
        shifts = to_shift.to(x.dtype).T.repeat(branches, 1).unbind()
        return dx, None, None, None, *kernels, *scales, *shifts


def _sum_positions(g: Tensor) -> Tensor:
    """Return the sum over images and positions, (B, C, H, W) -> (C); a product, which is faster than a sum here."""
    rows = g.permute(0, 2, 3, 1).reshape(-1, g.shape[1])
    return rows.T @ rows.new_ones(len(rows))


def _first_moments(x: Tensor, stride: int, reach: tuple[int, int]) -> Tensor:
    """Return sum over images and outputs p of x(s p + i), (C, k_y k_x), float64."""
    batch, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(batch, -1)
    pixels = (flat.T @ flat.new_ones(batch)).view(height, width, channels).double()
    tables = [
        first_table(side, stride, e, (torch.float64, x.device)) for side, e in zip((height, width), reach, strict=True)
    ]
    return torch.einsum("hwc,hi,wj->cij", pixels, *tables).flatten(1)


def _spread_firsts(slope: Tensor, x: Tensor, stride: int, reach: tuple[int, int]) -> Tensor:
    """Return the gradient of the first moments, (C, H, W), the same for every image."""
    tables = [first_table(side, stride, e, kind_of(slope)) for side, e in zip(x.shape[2:], reach, strict=True)]
    slope = slope.view(-1, 2 * reach[0] + 1, 2 * reach[1] + 1)
    return torch.einsum("cij,hi,wj->hwc", slope, *tables).to(x.dtype).permute(2, 0, 1)


def _pack_dense(shapes: Shapes, w: Tensor, reach: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return all kernels in the window, (C, branches, k_y k_x), and the places of the packed weights in it."""
    _, _, inside, flat = branch_tables(shapes, *reach, (torch.float64, w.device))
    num_taps = (2 * reach[0] + 1) * (2 * reach[1] + 1)
    dense = w.new_zeros(len(w), len(shapes) * num_taps, dtype=dtype)
    dense[:, flat] = w[:, inside].to(dtype)
    return dense.view(len(w), len(shapes), num_taps), inside, flat


def _multiply_moments(x: Tensor, stride: int, reach: tuple[int, int], shapes: Shapes, w: Tensor) -> Tensor:
    """Return S w_b where branch b has weights, packed, (C, P)."""
    dense, inside, flat = _pack_dense(shapes, w, reach, x.dtype)
    products = torch.zeros_like(w, dtype=x.dtype)
    for part in split_channels(x, 4 * dense[0, 0].numel() ** 2):
        moments = second_moments(x[:, part].contiguous(), stride, reach)
        products[part, inside] = torch.bmm(dense[part], moments).flatten(1)[:, flat]
    return products


def _gradient_by_chunks(x: Tensor, g: Tensor, stride: int, reach: tuple[int, int]) -> Tensor:
    """Return the weight gradient of the merged convolution, (C, k_y k_x)."""
    parts = [
        weight_gradient(x[:, part].contiguous(), g[:, part].contiguous(), stride, reach) for part in split_channels(x)
    ]
    return torch.cat(parts)


def _input_gradient(
    maps: tuple[Tensor, Tensor],
    window: tuple[Tensor, Tensor],
    branches: tuple[Shapes, Tensor, Tensor],
    stride: int,
    reach: tuple[int, int],
) -> Tensor:
    """Return dL/dx through the merged convolution, the first moments and the second moments.

    ``maps`` are x and dL/dy; ``window`` the merged kernel and dL/dm, (C, k_y k_x); ``branches`` the shapes, the packed
    weights and dL/d(w_b . S w_b).
    """
    (x, g), (kernel, slope) = maps, window
    channels = x.shape[1]
    merged = kernel.to(x.dtype).view(channels, 1, 2 * reach[0] + 1, 2 * reach[1] + 1)
    dx: Tensor = torch.ops.aten.convolution_backward(
        g, x, merged, None, [stride] * 2, list(reach), [1, 1], False, [0, 0], channels, [True, False, False]
    )[0]
    dx += _spread_firsts(slope, x, stride, reach)
    shapes, w, to_square = branches
    dense, _, _ = _pack_dense(shapes, w, reach, x.dtype)
    to_moments = torch.bmm((dense * to_square.to(x.dtype).unsqueeze(2)).transpose(1, 2), dense)
    # Convolutions of larger maps want all channels at once: a chunk of a channels-last map is not dense.
    chunks = split_channels(x, 4 * dense[0, 0].numel() ** 2) if is_small(*x.shape[2:]) else [slice(None)]
    for part in chunks:
        add_moment_gradient(dx[:, part], x[:, part], to_moments[part], stride, reach)
    return dx

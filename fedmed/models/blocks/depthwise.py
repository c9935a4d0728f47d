"""Depthwise convolution with a faster weight gradient on the CPU.

oneDNN's weight gradient of a depthwise convolution from 5x5 upwards costs several times its forward pass; with the
native kernels the whole backward pass is three to twenty times as fast. With 3x3 oneDNN's own is the faster one, and is
kept. Forward pass and input gradient are always torch's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fedmed.native import Kernels, Problem, load_kernels

SMALLEST_SIDE, LARGEST_SIDE = 5, 11


def to_channels_last(x: Tensor) -> Tensor:
    """Return the map with channels innermost in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Return the depthwise convolution with a kernel, (C, 1, k_y, k_x), padded by half its sides."""
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    return functional.conv2d(x, kernel, bias, stride, padding, 1, x.shape[1])


def fast_depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Return a depthwise convolution, padded by half its kernel, whose weight gradient is fast where it can be.

    Equal to ``conv2d(x, kernel, bias, stride, side // 2, groups=C)``. The native kernels serve float32 and float64 maps
    on a CPU, square odd kernels from 5 to 11 and stride 1 or 2, outside autocast; all else is torch's own. Pays in
    channels-last memory, which the native weight gradient wants.

    Parameters
    ----------
    x : Tensor
        (B, C, H, W).
    kernel : Tensor
        (C, 1, side, side).
    bias : Tensor, optional
        (C).
    stride : int
        1 or 2.
    """
    side = kernel.shape[-1]
    usable = (
        kernel.shape[1:] == (1, side, side)
        and side % 2 == 1
        and SMALLEST_SIDE <= side <= LARGEST_SIDE
        and stride in (1, 2)
        and x.device.type == "cpu"
        and x.dtype == kernel.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
        and kernel.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
    native = load_kernels() if usable else None
    if native is None:
        return convolve(x, kernel, bias, stride)
    y: Tensor = _FastDepthwise.apply(x, kernel, bias, (stride, native))
    return y


class FastDepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d(C, C, side, stride, side // 2, groups=C)`` with :func:`fast_depthwise`; same tensors, same names.

    Parameters
    ----------
    channels, side, stride : int
        C, odd side of the kernel, 1 or 2.
    bias : bool
        As in ``nn.Conv2d``.
    """

    def __init__(self, channels: int, side: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels, channels, side, stride, side // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ceil(H / stride), ceil(W / stride))."""
        return fast_depthwise(x, self.weight, self.bias, self.stride[0])


class _FastDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, how: tuple[int, Kernels]) -> Tensor:
        ctx.save_for_backward(x, kernel)
        stride, native = how
        ctx.settings = (stride, native, bias is not None)
        return convolve(x, kernel, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, kernel = ctx.saved_tensors
        stride, native, has_bias = ctx.settings
        channels, side = x.shape[1], kernel.shape[-1]
        dx = bias = None
        if ctx.needs_input_grad[0]:
            padding = [side // 2] * 2
            dx = torch.ops.aten.convolution_backward(
                g, x, kernel, None, [stride] * 2, padding, [1, 1], False, [0, 0], channels, [True, False, False]
            )[0]
        if has_bias:
            rows = g.permute(0, 2, 3, 1).reshape(-1, channels)
            bias = rows.T @ rows.new_ones(len(rows))
        inner, g = to_channels_last(x), to_channels_last(g)
        gradient = kernel.new_empty(kernel.shape)
        batch, _, height, width = x.shape
        problem = Problem(
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            stride=stride,
            reach=side // 2,
            threads=torch.get_num_threads(),
            is_double=int(x.dtype == torch.float64),
            x=inner.data_ptr(),
            gradient=g.data_ptr(),
            grad_kernels=gradient.data_ptr(),
        )
        native.weight_gradient(problem)
        return dx, gradient, bias, None

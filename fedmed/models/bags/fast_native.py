"""The fast bag by the native kernels: what travels between torch and C++.

The C++ file documents every array; here they are allocated and their addresses passed on.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedmed.models.bags.fast_tables import get_shapes
from fedmed.models.blocks.depthwise import convolve, to_channels_last
from fedmed.native import Kernels, Problem


class NativeBag(torch.autograd.Function):
    """The bag by the C++ kernels. Saves the input, the parameters and about 220 numbers per channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, eps: float, native: Kernels, *parameters: Tensor) -> Any:
        """Return y, mean and variance; the parameters are kernels, scales, shifts."""
        branches, channels = len(parameters) // 3, x.shape[1]
        parameters = tuple(p.contiguous() for p in parameters)
        inner = to_channels_last(x)
        problem, keep = _describe(inner, stride, eps, parameters)
        side = 2 * native.window_reach(problem) + 1
        num_products, num_firsts = native.bag_sizes(problem)
        products, firsts = x.new_empty(num_products), x.new_empty(num_firsts, dtype=torch.float64)
        statistics = x.new_empty(3, branches, channels, dtype=torch.float64)
        kernel, bias = x.new_empty(channels, 1, side, side), x.new_empty(channels)
        _set_addresses(problem, merged=kernel, bias=bias, products=products, firsts=firsts)
        _set_addresses(problem, mean=statistics[0], variance=statistics[1], deviation=statistics[2])
        native.bag_forward(problem)
        del keep
        y = convolve(inner, kernel, bias, stride)
        ctx.save_for_backward(x, products, firsts, statistics, *parameters)
        ctx.settings = (stride, eps, native)
        mean, variance = statistics[0].T.to(x.dtype), statistics[1].T.to(x.dtype)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *means: Tensor) -> Any:
        """Return the gradients of everything that ``forward`` takes."""
        x, products, firsts, statistics, *parameters = ctx.saved_tensors
        stride, eps, native = ctx.settings
        branches, channels = len(parameters) // 3, x.shape[1]
        inner, g = to_channels_last(x), to_channels_last(g.to(x.dtype))
        problem, keep = _describe(inner, stride, eps, parameters)
        sizes = [p.numel() for p in parameters[:branches]]
        grad_kernels, grad_shift = x.new_empty(sum(sizes)), x.new_empty(channels)
        grad_scales = x.new_empty(branches, channels)
        dx = torch.empty_like(inner) if ctx.needs_input_grad[0] else None
        _set_addresses(
            problem, products=products, firsts=firsts, mean=statistics[0], deviation=statistics[2], gradient=g
        )
        _set_addresses(problem, grad_kernels=grad_kernels, grad_scales=grad_scales, grad_shift=grad_shift)
        if dx is not None:
            _set_addresses(problem, grad_x=dx)
        native.bag_backward(problem)
        del keep
        pieces = grad_kernels.split(sizes)
        kernels = [piece.view(p.shape) for piece, p in zip(pieces, parameters[:branches], strict=True)]
        shifts = grad_shift.repeat(branches, 1).unbind()
        return dx, None, None, None, *kernels, *grad_scales.unbind(), *shifts


def _describe(x: Tensor, stride: int, eps: float, parameters: Sequence[Tensor]) -> tuple[Problem, list[Any]]:
    """Return the problem of a bag and what must stay alive while it is used."""
    branches = len(parameters) // 3
    shapes = get_shapes(parameters[:branches])
    sides = (ctypes.c_int32 * (2 * branches))(*(side for shape in shapes for side in shape))
    tables = [
        (ctypes.c_void_p * branches)(*(p.data_ptr() for p in parameters[n * branches : (n + 1) * branches]))
        for n in range(3)
    ]
    batch, channels, height, width = x.shape
    problem = Problem(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        stride=stride,
        reach=max(max(shape) for shape in shapes) // 2,
        branches=branches,
        threads=torch.get_num_threads(),
        is_double=int(x.dtype == torch.float64),
        eps=eps,
        x=x.data_ptr(),
        sides=ctypes.addressof(sides),
        kernels=ctypes.addressof(tables[0]),
        scales=ctypes.addressof(tables[1]),
        shifts=ctypes.addressof(tables[2]),
    )
    return problem, [sides, *tables]


def _set_addresses(problem: Problem, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        setattr(problem, name, tensor.data_ptr())

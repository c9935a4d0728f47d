"""A depthwise ERoHPRF bag in train mode without its branches' maps: exact, and several times faster.

Every branch is linear, so that mean and variance of its output follow from first and second moments of the input seen
through the window of the largest kernel. The bag is then one convolution, with the merged kernel of this batch. Per
channel, with S and m the moments, N values per channel and w_b branch b's kernel in the window::

    mean_b = w_b . m / N,   var_b = w_b . S w_b / N - mean_b^2,   a_b = gamma_b / sqrt(var_b + eps)
    y = conv(x, sum_b a_b w_b) + sum_b (beta_b - a_b mean_b)

The backward pass needs the weight gradient of that one convolution, and the adjoint of the moments. Small algebra is in
float64, whatever the maps are in. The method is our own; :mod:`fedmed.models.bags.bag` holds the branch by branch form.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmed.models.bags.fast_native import NativeBag
from fedmed.models.bags.fast_tables import count_outputs
from fedmed.models.bags.fast_torch import TorchBag
from fedmed.models.blocks.layers import widen_half
from fedmed.native import Kernels, load_kernels

__all__ = ["can_run_fast", "fast_bag"]

LARGEST_SIDE = 11


def can_run_fast(x: Tensor, kernels: Sequence[Tensor], stride: int) -> bool:
    """Return whether :func:`fast_bag` can do this bag: depthwise, odd kernels up to 11, stride 1 or 2, floating point.

    Parameters
    ----------
    x : Tensor
        (B, C, H, W).
    kernels : sequence of Tensor
        Of the branches, (C, 1, height, width) where the bag is depthwise with multiplier 1.
    stride : int
        Of all branches.
    """
    return (
        x.dim() == 4
        and x.is_floating_point()
        and stride in (1, 2)
        and len(kernels) > 0
        and all(
            kernel.shape[:2] == (x.shape[1], 1)
            and all(side % 2 == 1 and side <= LARGEST_SIDE for side in kernel.shape[2:])
            for kernel in kernels
        )
    )


def fast_bag(
    x: Tensor,
    kernels: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    *,
    stride: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of depthwise convolutions, each with a BatchNorm of its own in train mode.

    Parameters
    ----------
    x : Tensor
        (B, C, H, W), best in channels-last memory.
    kernels : sequence of Tensor
        One per branch, (C, 1, height, width), odd sides; padded by half their sides.
    scales, shifts : sequence of Tensor
        gamma and beta of the branches, (C) each.
    stride : int
        1 or 2.
    eps : float
        Added to the variances.

    Returns
    -------
    y : Tensor
        (B, C, ceil(H / stride), ceil(W / stride)), differentiable once in every input tensor; of the dtype of ``x``,
        or autocast's where that is on.
    mean, variance : Tensor
        (C, branches), of this batch; the variance is biased (divided by N = B Ho Wo), and neither is differentiable.

    Raises
    ------
    ValueError
        If there is only one value per channel, as BatchNorm2d, or :func:`can_run_fast` is false.
    """
    if not can_run_fast(x, kernels, stride):
        found = f"x {tuple(x.shape)} {x.dtype}, kernels {[tuple(k.shape) for k in kernels]}, stride {stride}"
        raise ValueError(f"The fast bag is for depthwise kernels with odd sides up to 11 and stride 1 or 2: {found}.")
    count = x.shape[0] * count_outputs(x.shape[2], stride) * count_outputs(x.shape[3], stride)
    if count == 1:
        raise ValueError("Expected more than 1 value per channel when training: this batch has one output position.")
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
    with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
        wide = widen_half(x)
        parameters = [t if t.dtype == wide.dtype else t.to(wide.dtype) for t in (*kernels, *scales, *shifts)]
        native = _find_native(wide, kernels)
        function = NativeBag if native else TorchBag
        y, mean, variance = function.apply(wide, stride, eps, native, *parameters)
        return y if y.dtype == dtype or x.dtype == torch.float64 else y.to(dtype), mean, variance


def _find_native(x: Tensor, kernels: Sequence[Tensor]) -> Kernels | None:
    """Return the native kernels where they can do this bag."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.numel() == 0:
        return None
    return load_kernels()

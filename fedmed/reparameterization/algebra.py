"""Structural reparameterization as pure functions on (kernel, bias), in float64.

A convolution in eval mode is linear, and so are a BatchNorm with frozen statistics and sums of them: each is one
convolution with another kernel. The functions take tensors of any floating type, compute and return float64, change
nothing and keep the gradient, so that a kernel can also be trained through them. A bias may be ``None``, which counts
as 0.

Sources: Ding et al., "RepVGG", CVPR 2021, and "Diverse Branch Block", CVPR 2021; Wu et al., arXiv 2505.13039 (bags).
Shape letters: O output channels, I input channels, G groups. A kernel is (O, I/G, kh, kw); a bias is (O,). Kernels
correlate, as torch's convolutions do: they are not flipped.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from fedmed.errors import ReparameterizationError

Kernel = tuple[Tensor, Tensor]
"""Weight (O, I/G, ...) and bias (O,), both float64."""
Pair = tuple[Tensor, Tensor | None]
"""Weight and bias of any floating type, as a layer has them."""


def widen(weight: Tensor, bias: Tensor | None) -> Kernel:
    """Return both as float64, a missing bias as zeros.

    Parameters
    ----------
    weight : Tensor
        (O, ...).
    bias : Tensor or None
        (O,).
    """
    weight = weight.double()
    return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias.double()


def batch_norm_factors(norm: Any) -> Kernel:
    """Return what a BatchNorm does in eval mode, ``y = scale x + shift`` per channel.

    Parameters
    ----------
    norm : module
        A BatchNorm of any number of dimensions, or anything else with ``weight``, ``bias`` (both may be ``None``),
        ``running_mean``, ``running_var`` and ``eps``.

    Returns
    -------
    scale, shift : Tensor
        (C,), float64: ``gamma / sqrt(running_var + eps)`` and ``beta - scale running_mean``.

    Raises
    ------
    ReparameterizationError
        If it normalises by statistics of its input even in eval mode: no running statistics, or another norm.
    """
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None or isinstance(norm, _InstanceNorm):
        raise ReparameterizationError(
            f"{type(norm).__name__} cannot be merged: it normalises by statistics of its input, so it is no fixed "
            "scale and shift. Only BatchNorm with running statistics can."
        )
    scale = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -scale * mean.double()
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def fold_scale(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> Kernel:
    """Fold ``scale y + shift``, per output channel, into the convolution or linear layer that computes y.

    Parameters
    ----------
    weight, bias
        (O, ...) and (O,) or ``None``.
    scale, shift : Tensor
        (O,).

    Returns
    -------
    weight, bias : Tensor
        ``scale_o weight_o`` and ``shift_o + scale_o bias_o``, float64. Exact whatever the padding.
    """
    weight, bias = widen(weight, bias)
    scale = scale.double()
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return weight * scale.reshape(shape), bias * scale + shift.double()


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: Any) -> Kernel:
    """Fold the BatchNorm behind a convolution or linear layer into it.

    Parameters
    ----------
    weight, bias
        (O, ...) and (O,) or ``None``.
    norm : module
        See :func:`batch_norm_factors`.

    Returns
    -------
    weight, bias : Tensor
        ``a_o W_o`` and ``beta_o + a_o (b_o - mean_o)`` with ``a = gamma / sqrt(var + eps)``; exact for any padding.

    Raises
    ------
    ReparameterizationError
        If the norm cannot be merged.
    """
    return fold_scale(weight, bias, *batch_norm_factors(norm))


def fold_batch_norm_before(
    norm: Any, weight: Tensor, bias: Tensor | None, *, groups: int = 1, padded: bool = False
) -> Kernel:
    """Fold the BatchNorm in front of a convolution or linear layer into it.

    Parameters
    ----------
    norm : module
        See :func:`batch_norm_factors`; of I channels.
    weight, bias
        (O, I/G, ...) and (O,) or ``None``.
    groups : int
        G of the convolution.
    padded : bool
        Whether the convolution pads with zeros: exact only if the BatchNorm's shift is 0.

    Raises
    ------
    ReparameterizationError
        If the norm cannot be merged, or the border would be wrong.
    """
    weight, bias = widen(weight, bias)
    scale, shift = batch_norm_factors(norm)
    if padded:
        _check_border(shift)
    split = weight.reshape(groups, -1, *weight.shape[1:])  # (O,I/G,...) -> (G,O/G,I/G,...)
    tail = (1,) * (weight.dim() - 2)
    factors = [values.reshape(groups, 1, -1, *tail) for values in (scale, shift)]  # (I,) -> (G,1,I/G,1...)
    folded = (split * factors[0]).reshape(weight.shape)
    constant = (split * factors[1]).flatten(2).sum(dim=2).flatten()  # (G,O/G,...) -> (O,)
    return folded, bias + constant


def pad_kernel(weight: Tensor, height: int, width: int) -> Tensor:
    """Return the kernel in the middle of a larger one of zeros.

    Parameters
    ----------
    weight : Tensor
        (O, I/G, kh, kw).
    height, width : int
        Of the larger kernel. A convolution padded by half of the larger kernel then equals the first, padded by half
        of its own, at any stride.

    Raises
    ------
    ValueError
        If the larger kernel is smaller, or its centre is not the kernel's (an even difference is needed).
    """
    more = (height - weight.shape[-2], width - weight.shape[-1])
    if min(more) < 0 or any(difference % 2 for difference in more):
        found = "×".join(map(str, weight.shape[-2:]))
        raise ValueError(f"a kernel of {found} cannot be centred in one of {height}×{width}")
    return functional.pad(weight.double(), (more[1] // 2, more[1] // 2, more[0] // 2, more[0] // 2))


def add_kernels(pairs: Iterable[Pair]) -> Kernel:
    """Return the convolution that equals the sum of convolutions of one size over one input.

    Parameters
    ----------
    pairs : iterable of (weight, bias)
        At least one, all weights of the same shape. The same stride, padding, dilation and groups are assumed.

    Raises
    ------
    ValueError
        If there is none, or the shapes differ.
    """
    kernels = [widen(*pair) for pair in pairs]
    shapes = {tuple(weight.shape) for weight, _ in kernels}
    if len(shapes) != 1:
        raise ValueError(f"kernels to add need one shape; found {sorted(shapes)}")
    weights, biases = zip(*kernels, strict=True)
    return sum(weights[1:], start=weights[0]), sum(biases[1:], start=biases[0])


def merge_parallel(pairs: Sequence[Pair]) -> Kernel:
    """Return the convolution that equals the sum of convolutions of several sizes over one input.

    Parameters
    ----------
    pairs : sequence of (weight, bias)
        (O, I/G, kh, kw), sizes all odd or all even on each axis; the branches have the same stride, dilation and
        groups, and each pads by ``dilation (size - 1) / 2``.

    Returns
    -------
    weight, bias : Tensor
        In the largest height and the largest width. The merged convolution pads by half of these.
    """
    height = max(weight.shape[-2] for weight, _ in pairs)
    width = max(weight.shape[-1] for weight, _ in pairs)
    return add_kernels((pad_kernel(weight, height, width), bias) for weight, bias in pairs)


def _check_border(shift: Tensor) -> None:
    if bool((shift != 0).any()):
        raise ReparameterizationError(
            "The BatchNorm's shift is not 0 and the convolution behind pads with zeros: near the border the merged "
            "form would differ."
        )

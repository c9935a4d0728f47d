"""Chains of linear layers as one layer: pure functions on (kernel, bias) in float64, as in :mod:`.algebra`.

When zero padding spoils a merge
--------------------------------
Of a chain, the second convolution sees zeros around the first one's output, while the merged one sees the first one's
output *for an input of zeros*, which is the first bias. The merged form is exact at the border only if

* the second convolution does not pad (``padding=0``; then the first may pad as it likes, and the merged one pads as the
  first did), or
* the first is 1x1 and its bias, after any BatchNorm is folded into it, is 0, or
* the first is 1x1 and the unmerged form pads the map between the two with the first one's bias instead of 0
  (``border="bias"``), as Diverse Branch Block does. The merged form then pads with zeros.

Anything else is refused with :class:`ReparameterizationError`: no single convolution with zero padding equals it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization.algebra import Kernel, Pair, batch_norm_factors, widen


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
        _check_border(shift, "The BatchNorm's shift")
    split = weight.reshape(groups, -1, *weight.shape[1:])  # (O,I/G,...) -> (G,O/G,I/G,...)
    tail = (1,) * (weight.dim() - 2)
    factors = [values.reshape(groups, 1, -1, *tail) for values in (scale, shift)]  # (I,) -> (G,1,I/G,1...)
    folded = (split * factors[0]).reshape(weight.shape)
    constant = (split * factors[1]).flatten(2).sum(dim=2).flatten()  # (G,O/G,...) -> (O,)
    return folded, bias + constant


def ungroup_kernel(weight: Tensor, groups: int, into: int = 1) -> Tensor:
    """Return the same convolution's kernel with fewer groups: zeros where channels do not meet.

    Parameters
    ----------
    weight : Tensor
        (O, I/G, ...).
    groups : int
        G.
    into : int
        Groups of the result, a divisor of G. The result is (O, I/into, ...).

    Raises
    ------
    ValueError
        If ``into`` does not divide G, or G does not divide O.
    """
    if groups % into or weight.shape[0] % groups:
        raise ValueError(f"a kernel of {groups} groups and {weight.shape[0]} outputs cannot be one of {into} groups")
    weight = weight.double()
    each = groups // into
    if each == 1:
        return weight
    split = weight.reshape(into, each, -1, *weight.shape[1:])  # (O,I/G,...) -> (into,each,O/G,I/G,...)
    wide = weight.new_zeros(*split.shape[:3], each, *weight.shape[1:])  # -> (into,each,O/G,each,I/G,...)
    index = torch.arange(each, device=weight.device)
    wide[:, index, :, index] = split.transpose(0, 1)
    return wide.reshape(weight.shape[0], each * weight.shape[1], *weight.shape[2:])


def merge_sequential(
    first: Pair, second: Pair, *, groups: tuple[int, int] = (1, 1), padding: int = 0, border: str = "zero"
) -> Kernel:
    """Return the convolution that equals two convolutions one behind the other.

    Parameters
    ----------
    first : (weight, bias)
        (M, I/G1, kh, kw); stride 1 unless the second is 1x1. Any padding.
    second : (weight, bias)
        (O, M/G2, kh, kw), any stride; dilation 1 in both.
    groups : (int, int)
        G1 and G2. The merged convolution has ``gcd(G1, G2)`` groups: depthwise with depthwise stays depthwise.
    padding : int
        Of the second convolution. Other than 0 only if the first is 1x1; see the module's text about the border.
    border : {"zero", "bias"}
        With what the unmerged form pads the map between the two.

    Returns
    -------
    weight, bias : Tensor
        (O, I/gcd, kh1 + kh2 - 1, kw1 + kw2 - 1). Stride: the product. Padding: the first one's, or the second one's if
        the first is 1x1.

    Raises
    ------
    ReparameterizationError
        If the merged convolution would be wrong at the border.
    ValueError
        If the channels do not fit, or ``border`` is unknown.
    """
    if border not in ("zero", "bias"):
        raise ValueError(f"border is {border!r}; allowed are 'zero' and 'bias'")
    (weight1, bias1), (weight2, bias2) = widen(*first), widen(*second)
    if weight2.shape[1] * groups[1] != weight1.shape[0]:
        raise ValueError(f"the second reads {weight2.shape[1] * groups[1]} channels, the first makes {len(weight1)}")
    if padding:
        if tuple(weight1.shape[-2:]) != (1, 1):
            raise ReparameterizationError(
                f"The second of two convolutions pads by {padding} and the first is larger than 1×1: near the border "
                "no single convolution equals them."
            )
        if border == "zero":
            _check_border(bias1, "The first convolution's bias")
    common = math.gcd(*groups)
    wide1, wide2 = ungroup_kernel(weight1, groups[0], common), ungroup_kernel(weight2, groups[1], common)
    constant = _apply_to_constant(wide2, bias1, common)
    return _convolve_kernels(wide1, wide2, common), bias2 + constant


def merge_pointwise_then_spatial(
    pointwise: Pair, spatial: Pair, *, groups: tuple[int, int] = (1, 1), padding: int = 0, border: str = "zero"
) -> Kernel:
    """Return the k×k convolution that equals a 1x1 convolution and then a k×k one.

    Parameters
    ----------
    pointwise, spatial : (weight, bias)
        (M, I/G1, 1, 1), stride 1, and (O, M/G2, kh, kw), any stride. With ``padding=0`` the 1x1 may pad.
    groups, padding, border
        See :func:`merge_sequential`. Padding with zeros is exact only if the 1x1 has no bias left, once its BatchNorm
        is folded.

    Raises
    ------
    ReparameterizationError
        If the border would be wrong.
    ValueError
        If the first is not 1x1.
    """
    _check_pointwise(pointwise[0])
    return merge_sequential(pointwise, spatial, groups=groups, padding=padding, border=border)


def merge_spatial_then_pointwise(spatial: Pair, pointwise: Pair, *, groups: tuple[int, int] = (1, 1)) -> Kernel:
    """Return the k×k convolution that equals a k×k convolution and then a 1x1 one; exact whatever the first pads.

    Parameters
    ----------
    spatial, pointwise : (weight, bias)
        (M, I/G1, kh, kw), any stride, dilation and padding, and (O, M/G2, 1, 1) without padding.
    groups : (int, int)
        G1 and G2; see :func:`merge_sequential`.

    Raises
    ------
    ValueError
        If the second is not 1x1.
    """
    _check_pointwise(pointwise[0])
    return merge_sequential(spatial, pointwise, groups=groups)


def _check_pointwise(weight: Tensor) -> None:
    if tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(f"a 1×1 kernel is needed; found {'×'.join(map(str, weight.shape[2:]))}")


def _check_border(constant: Tensor, what: str) -> None:
    if bool((constant != 0).any()):
        raise ReparameterizationError(
            f"{what} is not 0 and the convolution behind pads with zeros: near the border the merged form would differ."
        )


def _convolve_kernels(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Return the kernel (O, I/G, ...) of ``second`` after ``first``, (M, I/G, ...) and (O, M/G, ...)."""
    merged = []
    for part1, part2 in zip(first.chunk(groups), second.chunk(groups), strict=True):
        edge = (part2.shape[-2] - 1, part2.shape[-1] - 1)
        # A true convolution of the kernels: (I/G,M/G,...) with (O/G,M/G,...) -> (I/G,O/G,...)
        merged.append(functional.conv2d(part1.transpose(0, 1), part2.flip(-2, -1), padding=edge).transpose(0, 1))
    return torch.cat(merged)


def _apply_to_constant(weight: Tensor, constant: Tensor, groups: int) -> Tensor:
    """Return what a convolution (O, M/G, ...) without bias makes of a map with one value per channel, (M,) -> (O,)."""
    taps = weight.flatten(2).sum(dim=2).reshape(groups, -1, weight.shape[1])  # (O,M/G,...) -> (G,O/G,M/G)
    return torch.einsum("gom,gm->go", taps, constant.reshape(groups, -1)).flatten()

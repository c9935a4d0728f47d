"""Straightforward versions of the networks, to measure ours against: the same tensors, the same outputs.

What each does is what a transcription of the released codes does: every branch of a bag convolved and normalised by
itself; attention written as softmax of a product; layer norms of maps written by mean and variance; maps with channels
first in memory.
"""

import copy
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fedmed.models.bags.bag import HeterogeneousPyramidConv2d
from fedmed.models.blocks import retention, windows
from fedmed.models.blocks.multibranch import MultiBranchNet
from fedmed.models.blocks.norms import ChannelNorm


class LiteralNorm(ChannelNorm):
    """Layer norm of a map with channels first, written out."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        mean = x_BCHW.mean(1, keepdim=True)
        variance = (x_BCHW - mean).pow(2).mean(1, keepdim=True)
        normal = (x_BCHW - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * normal + self.bias[:, None, None]


class LiteralNet(MultiBranchNet):
    """HiFuse, CAME or HEMF without a wish for channels last, and with attention written out."""

    def forward_features(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return the fused maps of the four stages."""
        maps = dict.fromkeys(self.branches, x_B3HW)
        fused: list[Tensor] = []
        with patch.object(windows, "attend", attend_literally), patch.object(retention, "attend", attend_literally):
            for stage, fusion in enumerate(self.fusions):
                maps = {name: branch[stage](maps[name]) for name, branch in self.branches.items()}  # type: ignore[index]
                fused.append(fusion(maps, fused[-1] if fused else None))
        return fused


def attend_literally(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return attention by two products and a softmax, all pairs in memory."""
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(logits + bias, dim=-1) @ v


LITERAL: dict[type[nn.Module], type[nn.Module]] = {ChannelNorm: LiteralNorm, MultiBranchNet: LiteralNet}


def make_literal(model: nn.Module) -> nn.Module:
    """Return a straightforward copy of a network: same state dict, same outputs.

    Parameters
    ----------
    model : nn.Module
        Any of the registered networks.

    Returns
    -------
    nn.Module
        Bags go branch by branch; the caller chooses the memory format, which for bags is channels last, their better
        one, and else channels first.
    """
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if type(module) in LITERAL:
            module.__class__ = LITERAL[type(module)]
        if isinstance(module, HeterogeneousPyramidConv2d):
            module.form = "reference"
    return model


def make_plain(model: nn.Module, choose_side: Callable[[int], int]) -> nn.Module:
    """Return a copy of a network whose bags are plain depthwise convolutions with one BatchNorm each.

    Parameters
    ----------
    model : nn.Module
        A network with bags.
    choose_side : callable
        From the bag's largest level to the side of the kernel.
    """
    model = copy.deepcopy(model)
    bags = [name for name, module in model.named_modules() if isinstance(module, HeterogeneousPyramidConv2d)]
    for name in bags:
        bag = model.get_submodule(name)
        assert isinstance(bag, HeterogeneousPyramidConv2d)
        side = choose_side(max(max(branch.conv.kernel_size) for branch in bag.list_branches()))
        convolution = nn.Conv2d(
            bag.in_channels, bag.out_channels, side, bag.stride, side // 2, groups=bag.groups, bias=False
        )
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, nn.Sequential(convolution, nn.BatchNorm2d(bag.out_channels)))
    return model

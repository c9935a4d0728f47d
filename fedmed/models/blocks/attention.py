"""Attention in general and to a learned memory, and the channel and spatial gates of the fusion blocks.

Sources: Guo et al., "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks", TPAMI 2022;
Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018. Shape letters: B batch, C channels, H W space, S
memory slots.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.blocks.layers import widen_half
from fedmed.models.blocks.norms import ChannelNorm, ConvNorm

MEMORY_SLOTS = 64
MEMORY_STD = 0.001


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return ``softmax(q k^T / sqrt(d) + bias) v`` over the last two dimensions, (..., T, d)."""
    if torch.compiler.is_exporting():
        # A program keeps the memory layout that the fused kernel gave, which its replacement in ONNX does not have.
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias, dim=-1) @ v
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class ExternalAttention(nn.Module):
    """Attention of every position to S learned slots, which all images and all heads share.

    Parameters
    ----------
    channels : int
        C, a multiple of ``heads``.
    heads : int
        Number of contiguous groups of channels.

    Notes
    -----
    ``a = softmax over positions of (x M_k^T)``, ``y = (a / sum of a over slots) M_v^T``. Nothing passes between images:
    only the memory, which is learned, is common to them. Both memories start at a standard deviation of 0.001.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.keys = nn.Linear(channels // heads, MEMORY_SLOTS, bias=False)
        self.values = nn.Linear(MEMORY_SLOTS, channels // heads, bias=False)
        for memory in (self.keys, self.values):
            nn.init.normal_(memory.weight, std=MEMORY_STD)

    def compute_weights(self, x_BCHW: Tensor) -> Tensor:
        """Return the doubly normalised attention, (B, H W, heads, S), in float32 or wider; sums over S are 1."""
        _, channels, height, width = x_BCHW.shape
        tokens = x_BCHW.permute(0, 2, 3, 1).reshape(-1, height * width, self.heads, channels // self.heads)
        # In half precision many a weight of a large map is 0, and with it perhaps the sum that divides.
        weights = torch.softmax(widen_half(self.keys(tokens)), dim=1)  # (B,HW,heads,C/heads) -> (B,HW,heads,S)
        return weights / weights.sum(dim=3, keepdim=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        _, channels, height, width = x_BCHW.shape
        weights = self.compute_weights(x_BCHW).to(self.values.weight.dtype)
        y_BHWC = self.values(weights).reshape(-1, height, width, channels)  # (B,HW,heads,S) -> (B,H,W,C)
        return y_BHWC.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ResidualMemory(nn.Module):
    """``y = x + attention(norm(x))`` with one head: the stage of CAME's third branch.

    Parameters
    ----------
    channels : int
        C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.attention = ExternalAttention(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        return x_BCHW + self.attention(self.norm(x_BCHW))  # type: ignore[no-any-return]


class ChannelGate(nn.Module):
    """Multiply each channel by a gate from its mean and its maximum over positions.

    Parameters
    ----------
    channels : int
        C, at least ``ratio``.
    ratio : int
        How many times narrower the hidden layer is.
    double_sigmoid : bool
        Whether the sigmoid is applied twice, as HiFuse's code did until January 2024: gates in (0.5, 0.7311).
    """

    def __init__(self, channels: int, ratio: int, *, double_sigmoid: bool = False) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // ratio, bias=False)
        self.excite = nn.Linear(channels // ratio, channels, bias=False)
        self.double_sigmoid = double_sigmoid

    def compute_gate(self, x_BCHW: Tensor) -> Tensor:
        """Return the gates, (B,C)."""
        pooled = torch.stack([x_BCHW.mean(dim=(2, 3)), x_BCHW.amax(dim=(2, 3))])  # (B,C,H,W) -> (2,B,C)
        gate_BC = torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))).sum(dim=0))  # (2,B,C) -> (B,C)
        return torch.sigmoid(gate_BC) if self.double_sigmoid else gate_BC

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the gated map, (B,C,H,W)."""
        return x_BCHW * self.compute_gate(x_BCHW)[:, :, None, None].to(x_BCHW.dtype)


class SpatialGate(nn.Module):
    """Multiply each position by a gate from its mean and its maximum over channels.

    Parameters
    ----------
    kernel : int
        Side of the convolution over the two pooled maps, odd.
    order : {"mean_max", "max_mean"}
        Order of the pooled maps.
    norm : {"batch", "group", "layer"}, optional
        Norm behind the convolution; none by default. See :func:`fedmed.models.blocks.norms.make_fusion_norm`.
    """

    def __init__(self, kernel: int, order: str = "mean_max", norm: str | None = None) -> None:
        super().__init__()
        self.conv: nn.Module = (
            nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
            if norm is None
            else ConvNorm(2, 1, kernel, bias=False, norm=norm)
        )
        self.max_first = order == "max_mean"

    def compute_gate(self, x_BCHW: Tensor) -> Tensor:
        """Return the gates, (B,1,H,W)."""
        pooled = [x_BCHW.mean(dim=1, keepdim=True), x_BCHW.amax(dim=1, keepdim=True)]  # (B,C,H,W) -> 2 x (B,1,H,W)
        stacked = torch.cat(pooled[::-1] if self.max_first else pooled, dim=1)  # -> (B,2,H,W)
        return torch.sigmoid(self.conv(stacked))  # -> (B,1,H,W)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the gated map, (B,C,H,W)."""
        return x_BCHW * self.compute_gate(x_BCHW).to(x_BCHW.dtype)

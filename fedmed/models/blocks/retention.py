"""Axial retention: attention along rows, then along columns, that fades with distance. The global branch of HEMF.

Sources: Fan et al., "RMT: Retentive Networks Meet Vision Transformers", CVPR 2024; He et al., "HEMF", PeerJ Computer
Science 11:e3181, 2025, doi 10.7717/peerj-cs.3181, and its released code. Shape letters: B batch, C channels, H W space,
n heads, d = C / n.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmed.models.blocks.attention import attend
from fedmed.models.blocks.depthwise import FastDepthwiseConv2d

HEADS = 8


class Positions(NamedTuple):
    """What a stage knows of positions; the same for all its layers."""

    cos: Tensor
    sin: Tensor
    row_decay: Tensor
    column_decay: Tensor


def compute_log_decay() -> Tensor:
    """Return ``ln(1 - 2^-(1 + 3h/8))`` of the heads h = 0..7, (n,), in float32."""
    return torch.tensor([math.log1p(-(2 ** -(1 + 3 * head / HEADS))) for head in range(HEADS)])


def compute_frequencies(head_width: int) -> Tensor:
    """Return ``10000^(-j / (d/2 - 1))`` for j = 0..d/2-1, (d/2,), in float32: from 1 to 0.0001."""
    return 10000 ** -torch.linspace(0, 1, head_width // 2)


def compute_positions(height: int, width: int, head_width: int, device: torch.device) -> Positions:
    """Compute the position tables of a map.

    Parameters
    ----------
    height, width : int
        Sides of the map.
    head_width : int
        d, even.
    device : torch.device
        Where the tables lie.

    Returns
    -------
    Positions
        Cosine and sine of ``(r W + c) theta_j`` for each pair j of channels, (H,W,1,d/2); what is added to the logits
        along rows, ``|c - c'| ln gamma_n``, (n,W,W), and along columns, (n,H,H).

    Notes
    -----
    The tables are float32 whatever the network is: bfloat16 cannot tell index 3134 from 3135.
    """
    index = torch.arange(height * width, device=device, dtype=torch.float32).reshape(height, width, 1, 1)
    angle = index * compute_frequencies(head_width).to(device)  # (H,W,1,1) -> (H,W,1,d/2)
    log_decay = compute_log_decay().to(device)[:, None, None]
    masks = []
    for side in (width, height):
        place = torch.arange(side, device=device, dtype=torch.float32)
        masks.append((place[:, None] - place[None, :]).abs() * log_decay)  # (n,side,side)
    return Positions(angle.cos(), angle.sin(), *masks)


def rotate(z: Tensor, positions: Positions) -> Tensor:
    """Turn each pair (a, b) of neighbouring channels of (B,H,W,n,d) by the angle of its position.

    The results come as all first members, then all second members. Queries and keys are permuted alike, so that their
    products are those of the interleaved order.
    """
    first, second = z[..., 0::2], z[..., 1::2]  # 2 x (B,H,W,n,d/2)
    cos, sin = positions.cos, positions.sin
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(z.dtype)


def attend_axially(q: Tensor, k: Tensor, v: Tensor, positions: Positions) -> Tensor:
    """Attend along rows, then, with the same queries and keys, along columns.

    Parameters
    ----------
    q, k, v : Tensor
        (B,H,W,n,d); logits are divided by sqrt(d).
    positions : Positions
        Only its decay is used.

    Returns
    -------
    Tensor
        (B,H,W,n,d).
    """
    _, height, width, heads, head_width = q.shape
    rows = [z.permute(0, 1, 3, 2, 4).flatten(0, 1) for z in (q, k, v)]  # (B,H,W,n,d) -> (B H,n,W,d)
    along = attend(rows[0], rows[1], rows[2], positions.row_decay.to(q.dtype)[None])
    v = along.reshape(-1, height, heads, width, head_width).permute(0, 1, 3, 2, 4)  # (B H,n,W,d) -> (B,H,W,n,d)
    columns = [z.permute(0, 2, 3, 1, 4).flatten(0, 1) for z in (q, k, v)]  # (B,H,W,n,d) -> (B W,n,H,d)
    down = attend(columns[0], columns[1], columns[2], positions.column_decay.to(q.dtype)[None])
    return down.reshape(-1, width, heads, height, head_width).permute(0, 3, 1, 2, 4)  # (B W,n,H,d) -> (B,H,W,n,d)


class AxialRetention(nn.Module):
    """Axial attention with eight heads, rotary positions and decay, plus a depthwise view of the values.

    Parameters
    ----------
    channels : int
        C, a multiple of 16.

    Notes
    -----
    Along rows ``A = softmax(q k^T / sqrt(d) + |c - c'| ln gamma)``, likewise along columns. The paper multiplies by the
    decay behind the softmax; its code, which gave its results, adds the logarithm before, and so do we.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.lepe = FastDepthwiseConv2d(channels, 5)
        self.out = nn.Linear(channels, channels)

    def forward(self, x_BHWC: Tensor, positions: Positions) -> Tensor:
        """Return (B,H,W,C)."""
        q_BHWC, k_BHWC, v_BHWC = self.query(x_BHWC), self.key(x_BHWC), self.value(x_BHWC)
        local_BHWC = self.lepe(v_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        q, k, v = (z.unflatten(3, (HEADS, -1)) for z in (q_BHWC, k_BHWC, v_BHWC))  # (B,H,W,C) -> (B,H,W,n,d)
        y = attend_axially(rotate(q, positions), rotate(k, positions), v, positions)
        return self.out(y.flatten(3) + local_BHWC)  # type: ignore[no-any-return]


class RetentionStage(nn.Module):
    """Layers of ``x = norm_a(x + retention(x))`` and ``x = norm_b(x + linear(x))``; keeps the shape.

    Parameters
    ----------
    channels : int
        C, a multiple of 16.
    depth : int
        Number of layers.
    share_norms : bool
        Whether all layers use one pair of norms, as the released code does.
    """

    def __init__(self, channels: int, depth: int, *, share_norms: bool = True) -> None:
        super().__init__()
        self.head_width = channels // HEADS
        num_norms = 1 if share_norms else depth
        self.norms_a = nn.ModuleList([nn.LayerNorm(channels, eps=1e-6) for _ in range(num_norms)])
        self.norms_b = nn.ModuleList([nn.LayerNorm(channels, eps=1e-6) for _ in range(num_norms)])
        self.retentions = nn.ModuleList([AxialRetention(channels) for _ in range(depth)])
        self.linears = nn.ModuleList([nn.Linear(channels, channels) for _ in range(depth)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        positions = compute_positions(x_BCHW.shape[2], x_BCHW.shape[3], self.head_width, x_BCHW.device)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        for index, (retention, linear) in enumerate(zip(self.retentions, self.linears, strict=True)):
            norm_index = index % len(self.norms_a)  # a shared pair serves every layer
            x_BHWC = self.norms_a[norm_index](x_BHWC + retention(x_BHWC, positions))
            x_BHWC = self.norms_b[norm_index](x_BHWC + linear(x_BHWC))
        return x_BHWC.permute(0, 3, 1, 2)

"""ADSR: adaptive dual-axis style-based recalibration of feature maps.

"Style" is the mean and standard deviation of a feature map. Global style adaptation (GSA) pools it over positions and
gives every channel a gate; pixel style fusion (PSF) pools it over channels and gives every position a gate.

Source: Zhang et al., "Adaptive Dual-Axis Style-Based Recalibration Network With Class-Wise Statistics Loss for
Imbalanced Medical Image Classification", IEEE Transactions on Image Processing 34, 2025, doi
10.1109/TIP.2025.3551128, and the authors' released code. Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ConfigError
from fedmed.models.blocks.layers import (
    check_choice,
    check_kernels,
    check_number,
    check_subset,
    check_switch,
    compute_moments,
    widen_half,
)

STYLE_STATISTICS = ("mean", "std", "both")
GATES = ("dense", "depthwise")
PSF_STATISTICS = ("max", "mean", "std")
# Kernel size of each branch and its share in the fused map. The released code evaluates its 3x3 branch twice.
PSF_BRANCHES = {"official": {1: 1, 3: 2}, "three_scale": {1: 1, 3: 1, 5: 1}}


def initialize_style(module: nn.Module) -> None:
    """Initialise what a new module has of :class:`StyleGate` and :class:`PixelStyleFusion`, as the released code does.

    Convolutions over positions: Kaiming normal, fan out. Adaptation: weights as PyTorch makes them (Kaiming uniform),
    bias 0. BatchNorm: scale 1, shift 0, but scale 0 in PSF, whose gate is then exactly 0.5 everywhere. Draws from
    torch's global generator.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, StyleGate):
            assert part.adapt.bias is not None, "the adaptation has a bias"
            nn.init.zeros_(part.adapt.bias)
        elif isinstance(part, PixelStyleFusion):
            for norm in part.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    nn.init.zeros_(norm.weight)


class StyleGate(nn.Module):
    """Channel gate from the style of one depthwise view: half of a :class:`GlobalStyleAdaptation`.

    Parameters
    ----------
    channels : int
        C, channels of the half.
    kernel : int
        Side of the depthwise convolution, odd.
    gate : {"dense", "depthwise"}
        Whether the style of every channel enters each gate, or only the channel's own.
    statistics : {"mean", "std", "both"}
        What of the style enters.
    eps : float
        Added to the variance.
    bn_momentum : float
        Momentum of the BatchNorm.

    Notes
    -----
    ``d = relu(bn(conv(x)))``, ``g_j = sigmoid(b_j + sum_i(A_ji mean_i + B_ji std_i))`` with the unbiased variance of
    ``d`` over positions. Of a map with one position the variance counts as 0.
    """

    def __init__(
        self, channels: int, kernel: int, *, gate: str, statistics: str, eps: float, bn_momentum: float
    ) -> None:
        super().__init__()
        num_statistics = 2 if statistics == "both" else 1
        self.eps = eps
        self.statistics = statistics
        self.dense = gate == "dense"
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels, momentum=bn_momentum)
        self.adapt: nn.Linear | nn.Conv1d = (
            nn.Linear(num_statistics * channels, channels)
            if self.dense
            else nn.Conv1d(channels, channels, num_statistics, groups=channels)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the gates, (B,C), in (0, 1)."""
        d_BCHW = functional.relu(self.norm(self.conv(x_BCHW)), inplace=True)
        mean_BC, variance_BC = compute_moments(widen_half(d_BCHW), dims=(2, 3))  # (B,C,H,W) -> 2 x (B,C)
        chosen = {"mean": mean_BC, "std": torch.sqrt(variance_BC + self.eps)}
        style = list(chosen.values()) if self.statistics == "both" else [chosen[self.statistics]]
        if self.dense:
            gate_BC: Tensor = self.adapt(torch.cat(style, dim=1))  # (B,2C) -> (B,C)
        else:
            gate_BC = self.adapt(torch.stack(style, dim=2)).squeeze(2)  # (B,C,2) -> (B,C)
        return torch.sigmoid(gate_BC)


class GlobalStyleAdaptation(nn.Module):
    """GSA: one gate per channel, from the channel's style over all positions.

    The first half of the channels is viewed through a small depthwise kernel, the second through a large one; the
    input itself is gated, not the views.

    Parameters
    ----------
    channels : int
        C, at least 2. Of an odd number the second half is the larger.
    kernels : sequence of two int
        Sides of the depthwise convolutions of the two halves, odd.
    gate : {"dense", "depthwise"}
        ``dense`` is the published form, with C^2 weights. ``depthwise`` is our variant with 2C.
    statistics : {"mean", "std", "both"}
        What of the style enters.
    eps : float
        Added to the variance.
    bn_momentum : float
        Momentum of the BatchNorms.
    gain : float
        Factor of the gates; 1 is the published form.

    Raises
    ------
    ConfigError
        If an argument has a value that is not allowed.
    """

    def __init__(
        self,
        channels: int,
        kernels: Sequence[int] = (3, 7),
        gate: str = "dense",
        *,
        statistics: str = "both",
        eps: float = 1e-5,
        bn_momentum: float = 0.1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ConfigError(f"Global style adaptation of {channels} channel(s): at least 2 are needed.")
        check_kernels(kernels)
        check_choice("gate", gate, GATES)
        check_choice("statistics", statistics, STYLE_STATISTICS)
        check_number("bn_momentum", bn_momentum, most=1)
        self.gain = gain
        self.halves = [channels // 2, channels - channels // 2]
        self.first, self.second = (
            StyleGate(half, side, gate=gate, statistics=statistics, eps=eps, bn_momentum=bn_momentum)
            for half, side in zip(self.halves, kernels, strict=True)
        )
        initialize_style(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the gated map, (B,C,H,W)."""
        first, second = torch.split(x_BCHW, self.halves, dim=1)  # (B,C,H,W) -> (B,C//2,H,W), (B,C-C//2,H,W)
        gate_BC = torch.cat([self.first(first), self.second(second)], dim=1)  # -> (B,C)
        if self.gain != 1.0:
            gate_BC = gate_BC * self.gain
        return x_BCHW * gate_BC[:, :, None, None].to(x_BCHW.dtype)  # (B,C,1,1) against (B,C,H,W)


class PixelStyleFusion(nn.Module):
    """PSF: one gate per position, from the style of that position over all channels.

    Parameters
    ----------
    mode : {"official", "three_scale"}
        ``official``: 1x1 and 3x3 branches with shares 1/3 and 2/3. ``three_scale``: 1x1, 3x3 and 5x5 with equal shares,
        our experiment.
    stats : sequence of {"max", "mean", "std"}
        What is pooled over channels; stacked in this order whatever the order given.
    branches : sequence of int, optional
        Kernel sides of the branches that are kept; default: all of the mode.
    bn_momentum : float
        Momentum of the BatchNorms, per evaluation of a branch.
    gain : float
        Factor of the gates; 1 is the published form.

    Raises
    ------
    ConfigError
        If an argument has a value that is not allowed.

    Notes
    -----
    The released code evaluates its 3x3 branch twice and averages three maps, which also moves that branch's running
    statistics twice. One evaluation with share 2/3 and momentum ``1 - (1 - bn_momentum)^2`` (0.0199 for 0.01) gives the
    same outputs, gradients and running statistics.
    """

    def __init__(
        self,
        mode: str = "official",
        stats: Sequence[str] = PSF_STATISTICS,
        *,
        branches: Sequence[int] | None = None,
        bn_momentum: float = 0.01,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("psf", mode, tuple(PSF_BRANCHES))
        check_number("psf_bn_momentum", bn_momentum, most=1)
        shares = PSF_BRANCHES[mode]
        sides = tuple(shares) if branches is None else check_subset("psf_branches", branches, tuple(shares))
        self.gain = gain
        self.stats = check_subset("psf_stats", stats, PSF_STATISTICS)
        self.shares = [shares[side] / sum(shares[kept] for kept in sides) for side in sides]
        self.branches = nn.ModuleDict(
            {
                str(side): nn.Sequential(
                    nn.Conv2d(len(self.stats), 1, side, padding=side // 2, bias=False),
                    nn.BatchNorm2d(1, momentum=1 - (1 - bn_momentum) ** shares[side]),
                )
                for side in sides
            }
        )
        initialize_style(self)

    def pool_channels(self, u_BCHW: Tensor) -> Tensor:
        """Return the chosen statistics over channels, (B,S,H,W) with S of them, in float32 or wider."""
        u_BCHW = widen_half(u_BCHW)
        pooled = {}
        if "max" in self.stats:
            pooled["max"] = u_BCHW.amax(dim=1)  # (B,C,H,W) -> (B,H,W)
        if "mean" in self.stats or "std" in self.stats:
            pooled["mean"], variance_BHW = compute_moments(u_BCHW, dims=(1,))  # (B,C,H,W) -> 2 x (B,H,W)
            # The published form has no eps; this one is below float32's resolution and keeps the gradient finite.
            pooled["std"] = torch.sqrt(variance_BHW + 1e-12)
        return torch.stack([pooled[name] for name in self.stats], dim=1)  # S x (B,H,W) -> (B,S,H,W)

    def forward(self, u_BCHW: Tensor) -> Tensor:
        """Return the gated map, (B,C,H,W)."""
        pooled_BSHW = self.pool_channels(u_BCHW)  # (B,C,H,W) -> (B,S,H,W)
        maps = [share * branch(pooled_BSHW) for share, branch in zip(self.shares, self.branches.values(), strict=True)]
        fused_B1HW = sum(maps[1:], start=maps[0])  # (B,S,H,W) -> (B,1,H,W)
        gate_B1HW = torch.sigmoid(fused_B1HW)
        if self.gain != 1.0:
            gate_B1HW = gate_B1HW * self.gain
        return u_BCHW * gate_B1HW.to(u_BCHW.dtype)


class ADSR(nn.Module):
    """Style-based recalibration of a feature map: GSA, then PSF. Keeps the shape.

    Parameters
    ----------
    channels : int
        C of the map.
    use_gsa, use_psf : bool
        Which halves are there; at least one.
    gate_gain : float
        Factor of either gate. At initialisation a gate is about 0.5, so that 1 (the published form) scales the map by
        about 1/4 and 2 keeps its scale, which suits pretrained weights.
    kernels, gate, statistics, bn_momentum
        See :class:`GlobalStyleAdaptation`.
    psf, psf_stats, psf_branches, psf_bn_momentum
        ``mode``, ``stats``, ``branches`` and ``bn_momentum`` of :class:`PixelStyleFusion`.

    Raises
    ------
    ConfigError
        If an argument has a value that is not allowed.

    Notes
    -----
    In train mode a batch of one image with a map of one position raises, as BatchNorm does: drop or pad such a batch.
    """

    def __init__(
        self,
        channels: int,
        *,
        use_gsa: bool = True,
        use_psf: bool = True,
        gate_gain: float = 1.0,
        kernels: Sequence[int] = (3, 7),
        gate: str = "dense",
        statistics: str = "both",
        bn_momentum: float = 0.1,
        psf: str = "official",
        psf_stats: Sequence[str] = PSF_STATISTICS,
        psf_branches: Sequence[int] | None = None,
        psf_bn_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        check_switch("use_gsa", use_gsa)
        check_switch("use_psf", use_psf)
        check_number("gate_gain", gate_gain)
        if not (use_gsa or use_psf):
            raise ConfigError("'use_gsa' and 'use_psf' are both off, so nothing is left. Switch one on.")
        gsa = GlobalStyleAdaptation(
            channels, kernels, gate, statistics=statistics, bn_momentum=bn_momentum, gain=gate_gain
        )
        fusion = PixelStyleFusion(psf, psf_stats, branches=psf_branches, bn_momentum=psf_bn_momentum, gain=gate_gain)
        self.gsa = gsa if use_gsa else nn.Identity()
        self.psf = fusion if use_psf else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the recalibrated map, (B,C,H,W)."""
        y_BCHW: Tensor = self.psf(self.gsa(x_BCHW))
        return y_BCHW

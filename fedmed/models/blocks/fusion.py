"""The fusion block of HiFuse, CAME and HEMF: reads the maps of all branches and the fused map of the stage before.

Sources: Huo et al., "HiFuse", Biomedical Signal Processing and Control 87, 2024; Li et al., "CAME", IEEE SMC 2023; He
et al., "HEMF", PeerJ Computer Science 11:e3181, 2025; and their released code. Shape letters: B batch, C channels, H W
space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.blocks.attention import ChannelGate, ExternalAttention, SpatialGate
from fedmed.models.blocks.local_block import make_drop_path
from fedmed.models.blocks.norms import ChannelNorm, ConvNorm, make_fusion_norm

# "global" alone could not be an attribute in the code that torch.export writes.
LOCAL, GLOBAL, MEMORY = "local_branch", "global_branch", "memory_branch"
PREVIOUS, CONTEXT = "previous", "context"


@dataclass(frozen=True)
class FusionDesign:
    """What differs between the fusion blocks of the three networks; the same at every stage.

    Names of maps are those of the branches, ``PREVIOUS`` and ``CONTEXT``; of the orders, maps that are not there are
    left out.
    """

    context_order: Sequence[str]
    """Order in which projected maps are concatenated for the context."""
    merge_order: Sequence[str]
    """Order in which gated maps and context are concatenated for the MLP."""
    spatial_on: Sequence[str] = ()
    """Branches with a spatial gate."""
    spatial_kernel: int = 7
    spatial_order: str = "mean_max"
    spatial_norm: bool = False
    """Whether a norm follows the spatial gate's convolution."""
    channel_on: Sequence[str] = ()
    """Branches with a channel gate."""
    channel_ratio: int = 16
    double_sigmoid: bool = False
    memory_heads: int = 0
    """Heads of the external attention that gates each branch; 0: none."""
    share_norms: bool = True
    """Whether the two norms around that attention are one."""
    squeeze: bool = False
    """Whether the MLP starts by squeezing its input to C channels."""
    dense_mlp: bool = False
    """Whether the 3x3 convolution of the MLP is dense instead of depthwise."""
    norm: str = "batch"
    """See :func:`fedmed.models.blocks.norms.make_fusion_norm`."""
    drop_path: float = 0.0
    """Probability that an image's fused map is the shortcut alone, in training."""


class Recalibration(nn.Module):
    """What a fusion block does to one branch's map: memory attention, spatial gate, channel gate, as far as designed.

    Parameters
    ----------
    channels : int
        C.
    branch : str
        Which branch.
    design : FusionDesign
        What is there.

    Notes
    -----
    With memory attention (HEMF): ``a = norm(x)``, ``m = norm(a * attention(a))``, then the gates; without it the gates
    alone.
    """

    def __init__(self, channels: int, branch: str, design: FusionDesign) -> None:
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        self.memory = None
        if design.memory_heads:
            self.norm = ChannelNorm(channels)
            self.memory = ExternalAttention(channels, design.memory_heads)
            self.second_norm = None if design.share_norms else ChannelNorm(channels)
        self.gates = nn.Sequential()
        if branch in design.spatial_on:
            norm = design.norm if design.spatial_norm else None
            self.gates.append(SpatialGate(design.spatial_kernel, design.spatial_order, norm))
        if branch in design.channel_on:
            self.gates.append(ChannelGate(channels, design.channel_ratio, double_sigmoid=design.double_sigmoid))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        if self.memory is not None:
            x_BCHW = self.norm(x_BCHW)
            x_BCHW = (self.second_norm or self.norm)(x_BCHW * self.memory(x_BCHW))
        return self.gates(x_BCHW)  # type: ignore[no-any-return]


class FusionMLP(nn.Module):
    """Residual inverted MLP: IRMLP of HiFuse and CAME, or with ``squeeze`` SIRMLP of HEMF.

    Parameters
    ----------
    in_channels, out_channels : int
        K and C.
    squeeze : bool
        Whether a first 1x1 convolution takes K to C; the width M of what follows is then C, else K.
    dense : bool
        Whether the 3x3 convolution is dense instead of depthwise.
    norm : {"batch", "group", "layer"}
        See :func:`fedmed.models.blocks.norms.make_fusion_norm`.

    Notes
    -----
    ``s = squeeze(x)``, ``m = norm(s + gelu(conv3x3(s)))``, ``y = norm(conv1x1(gelu(conv1x1(m))))`` with 4M hidden
    channels. The texts call the 3x3 convolution depthwise, the released codes run a dense one.
    """

    def __init__(self, in_channels: int, out_channels: int, *, squeeze: bool, dense: bool, norm: str = "batch") -> None:
        super().__init__()
        width = out_channels if squeeze else in_channels
        self.squeeze = ConvNorm(in_channels, out_channels, norm=norm) if squeeze else nn.Identity()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=1 if dense else width, bias=False)
        self.middle_norm = make_fusion_norm(norm, width)
        self.expand = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.reduce = ConvNorm(4 * width, out_channels, bias=False, norm=norm)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        s_BMHW = self.squeeze(x_BKHW)  # (B,K,H,W) -> (B,M,H,W)
        m_BMHW = self.middle_norm(s_BMHW + functional.gelu(self.spatial(s_BMHW)))
        return self.reduce(functional.gelu(self.expand(m_BMHW)))  # type: ignore[no-any-return]  # -> (B,C,H,W)


class FusionBlock(nn.Module):
    """Fuse the maps of one stage.

    Parameters
    ----------
    channels : int
        C of the stage.
    branches : sequence of str
        Which branches there are.
    design : FusionDesign
        How they are fused.
    first : bool
        Whether this is the first stage, which has no previous map. Only what is used is built.

    Notes
    -----
    ``w_f = pool(relu(norm(conv(previous))))``, ``context = gelu(norm(conv(norm(cat(w_f, norm(conv(branch)), ...)))))``,
    ``y = w_f + mlp(norm(cat(gated branches, context)))``; at the first stage ``w_f`` is left out.
    """

    def __init__(self, channels: int, branches: Sequence[str], design: FusionDesign, *, first: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {branch: ConvNorm(channels, channels, norm=design.norm) for branch in branches}
        )
        self.previous = None if first else ConvNorm(channels // 2, channels, norm=design.norm)
        there = {*branches, CONTEXT} | (set() if first else {PREVIOUS})
        self.context_order = [name for name in design.context_order if name in there]
        self.merge_order = [name for name in design.merge_order if name in there]
        self.context_norm = ChannelNorm(len(self.context_order) * channels)
        self.context = ConvNorm(len(self.context_order) * channels, channels, norm=design.norm)
        self.recalibrations = nn.ModuleDict({branch: Recalibration(channels, branch, design) for branch in branches})
        self.merge_norm = ChannelNorm(len(self.merge_order) * channels)
        self.mlp = FusionMLP(
            len(self.merge_order) * channels,
            channels,
            squeeze=design.squeeze,
            dense=design.dense_mlp,
            norm=design.norm,
        )
        self.drop_path = make_drop_path(design.drop_path)

    def forward(self, maps: Mapping[str, Tensor], previous: Tensor | None = None) -> Tensor:
        """Fuse.

        Parameters
        ----------
        maps : mapping of str to Tensor
            The branches' maps, each (B,C,H,W).
        previous : Tensor, optional
            Fused map of the stage before, (B,C/2,2H,2W).

        Returns
        -------
        Tensor
            (B,C,H,W).
        """
        projected = {branch: project(maps[branch]) for branch, project in self.projections.items()}
        if self.previous is not None:
            # (B,C/2,2H,2W) -> (B,C,2H,2W) -> (B,C,H,W)
            projected[PREVIOUS] = functional.avg_pool2d(functional.relu(self.previous(previous)), 2)
        context = torch.cat([projected[name] for name in self.context_order], dim=1)  # -> (B,2C or more,H,W)
        merged = {branch: recalibrate(maps[branch]) for branch, recalibrate in self.recalibrations.items()}
        merged[CONTEXT] = functional.gelu(self.context(self.context_norm(context)))  # -> (B,C,H,W)
        stacked = self.merge_norm(torch.cat([merged[name] for name in self.merge_order], dim=1))  # -> (B,K,H,W)
        fused_BCHW: Tensor = self.drop_path(self.mlp(stacked))  # -> (B,C,H,W)
        return fused_BCHW if self.previous is None else projected[PREVIOUS] + fused_BCHW

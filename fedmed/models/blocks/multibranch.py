"""The one network class of HiFuse, CAME and HEMF: parallel branches of four stages, and a fusion block at each stage.

Branches never see each other; only the fusion blocks read them. Shape letters: B batch, C channels, H W space, K
classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedmed.errors import ConfigError
from fedmed.models.blocks.attention import ResidualMemory
from fedmed.models.blocks.fusion import FusionBlock, FusionDesign
from fedmed.models.blocks.layers import check_choice, check_number, check_switch
from fedmed.models.blocks.local_block import LocalBlock, spread_drop_path
from fedmed.models.blocks.norms import FUSION_NORMS
from fedmed.models.blocks.retention import RetentionStage
from fedmed.models.blocks.stems import SWIN_EPS, PatchMerge, make_down, make_stem
from fedmed.models.blocks.windows import WindowAttention, WindowBlock, choose_window_shift

NUM_STAGES = 4
STRIDE = 32
LINEAR_STD = 0.02
CONV_STD = 0.2
"""Of new convolutions. It looks like a slip for 0.02, but is what all three networks were trained with."""


class MultiBranchNet(nn.Module):
    """Branches of four stages, fused stage by stage, and a classifier on the last fused map.

    Parameters
    ----------
    branches : mapping of str to nn.ModuleList
        The branches by name, each a list of four stages that map (B,C/2,2H,2W) to (B,C,H,W); the first takes images.
    design : FusionDesign
        How their maps are fused.
    widths : sequence of int
        C of each stage.
    num_classes : int
        K.
    """

    def __init__(
        self,
        branches: Mapping[str, nn.ModuleList],
        design: FusionDesign,
        widths: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.fusions = nn.ModuleList(
            [FusionBlock(width, tuple(branches), design, first=stage == 0) for stage, width in enumerate(widths)]
        )
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=LINEAR_STD)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return the fused maps of the four stages, (B,C,H/4,W/4) to (B,8C,H/32,W/32).

        Raises
        ------
        ConfigError
            Unless both sides of the images are multiples of 32: on others the branches round differently.
        """
        height, width = x_B3HW.shape[2:]
        if height % STRIDE or width % STRIDE:
            raise ConfigError(
                f"The images have {height} x {width} pixels. Allowed: multiples of {STRIDE}, for example "
                f"{max(STRIDE, round(height / STRIDE) * STRIDE)} x {max(STRIDE, round(width / STRIDE) * STRIDE)}."
            )
        x_B3HW = x_B3HW.contiguous(memory_format=torch.channels_last)
        maps = dict.fromkeys(self.branches, x_B3HW)
        fused: list[Tensor] = []
        for stage, fusion in enumerate(self.fusions):
            maps = {name: cast(nn.ModuleList, branch)[stage](maps[name]) for name, branch in self.branches.items()}
            fused.append(fusion(maps, fused[-1] if fused else None))
        return fused

    def forward_head(self, x_BCHW: Tensor) -> Tensor:
        """Return logits, (B,K), of the last fused map."""
        logits_BK: Tensor = self.head(self.norm(x_BCHW.mean(dim=(2, 3))))  # (B,C,H,W) -> (B,C) -> (B,K)
        return logits_BK

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return logits, (B,K), of normalised images, (B,3,H,W), with sides that are multiples of 32."""
        return self.forward_head(self.forward_features(x_B3HW)[-1])


def initialize_branch(branch: nn.Module, conv_init_std: float) -> None:
    """Draw the weights of a local or global branch as the released codes do, from torch's global generator.

    Truncated normal with standard deviation ``conv_init_std`` for convolutions and 0.02 for linear layers and tables of
    relative biases; biases 0. The codes intend other values for HEMF's queries and keys, and overwrite them with these.
    """
    for module in branch.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=conv_init_std if isinstance(module, nn.Conv2d) else LINEAR_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.bias_table, std=LINEAR_STD)


def make_local_branch(
    widths: Sequence[int], depths: Sequence[int], parts: Sequence[str], *, drop_path: float, conv_init_std: float
) -> nn.ModuleList:
    """Return a branch of :class:`LocalBlock`."""
    rates = spread_drop_path(drop_path, depths)
    branch = nn.ModuleList(
        nn.Sequential(make_reduction(stage, width), *(LocalBlock(width, parts, rate) for rate in rates[stage]))
        for stage, width in enumerate(widths)
    )
    initialize_branch(branch, conv_init_std)
    return branch


def make_window_branch(
    widths: Sequence[int], depths: Sequence[int], *, drop_path: float, conv_init_std: float, **options: bool
) -> nn.ModuleList:
    """Return a branch of :class:`WindowBlock` with heads of 32 channels; the options are the block's."""
    rates = spread_drop_path(drop_path, depths)
    branch = nn.ModuleList()
    for stage, width in enumerate(widths):
        reduction = make_stem(width, SWIN_EPS) if stage == 0 else PatchMerge(width // 2)
        blocks = [
            WindowBlock(width, width // 32, choose_window_shift(index), drop_path=rate, **options)
            for index, rate in enumerate(rates[stage])
        ]
        branch.append(nn.Sequential(reduction, *blocks))
    initialize_branch(branch, conv_init_std)
    return branch


def make_retention_branch(
    widths: Sequence[int], depths: Sequence[int], *, share_norms: bool, conv_init_std: float
) -> nn.ModuleList:
    """Return a branch of :class:`RetentionStage`."""
    branch = nn.ModuleList(
        nn.Sequential(make_reduction(stage, width), RetentionStage(width, depth, share_norms=share_norms))
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True))
    )
    initialize_branch(branch, conv_init_std)
    return branch


def make_memory_branch(widths: Sequence[int]) -> nn.ModuleList:
    """Return a branch of :class:`ResidualMemory`, its convolutions without norm and as PyTorch initialises them."""
    return nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4) if stage == 0 else nn.Conv2d(width // 2, width, 2, stride=2),
            ResidualMemory(width),
        )
        for stage, width in enumerate(widths)
    )


def make_reduction(stage: int, width: int) -> nn.Module:
    """Return what starts a stage, counted from 0, of a branch of convolutions."""
    return make_stem(width) if stage == 0 else make_down(width // 2)


def check_widths(width: Any, multiple: int) -> list[int]:
    """Return C of each stage.

    Raises
    ------
    ConfigError
        Unless the width of the first stage is a multiple of this number.
    """
    if not isinstance(width, int) or isinstance(width, bool) or width < multiple or width % multiple:
        raise ConfigError(f"'width' is {width!r}. Allowed: a multiple of {multiple}; the published one is 96.")
    return [width * 2**stage for stage in range(NUM_STAGES)]


def check_depths(option: str, depths: Any) -> list[int]:
    """Return the number of blocks of each stage.

    Raises
    ------
    ConfigError
        Unless there are four whole numbers from 1.
    """
    is_list = isinstance(depths, Sequence) and not isinstance(depths, str) and len(depths) == NUM_STAGES
    if not is_list or not all(type(depth) is int and depth > 0 for depth in depths):
        raise ConfigError(f"'{option}' is {depths!r}. Allowed: four whole numbers from 1, for example [2, 2, 2, 2].")
    return list(depths)


def check_options(fusion_norm: Any, drop_path: Any, conv_init_std: Any, **switches: Any) -> None:
    """Raise ConfigError if one of these options holds a value that is not allowed; switches are true or false."""
    for option, value in switches.items():
        check_switch(option, value)
    check_choice("fusion_norm", fusion_norm, FUSION_NORMS)
    check_number("conv_init_std", conv_init_std)
    if drop_path != 0 or isinstance(drop_path, bool):
        check_number("drop_path", drop_path, most=0.9)


def check_branches(**switches: Any) -> None:
    """Raise ConfigError unless the switches of the branches are true or false and one of them is true."""
    for option, value in switches.items():
        check_switch(option, value)
    if not any(switches.values()):
        words = ", ".join(f"'{option}'" for option in switches)
        raise ConfigError(f"{words} are all off, so no branch is left. Switch one on.")

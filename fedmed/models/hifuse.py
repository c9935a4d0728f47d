"""HiFuse: convolutions and window attention in parallel, in three sizes.

Source: Huo et al., "HiFuse: Hierarchical Multi-Scale Feature Fusion Network for Medical Image Classification",
Biomedical Signal Processing and Control 87, 105534, 2024, arXiv 2209.10218, and its released code.
"""

from collections.abc import Sequence

from torch import nn

from fedmed.models.blocks.fusion import CONTEXT, GLOBAL, LOCAL, PREVIOUS, FusionDesign
from fedmed.models.blocks.multibranch import (
    CONV_STD,
    MultiBranchNet,
    check_branches,
    check_depths,
    check_options,
    check_widths,
    make_local_branch,
    make_window_branch,
)

LOCAL_PARTS = ("depthwise", "norm", "pointwise", "gelu")
VARIANTS = {"tiny": (2, 2, 2, 2), "small": (2, 2, 6, 2), "base": (2, 2, 18, 2)}


def hifuse(
    variant: str,
    num_classes: int,
    *,
    width: int = 96,
    local_depths: Sequence[int] | None = None,
    global_depths: Sequence[int] | None = None,
    local: bool = True,
    global_: bool = True,
    gates: bool = True,
    squeezed_mlp: bool = False,
    dense_mlp: bool = False,
    double_sigmoid: bool = False,
    disable_shift_when_covered: bool = False,
    fusion_norm: str = "batch",
    drop_path: float = 0.0,
    conv_init_std: float = CONV_STD,
) -> MultiBranchNet:
    """Build HiFuse: 54,673,217 / 58,250,993 / 68,984,321 parameters at 7 classes by default, all of them used.

    Parameters
    ----------
    variant : {"tiny", "small", "base"}
        Sets the depths, which differ in the third stage only.
    num_classes : int
        K.
    width : int
        Channels of the first stage, a multiple of 32; they double at each further stage.
    local_depths, global_depths : sequence of four int, optional
        Blocks of each stage of the two branches; default: those of the variant.
    local, global_ : bool
        Which branches there are: convolutions, window attention.
    gates : bool
        Whether a spatial gate recalibrates the local map and a channel gate the global one in the fusion blocks.
    squeezed_mlp : bool
        Whether the MLP of the fusion blocks is squeezed, as in HEMF.
    dense_mlp : bool
        Whether the 3x3 convolution of that MLP is dense, as the released code runs it (118,086,497 / 121,664,273 /
        132,397,601 parameters), instead of depthwise, as the paper's operation counts have it.
    double_sigmoid : bool
        Whether the channel gate applies its sigmoid twice, as the code behind the paper's results did.
    disable_shift_when_covered : bool
        Whether an axis that one window covers goes without shift, as in Swin Transformer but not here.
    fusion_norm, drop_path, conv_init_std
        As for :func:`fedmed.models.hemf.hemf`; here the global branch has stochastic depth too.

    Raises
    ------
    ConfigError
        If an option has a value that is not allowed.
    """
    widths = check_widths(width, 32)
    check_branches(**{"local": local, "global": global_})
    check_options(
        fusion_norm,
        drop_path,
        conv_init_std,
        gates=gates,
        squeezed_mlp=squeezed_mlp,
        dense_mlp=dense_mlp,
        double_sigmoid=double_sigmoid,
        disable_shift_when_covered=disable_shift_when_covered,
    )
    branches: dict[str, nn.ModuleList] = {}
    if local:
        depths = check_depths("local_depths", VARIANTS[variant] if local_depths is None else local_depths)
        branches[LOCAL] = make_local_branch(
            widths, depths, LOCAL_PARTS, drop_path=drop_path, conv_init_std=conv_init_std
        )
    if global_:
        depths = check_depths("global_depths", VARIANTS[variant] if global_depths is None else global_depths)
        branches[GLOBAL] = make_window_branch(
            widths,
            depths,
            drop_path=drop_path,
            conv_init_std=conv_init_std,
            disable_shift_when_covered=disable_shift_when_covered,
        )
    design = FusionDesign(
        context_order=(PREVIOUS, LOCAL, GLOBAL),
        merge_order=(GLOBAL, LOCAL, CONTEXT),
        spatial_on=(LOCAL,) if gates else (),
        spatial_order="max_mean",
        spatial_norm=True,
        channel_on=(GLOBAL,) if gates else (),
        double_sigmoid=double_sigmoid,
        squeeze=squeezed_mlp,
        dense_mlp=dense_mlp,
        norm=fusion_norm,
        drop_path=drop_path,
    )
    return MultiBranchNet(branches, design, widths, num_classes)

"""CAME: convolutions, window attention and external attention in parallel.

Source: Li et al., "CAME: Convolution and Attention Construct Multi-Scale Neural Network Efficiently for Medical Image
Classification", IEEE SMC 2023, pp. 2571-2576, as re-implemented by the authors of HEMF (PeerJ Computer Science
11:e3181, 2025): no code of CAME's own authors is known.
"""

from collections.abc import Sequence

from torch import nn

from fedmed.models.blocks.fusion import CONTEXT, GLOBAL, LOCAL, MEMORY, PREVIOUS, FusionDesign
from fedmed.models.blocks.multibranch import (
    CONV_STD,
    MultiBranchNet,
    check_branches,
    check_depths,
    check_options,
    check_widths,
    make_local_branch,
    make_memory_branch,
    make_window_branch,
)

LOCAL_PARTS = ("depthwise", "norm", "dense", "gelu", "pointwise")


def came(
    num_classes: int,
    *,
    width: int = 96,
    local_depths: Sequence[int] = (2, 2, 2, 2),
    global_depths: Sequence[int] = (2, 2, 2, 2),
    local: bool = True,
    global_: bool = True,
    memory_attention: bool = True,
    gates: bool = True,
    squeezed_mlp: bool = False,
    dense_mlp: bool = False,
    legacy_layout: bool = False,
    disable_shift_when_covered: bool = False,
    fusion_norm: str = "batch",
    drop_path: float = 0.0,
    conv_init_std: float = CONV_STD,
) -> MultiBranchNet:
    """Build CAME: 111,771,049 parameters at 7 classes by default, all of them used.

    Parameters
    ----------
    num_classes : int
        K.
    width : int
        Channels of the first stage, a multiple of 32; they double at each further stage.
    local_depths, global_depths : sequence of four int
        Blocks of each stage of the local and the global branch.
    local, global_, memory_attention : bool
        Which branches there are: convolutions, window attention, external attention.
    gates : bool
        Whether spatial and channel gates recalibrate the branches' maps in the fusion blocks.
    squeezed_mlp : bool
        Whether the MLP of the fusion blocks is squeezed, as in HEMF.
    dense_mlp : bool
        Whether the 3x3 convolution of that MLP is dense, as in the re-implementation that gave the published baseline
        (224,523,049 parameters), instead of depthwise.
    legacy_layout : bool
        Whether the convolutions of the global branch read their map in the wrong layout, as that re-implementation.
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
    check_branches(**{"local": local, "global": global_, "memory_attention": memory_attention})
    check_options(
        fusion_norm,
        drop_path,
        conv_init_std,
        gates=gates,
        squeezed_mlp=squeezed_mlp,
        dense_mlp=dense_mlp,
        legacy_layout=legacy_layout,
        disable_shift_when_covered=disable_shift_when_covered,
    )
    branches: dict[str, nn.ModuleList] = {}
    if local:
        branches[LOCAL] = make_local_branch(
            widths,
            check_depths("local_depths", local_depths),
            LOCAL_PARTS,
            drop_path=drop_path,
            conv_init_std=conv_init_std,
        )
    if global_:
        branches[GLOBAL] = make_window_branch(
            widths,
            check_depths("global_depths", global_depths),
            drop_path=drop_path,
            conv_init_std=conv_init_std,
            convolution=True,
            legacy_layout=legacy_layout,
            disable_shift_when_covered=disable_shift_when_covered,
        )
    if memory_attention:
        branches[MEMORY] = make_memory_branch(widths)
    gated = (LOCAL, GLOBAL, MEMORY) if gates else ()
    design = FusionDesign(
        context_order=(LOCAL, GLOBAL, MEMORY, PREVIOUS),
        merge_order=(LOCAL, GLOBAL, MEMORY, CONTEXT),
        spatial_on=gated,
        spatial_kernel=3,
        channel_on=gated,
        channel_ratio=8,
        squeeze=squeezed_mlp,
        dense_mlp=dense_mlp,
        norm=fusion_norm,
        drop_path=drop_path,
    )
    return MultiBranchNet(branches, design, widths, num_classes)

"""HEMF: convolutions and axial retention in parallel, fused with memory attention and gates.

Source: He et al., "HEMF: an adaptive hierarchical enhanced multi-attention feature fusion framework for cross-scale
medical image classification", PeerJ Computer Science 11:e3181, 2025, doi 10.7717/peerj-cs.3181, and its released code.
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
    make_retention_branch,
)

LOCAL_PARTS = ("dense", "norm", "depthwise", "pointwise", "gelu")


def hemf(
    num_classes: int,
    *,
    width: int = 96,
    local_depths: Sequence[int] = (4, 4, 4, 4),
    global_depths: Sequence[int] = (3, 3, 3, 3),
    local: bool = True,
    global_: bool = True,
    memory_attention: bool = True,
    gates: bool = True,
    squeezed_mlp: bool = True,
    dense_mlp: bool = True,
    share_norms: bool = True,
    fusion_norm: str = "batch",
    drop_path: float = 0.0,
    conv_init_std: float = CONV_STD,
) -> MultiBranchNet:
    """Build HEMF: 66,678,263 parameters at 7 classes as published, all of them used.

    Parameters
    ----------
    num_classes : int
        K.
    width : int
        Channels of the first stage, a multiple of 16; they double at each further stage.
    local_depths, global_depths : sequence of four int
        Blocks of each stage of the two branches.
    local, global_ : bool
        Which branches there are; ``global_`` is the option ``global``.
    memory_attention : bool
        Whether external attention gates the branches' maps in the fusion blocks.
    gates : bool
        Whether spatial and channel gates do.
    squeezed_mlp : bool
        Whether the MLP of the fusion blocks is squeezed. What the paper's ablation has instead is not stated; here it
        is the MLP of HiFuse.
    dense_mlp : bool
        Whether the 3x3 convolution of that MLP is dense, as in the released code and the published numbers, or
        depthwise (59,640,983 parameters), as in the paper's text.
    share_norms : bool
        Whether layers of a retention stage, and the two uses in a fusion block, share their norms, as published.
        Differential privacy per image wants them apart.
    fusion_norm : {"batch", "group", "layer"}
        Norm of the fusion blocks. With ``batch``, a single image of 32 x 32 pixels cannot train.
    drop_path : float
        Stochastic depth of the local branch, rising from 0 block by block, and of the fusion blocks.
    conv_init_std : float
        Standard deviation of new convolutions of the branches.

    Raises
    ------
    ConfigError
        If an option has a value that is not allowed.
    """
    widths = check_widths(width, 16)
    check_branches(**{"local": local, "global": global_})
    check_options(
        fusion_norm,
        drop_path,
        conv_init_std,
        memory_attention=memory_attention,
        gates=gates,
        squeezed_mlp=squeezed_mlp,
        dense_mlp=dense_mlp,
        share_norms=share_norms,
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
        branches[GLOBAL] = make_retention_branch(
            widths, check_depths("global_depths", global_depths), share_norms=share_norms, conv_init_std=conv_init_std
        )
    gated = (LOCAL, GLOBAL) if gates else ()
    design = FusionDesign(
        context_order=(PREVIOUS, LOCAL, GLOBAL),
        merge_order=(GLOBAL, LOCAL, CONTEXT),
        spatial_on=gated,
        channel_on=gated,
        memory_heads=8 if memory_attention else 0,
        share_norms=share_norms,
        squeeze=squeezed_mlp,
        dense_mlp=dense_mlp,
        norm=fusion_norm,
        drop_path=drop_path,
    )
    return MultiBranchNet(branches, design, widths, num_classes)

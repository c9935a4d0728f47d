"""How the branches of the multi-branch networks make their maps smaller: stems, convolutions and patch merging.

Sources: Liu et al., "A ConvNet for the 2020s", CVPR 2022 (stem and downsampling); Liu et al., "Swin Transformer", ICCV
2021 (patch merging). Shape letters: B batch, C channels, H W space.
"""

from torch import Tensor, nn

from fedmed.models.blocks.norms import ChannelNorm

SWIN_EPS = 1e-5


class PointwiseLinear(nn.Linear):
    """A linear layer over the channels of each position: a 1x1 convolution, kept and initialised as a matrix."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, out_features, H, W), stored with channels last."""
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B,C,H,W) -> (B,H,W,C) -> (B,C,H,W)


class PatchMerge(nn.Module):
    """Merge each 2x2 patch into one position with twice the channels.

    Parameters
    ----------
    in_channels : int
        C.

    Notes
    -----
    The four positions are concatenated in the order (row 0, column 0), (1, 0), (0, 1), (1, 1).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels, eps=SWIN_EPS)
        self.linear = nn.Linear(4 * in_channels, 2 * in_channels, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,2C,H/2,W/2) of a map with even sides."""
        _, channels, height, width = x_BCHW.shape
        patches = x_BCHW.permute(0, 2, 3, 1).reshape(-1, height // 2, 2, width // 2, 2, channels)
        # (B,H/2,row,W/2,column,C) -> (B,H/2,W/2,column,row,C) -> (B,H/2,W/2,4C)
        patches = patches.permute(0, 1, 3, 4, 2, 5).reshape(-1, height // 2, width // 2, 4 * channels)
        merged: Tensor = self.linear(self.norm(patches))  # -> (B,H/2,W/2,2C)
        return merged.permute(0, 3, 1, 2)


def make_stem(channels: int, eps: float = 1e-6) -> nn.Module:
    """Return what maps images, (B,3,H,W), to (B,C,H/4,W/4): a 4x4 convolution of stride 4, then channel norm."""
    return nn.Sequential(nn.Conv2d(3, channels, 4, stride=4), ChannelNorm(channels, eps))


def make_down(in_channels: int) -> nn.Module:
    """Return what maps (B,C,H,W) to (B,2C,H/2,W/2): channel norm, then a 2x2 convolution of stride 2."""
    return nn.Sequential(ChannelNorm(in_channels), nn.Conv2d(in_channels, 2 * in_channels, 2, stride=2))

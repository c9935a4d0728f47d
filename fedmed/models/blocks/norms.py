"""Normalisation of the multi-branch networks, and a convolution that a BatchNorm follows.

Shape letters: B batch, C channels, H W space.
"""

import math

from torch import Tensor, nn

FUSION_NORMS = ("batch", "group", "layer")


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position of a map.

    Parameters
    ----------
    channels : int
        C.
    eps : float
        Added to the biased variance.

    Notes
    -----
    The map is viewed with its channels last, so that PyTorch's fused kernel applies. Of a map that is stored so, which
    is how the multi-branch networks keep theirs, nothing is copied.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalised map, (B,C,H,W), stored with channels last."""
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B,C,H,W) -> (B,H,W,C) -> (B,C,H,W)


def make_fusion_norm(kind: str, channels: int) -> nn.Module:
    """Return the norm of a fusion block.

    Parameters
    ----------
    kind : {"batch", "group", "layer"}
        ``batch`` is the published form. ``group`` and ``layer`` depend on no other image, as differential privacy per
        image needs, and train with a batch of one at any size.
    channels : int
        C. With ``group`` and ``layer`` one channel alone goes without norm, since over itself it would always be 0.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if channels == 1:
        return nn.Identity()
    return nn.GroupNorm(math.gcd(32, channels), channels) if kind == "group" else ChannelNorm(channels)


class ConvNorm(nn.Module):
    """A convolution and the norm behind it, with nothing between: BatchNorm folds into it for deployment.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    kernel : int
        Side of the convolution, odd; the map keeps its size.
    bias : bool
        Whether the convolution has a bias. A BatchNorm makes it redundant, yet the published networks have it.
    norm : {"batch", "group", "layer"}
        See :func:`make_fusion_norm`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, *, bias: bool = True, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.norm = make_fusion_norm(norm, out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        y_BCHW: Tensor = self.norm(self.conv(x_BCHW))
        return y_BCHW

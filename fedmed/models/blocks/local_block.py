"""The local block of HiFuse, CAME and HEMF: convolutions with one residual connection.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from fedmed.models.blocks.norms import ChannelNorm
from fedmed.models.blocks.stems import PointwiseLinear

PARTS: dict[str, Callable[[int], nn.Module]] = {
    "depthwise": lambda channels: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
    "dense": lambda channels: nn.Conv2d(channels, channels, 3, padding=1),
    "norm": ChannelNorm,
    "pointwise": lambda channels: PointwiseLinear(channels, channels),
    "gelu": lambda _: nn.GELU(),
}


class LocalBlock(nn.Module):
    """``y = x + parts(x)``; keeps the shape.

    Parameters
    ----------
    channels : int
        C.
    parts : sequence of {"depthwise", "dense", "norm", "pointwise", "gelu"}
        What the residual branch does, in order; the convolutions are 3x3.
    drop_path : float
        Probability that an image skips the residual branch in training.

    Notes
    -----
    ======  ==========================================
    HiFuse  depthwise, norm, pointwise, gelu
    CAME    depthwise, norm, dense, gelu, pointwise
    HEMF    dense, norm, depthwise, pointwise, gelu
    ======  ==========================================
    """

    def __init__(self, channels: int, parts: Sequence[str], drop_path: float = 0.0) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({part: PARTS[part](channels) for part in parts})
        self.drop_path = make_drop_path(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        y_BCHW = x_BCHW
        for part in self.parts.values():
            y_BCHW = part(y_BCHW)
        return x_BCHW + self.drop_path(y_BCHW)  # type: ignore[no-any-return]  # a module's output is Any


def make_drop_path(probability: float) -> nn.Module:
    """Return what zeroes whole images with the probability and divides the others by its complement, in training."""
    return StochasticDepth(probability, mode="row") if probability > 0 else nn.Identity()


def spread_drop_path(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the probability of each block of each stage: a line from 0 at the first block to ``rate`` at the last."""
    steps = max(sum(depths) - 1, 1)
    line = iter([rate * index / steps for index in range(sum(depths))])
    return [[next(line) for _ in range(depth)] for depth in depths]

"""Change of size as two matrix products: the same bits on every device in both directions, which interpolation is not.

Letters: B batch, C channels, H W space.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from fedmed.models.blocks.layers import widen_half


def resample(x_BCHW: Tensor, height: int, width: int, *, antialias: bool = False) -> Tensor:
    """Return maps of another size, by bicubic interpolation in full precision.

    Parameters
    ----------
    x_BCHW : Tensor
        (B,C,H,W); half precision becomes float32, whatever autocast says.
    height, width : int
        Size of the result.
    antialias : bool
        Whether the kernel widens where the result is smaller.

    Returns
    -------
    Tensor
        (B,C,height,width); the argument itself if it has this size.
    """
    if x_BCHW.shape[-2:] == (height, width):
        return x_BCHW
    with torch.autocast(x_BCHW.device.type, enabled=False):
        x_BCHW = widen_half(x_BCHW)
        rows = _interpolation_matrix(x_BCHW.shape[-2], height, antialias).to(x_BCHW)
        columns = _interpolation_matrix(x_BCHW.shape[-1], width, antialias).to(x_BCHW)
        return rows @ x_BCHW @ columns.T  # (height,H) (B,C,H,W) (W,width)


@lru_cache(maxsize=64)
def _interpolation_matrix(size_in: int, size_out: int, antialias: bool) -> Tensor:
    """Return (size_out, size_in): what bicubic interpolation makes of each unit vector."""
    unit = torch.eye(size_in, dtype=torch.float64)[None, None]
    shape = (size_out, size_in)
    stretched = functional.interpolate(unit, shape, mode="bicubic", align_corners=False, antialias=antialias)
    return stretched[0, 0]

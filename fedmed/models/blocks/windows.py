"""Window attention with one residual connection a block: the global branch of HiFuse and CAME.

Sources: Liu et al., "Swin Transformer", ICCV 2021 (windows, shift and relative bias); Huo et al., "HiFuse", Biomedical
Signal Processing and Control 87, 2024, and its released code (the block). Shape letters: B batch, C channels, H W
space, N windows, T = 49 positions of a window.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.blocks.attention import attend
from fedmed.models.blocks.local_block import make_drop_path
from fedmed.models.blocks.norms import ChannelNorm
from fedmed.models.blocks.stems import SWIN_EPS

WINDOW = 7
SHIFT = 3
MASKED = -100.0
"""Added to the logits of pairs that the shift has brought together; half precision can hold it."""


def make_relative_index() -> Tensor:
    """Return the row of the bias table for each (query, key) of a window, (T,T): 13 (dr + 6) + (dc + 6)."""
    place = torch.arange(WINDOW)
    difference = place[:, None] - place[None, :] + WINDOW - 1  # query minus key, from 0 to 12
    rows = difference[:, None, :, None] * (2 * WINDOW - 1)
    return (rows + difference[None, :, None, :]).reshape(WINDOW**2, WINDOW**2)  # (7,7,7,7) -> (T,T)


def compute_mask(height: int, width: int, shift: tuple[int, int], like: Tensor) -> Tensor:
    """Return what is added to the logits of a rolled map, (N,T,T): 0 within a region and -100 between regions.

    Parameters
    ----------
    height, width : int
        Sides of the padded map, multiples of 7.
    shift : tuple of int
        By how much the map was rolled up and left.
    like : Tensor
        Gives device and dtype.
    """
    bands = []
    for side, step in ((height, shift[0]), (width, shift[1])):
        place = torch.arange(side, device=like.device)
        bands.append((place >= side - WINDOW).long() + (place >= side - step).long())
    regions = 3 * bands[0][:, None] + bands[1][None, :]  # (H,W), 9 regions at most
    regions = regions.reshape(height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    regions = regions.permute(0, 2, 1, 3).reshape(-1, WINDOW**2)  # -> (N,T)
    return (regions[:, :, None] != regions[:, None, :]).to(like.dtype) * MASKED


class WindowAttention(nn.Module):
    """Multi-head self-attention within 7x7 windows, with a learned bias for every relative position.

    Parameters
    ----------
    channels : int
        C, a multiple of ``heads``.
    heads : int
        Number of heads.
    shift : int
        By how much windows are shifted, 0 or 3. Where that joins far sides of the map, pairs are masked.
    disable_shift_when_covered : bool
        Whether an axis of at most 7 positions, which one window covers, goes without shift. The published networks
        shift it all the same, which masks 74 % of the pairs of a 7x7 map.

    Notes
    -----
    ``softmax(q k^T / sqrt(C / heads) + bias + mask) v``. Maps that are no multiple of 7 are padded with zeros at the
    right and at the bottom; padded positions take part. Windows count as heads of one large attention, so that nothing
    depends on the batch size.
    """

    relative_index: Tensor

    def __init__(self, channels: int, heads: int, shift: int = 0, *, disable_shift_when_covered: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.shift = shift
        self.disable_shift_when_covered = disable_shift_when_covered
        self.bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        # Not persistent: it is a constant, which a federation must neither send nor average.
        self.register_buffer("relative_index", make_relative_index(), persistent=False)

    def choose_shift(self, height: int, width: int) -> tuple[int, int]:
        """Return by how much a map is rolled up and left."""
        covered = [self.disable_shift_when_covered and side <= WINDOW for side in (height, width)]
        return (0 if covered[0] else self.shift, 0 if covered[1] else self.shift)

    def compute_bias(self, height: int, width: int, shift: tuple[int, int]) -> Tensor:
        """Return bias and mask of all windows of a padded map, (N heads, T, T)."""
        bias = self.bias_table[self.relative_index.flatten()]  # (169,heads) -> (T T,heads)
        bias = bias.reshape(1, WINDOW**2, WINDOW**2, self.heads).permute(0, 3, 1, 2)  # -> (1,heads,T,T)
        if any(shift):
            bias = bias + compute_mask(height, width, shift, bias)[:, None]  # -> (N,heads,T,T)
        else:
            bias = bias.expand((height // WINDOW) * (width // WINDOW), -1, -1, -1)
        return bias.flatten(0, 1)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B,H,W,C)."""
        _, height, width, channels = x_BHWC.shape
        shift = self.choose_shift(height, width)
        x_BHWC = functional.pad(x_BHWC, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        if any(shift):
            x_BHWC = torch.roll(x_BHWC, (-shift[0], -shift[1]), dims=(1, 2))
        padded_height, padded_width = x_BHWC.shape[1:3]
        rows, columns = padded_height // WINDOW, padded_width // WINDOW
        qkv = self.qkv(x_BHWC).reshape(-1, rows, WINDOW, columns, WINDOW, 3, self.heads, channels // self.heads)
        # (B,rows,7,columns,7,3,heads,d) -> (3,B,rows,columns,heads,7,7,d) -> 3 x (B,N heads,T,d)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 4)
        bias = self.compute_bias(padded_height, padded_width, shift).to(qkv.dtype)
        y = attend(qkv[0], qkv[1], qkv[2], bias[None])
        y = y.reshape(-1, rows, columns, self.heads, WINDOW, WINDOW, channels // self.heads)
        # (B,rows,columns,heads,7,7,d) -> (B,rows,7,columns,7,heads,d) -> (B,H,W,C)
        y_BHWC = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, padded_height, padded_width, channels)
        if any(shift):
            y_BHWC = torch.roll(y_BHWC, shift, dims=(1, 2))
        return self.project(y_BHWC[:, :height, :width])  # type: ignore[no-any-return]


class WindowBlock(nn.Module):
    """``y = x + gelu(linear(attention(prepare(x))))``; keeps the shape.

    Parameters
    ----------
    channels, heads, shift, disable_shift_when_covered
        See :class:`WindowAttention`.
    convolution : bool
        What prepares the map: a dense 3x3 convolution and channel norm (CAME), or the norm alone (HiFuse).
    legacy_layout : bool
        Whether the convolution reads the map as the public re-implementation of CAME does: the (H,W,C) numbers of an
        image taken as (C,H,W) without transposing, so that it mixes unrelated values.
    drop_path : float
        Probability that an image skips the residual branch in training.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        shift: int,
        *,
        convolution: bool = False,
        legacy_layout: bool = False,
        disable_shift_when_covered: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolution else nn.Identity()
        self.norm = ChannelNorm(channels) if convolution else ChannelNorm(channels, SWIN_EPS)
        self.attention = WindowAttention(channels, heads, shift, disable_shift_when_covered=disable_shift_when_covered)
        self.linear = nn.Linear(channels, channels)
        self.drop_path = make_drop_path(drop_path)
        self.legacy_layout = legacy_layout

    def prepare(self, x_BCHW: Tensor) -> Tensor:
        """Return the input of the attention, (B,H,W,C)."""
        if not self.legacy_layout:
            return self.norm(self.conv(x_BCHW)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
        misread = x_BCHW.permute(0, 2, 3, 1).reshape(x_BCHW.shape)  # (B,H,W,C) -> (B,C,H,W) without transposing
        y_BCHW = self.norm(self.conv(misread))
        return y_BCHW.reshape(-1, *x_BCHW.shape[2:], x_BCHW.shape[1])  # type: ignore[no-any-return]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        y_BHWC = functional.gelu(self.linear(self.attention(self.prepare(x_BCHW))))
        return x_BCHW + self.drop_path(y_BHWC).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def choose_window_shift(index: int) -> int:
    """Return the shift of the block at this place of its stage: blocks at even places, from 0, have none."""
    return SHIFT if index % 2 else 0

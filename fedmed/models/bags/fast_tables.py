"""Constant tables of the fast bag: which pixels of an axis count towards which taps.

Letters, along one axis: L pixels, stride s, outputs p = 0..ceil(L/s)-1, taps i = -e..e (k = 2e + 1 of them); tap i of
output p lies on pixel q = s p + i. A tap pair (i, j) has the flat index (i + e) k + j + e. All tables are 0/1 counts or
signs, made in float64, and cached by size, dtype and device.
"""

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
Kind = tuple[torch.dtype, torch.device]
DOUBLE: Kind = (torch.float64, torch.device("cpu"))
BLOCK = 16
"""Columns of a block of the row products."""
ONE_BLOCK = 20
"""A row up to this long is a single block."""


def count_outputs(length: int, stride: int) -> int:
    """Return ceil(L / s)."""
    return -(-length // stride)


def _count_pairs(pixels: int, origin: int, stride: int, reach: int, outputs: Iterable[int]) -> Tensor:
    """Return how often the pixel pair (q, r) is the tap pair (i, j) of one of the outputs, (pixels, pixels, k, k)."""
    taps = range(-reach, reach + 1)
    counts = torch.zeros(pixels, pixels, len(taps), len(taps), dtype=torch.float64)
    for p in outputs:
        inside = [i for i in taps if 0 <= stride * p + i - origin < pixels]
        for i in inside:
            for j in inside:
                counts[stride * p + i - origin, stride * p + j - origin, i + reach, j + reach] += 1
    return counts


@functools.lru_cache(maxsize=256)
def pair_table(length: int, stride: int, reach: int, kind: Kind) -> Tensor:
    """Return the tap pairs of every pixel pair of a whole axis, (L L, k k)."""
    counts = _count_pairs(length, 0, stride, reach, range(count_outputs(length, stride)))
    return counts.flatten(2).flatten(0, 1).to(dtype=kind[0], device=kind[1])


@functools.lru_cache(maxsize=256)
def end_table(length: int, stride: int, reach: int, last: bool, kind: Kind) -> tuple[int, Tensor]:
    """Return what outputs outside the map would add at one end of an axis.

    Returns
    -------
    pixels, table : int, Tensor
        Only the ``pixels`` = min(e, L) pixels at that end can meet such an output; the table is (pixels pixels, k k).
    """
    pixels, outputs = min(reach, length), count_outputs(length, stride)
    outside = range(outputs, outputs + 2 * reach) if last else range(-2 * reach, 0)
    counts = _count_pairs(pixels, length - pixels if last else 0, stride, reach, outside)
    return pixels, counts.flatten(2).flatten(0, 1).to(dtype=kind[0], device=kind[1])


@functools.lru_cache(maxsize=256)
def first_table(length: int, stride: int, reach: int, kind: Kind) -> Tensor:
    """Return the taps of every pixel, (L, k): 1 where pixel q is tap i of some output."""
    table = torch.zeros(length, 2 * reach + 1, dtype=torch.float64)
    for i in range(-reach, reach + 1):
        for q in range(length):
            at, off = divmod(q - i, stride)
            table[q, i + reach] = float(off == 0 and 0 <= at < count_outputs(length, stride))
    return table.to(dtype=kind[0], device=kind[1])


@functools.lru_cache(maxsize=256)
def cross_table(length: int, stride: int, reach: int, kind: Kind) -> Tensor:
    """Return the tap by which every output sees every pixel, (outputs L, k)."""
    outputs = count_outputs(length, stride)
    table = torch.zeros(outputs, length, 2 * reach + 1, dtype=torch.float64)
    for p in range(outputs):
        for i in range(-reach, reach + 1):
            if 0 <= stride * p + i < length:
                table[p, stride * p + i, i + reach] = 1
    return table.flatten(0, 1).to(dtype=kind[0], device=kind[1])


@functools.lru_cache(maxsize=256)
def lag_table(stride: int, reach: int, parity: int, kind: Kind) -> Tensor:
    """Return the lag j - i of every tap pair whose i is of a parity class mod s, (k k, 4e + 1)."""
    side = 2 * reach + 1
    table = torch.zeros(side, side, 4 * reach + 1, dtype=torch.float64)
    for i in range(-reach, reach + 1):
        if (i - parity) % stride == 0:
            for j in range(-reach, reach + 1):
                table[i + reach, j + reach, j - i + 2 * reach] = 1
    return table.flatten(0, 1).to(dtype=kind[0], device=kind[1])


@functools.lru_cache(maxsize=256)
def row_classes(
    height: int, stride: int, reach: int, kind: Kind
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], Tensor]:
    """Return the sums over row pairs of which the rows of half of S are made.

    Returns
    -------
    lags : list of (int, int)
        (distance, parity of the upper row): all row pairs so far apart, as if outputs went on beyond the map.
    ends : list of (int, int)
        Single row pairs near either end of the map, which those outputs see.
    table : Tensor, (k k, lags + ends)
        Signed counts. Pairs of a row with itself count half: S = half + its transpose.
    """
    side = 2 * reach + 1
    lags = [(distance, parity) for distance in range(min(side, height)) for parity in range(stride)]
    columns = []
    for distance, parity in lags:
        column = torch.zeros(side, side, dtype=torch.float64)
        for i in range(-reach, reach + 1 - distance):
            if (i - parity) % stride == 0:
                column[i + reach, i + distance + reach] = 0.5 if distance == 0 else 1.0
        columns.append(column.flatten())
    ends: dict[tuple[int, int], Tensor] = {}
    for last in (False, True):
        pixels, table = end_table(height, stride, reach, last, DOUBLE)
        origin = height - pixels if last else 0
        for q in range(pixels):
            for r in range(q, pixels):
                counts = table[q * pixels + r] * (0.5 if q == r else 1.0)
                if counts.any():
                    pair = (origin + q, origin + r)
                    ends[pair] = ends.get(pair, torch.zeros_like(counts)) - counts
    return lags, list(ends), torch.stack([*columns, *ends.values()], 1).to(dtype=kind[0], device=kind[1])


Block = tuple[slice, slice]
Groups = list[tuple[list[Block], Tensor]]


@functools.lru_cache(maxsize=256)
def column_blocks(width: int, stride: int, reach: int, cross: bool, kind: Kind) -> Groups:
    """Return how to split products of two rows into blocks of columns.

    Parameters
    ----------
    width, stride, reach : int
        L, s, e of the columns.
    cross : bool
        Whether the second row is one of outputs (for the weight gradient) or of pixels too (for S).
    kind : (dtype, device)
        Of the tables.

    Returns
    -------
    list of (blocks, table)
        A block is (columns of the first row, columns of the second); blocks inside the map share one table,
        (columns x columns, k) if ``cross``, else (columns x columns, k k).
    """
    make = cross_table if cross else pair_table
    whole = make(width, stride, reach, DOUBLE)
    bases = count_outputs(width, stride) if cross else width
    whole = whole.view(bases, width, -1)
    size = bases if width <= ONE_BLOCK else BLOCK
    scale, before = (stride, reach) if cross else (1, 2 * reach)
    groups: Groups = []
    inner: list[Block] = []
    for start in range(0, bases, size):
        stop = min(start + size, bases)
        low, high = scale * start - before, scale * (stop - 1) + before + 1
        block = (slice(max(low, 0), min(high, width)), slice(start, stop))
        is_inner = low >= 0 and high <= width and stop - start == size
        if is_inner and inner:
            inner.append(block)
            continue
        table = whole[block[1], block[0]].transpose(0, 1).flatten(0, 1).contiguous().to(dtype=kind[0], device=kind[1])
        groups.append(([block], table))
        if is_inner:
            inner = groups[-1][0]
    return groups


@functools.lru_cache(maxsize=256)
def branch_tables(shapes: Shapes, reach_y: int, reach_x: int, kind: Kind) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the places of all branches' weights, packed one branch after the other, P of them.

    Returns
    -------
    owner : Tensor, (branches, P)
        1 where the weight belongs to the branch.
    place : Tensor, (P, k_y k_x)
        1 where the weight lies on the tap; a weight that no pixel ever meets lies on none.
    inside, flat : Tensor of int64
        Weights that lie on a tap, and their places in a flat (branches, k_y k_x).
    """
    owners, taps = [], []
    for branch, (height, width) in enumerate(shapes):
        for y in range(-(height // 2), height // 2 + 1):
            for x in range(-(width // 2), width // 2 + 1):
                owners.append(branch)
                met = abs(y) <= reach_y and abs(x) <= reach_x
                taps.append((y + reach_y) * (2 * reach_x + 1) + x + reach_x if met else -1)
    num_taps = (2 * reach_y + 1) * (2 * reach_x + 1)
    owner, tap = torch.tensor(owners), torch.tensor(taps)
    inside = (tap >= 0).nonzero().flatten()
    place = torch.zeros(len(taps), num_taps, dtype=torch.float64)
    place[inside, tap[inside]] = 1
    owned = torch.nn.functional.one_hot(owner, len(shapes)).T.double().contiguous()
    flat = owner[inside] * num_taps + tap[inside]
    return (
        owned.to(dtype=kind[0], device=kind[1]),
        place.to(dtype=kind[0], device=kind[1]),
        inside.to(kind[1]),
        flat.to(kind[1]),
    )


def kind_of(x: Tensor) -> Kind:
    """Return dtype and device, as the tables are cached by."""
    return x.dtype, x.device


def get_shapes(kernels: Sequence[Tensor]) -> Shapes:
    """Return height and width of every kernel, (C, 1, height, width)."""
    return tuple((kernel.shape[2], kernel.shape[3]) for kernel in kernels)

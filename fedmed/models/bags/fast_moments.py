"""Second moments of a map, their adjoint and the weight gradient, in torch operators alone.

Every function takes NCHW maps and works channel by channel. S is held as tap pairs per axis, (C, k_y k_y, k_x k_x):
entry [(i_y, j_y), (i_x, j_x)] is S[i, j] = sum over images and outputs p of x(s p + i) x(s p + j), pixels outside the
map being zero. Small maps take the products of all their pixels; larger ones the products of rows that lie close enough
together. See :mod:`fedmed.models.bags.fast_tables` for the letters.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fedmed.models.bags.fast_tables import (
    Groups,
    column_blocks,
    count_outputs,
    cross_table,
    end_table,
    kind_of,
    lag_table,
    pair_table,
    row_classes,
)

GRAM_PIXELS = 100
GRAM_SIDE = 8
CHUNK_BYTES = 8 << 20
"""A CPU takes channels in chunks of this size, which stay in its cache."""
Step = tuple[int, int]
LINE = 16
"""Channels of a cache line of float32: chunks of a channels-last map are whole lines."""
WIDE_KERNEL = 12
"""oneDNN's depthwise convolution is several times slower beyond this width."""


def is_small(height: int, width: int) -> bool:
    """Return whether the products of all pixels are the shorter way."""
    return height * width <= GRAM_PIXELS or min(height, width) < GRAM_SIDE


def split_channels(x: Tensor, extra_bytes: int = 0) -> list[slice]:
    """Return chunks of channels; on a GPU one chunk."""
    channels = x.shape[1]
    if x.device.type != "cpu":
        return [slice(0, channels)]
    each = max(x[:, 0].numel() * x.element_size(), extra_bytes)
    number = max(1, -(-channels * each // CHUNK_BYTES))
    step = -(-channels // number // LINE) * LINE
    return [slice(start, min(start + step, channels)) for start in range(0, channels, step)]


def second_moments(x: Tensor, stride: int, reach: tuple[int, int]) -> Tensor:
    """Return S of a map, (C, k_y k_x, k_y k_x), taps in row order."""
    height, width = x.shape[2:]
    sides = (2 * reach[0] + 1, 2 * reach[1] + 1)
    if is_small(height, width):
        pixels = x.permute(1, 0, 2, 3).flatten(2)  # (C, B, HW)
        products = torch.bmm(pixels.transpose(1, 2), pixels)  # -> (C, HW, HW)
        return _to_taps(_contract(products, (height, width), stride, reach), *sides)
    half = _to_taps(_row_moments(x, stride, reach), *sides)
    return half + half.transpose(1, 2)


def weight_gradient(x: Tensor, g: Tensor, stride: int, reach: tuple[int, int]) -> Tensor:
    """Return sum over images and outputs of x(s p + i) g(p), (C, k_y k_x)."""
    channels, height, width = x.shape[1:]
    if is_small(height, width):
        products = torch.bmm(g.permute(1, 2, 3, 0).flatten(1, 2), x.permute(1, 0, 2, 3).flatten(2))
        outputs = (count_outputs(height, stride), count_outputs(width, stride))
        products = products.view(channels, *outputs, height, width).transpose(2, 3)
        products = products.reshape(channels, outputs[0] * height, outputs[1] * width)
        by_column = products @ cross_table(width, stride, reach[1], kind_of(x))
        return (cross_table(height, stride, reach[0], kind_of(x)).T @ by_column).flatten(1)
    return _row_weight_gradient(x, g, stride, reach)


def add_moment_gradient(dx: Tensor, x: Tensor, slope: Tensor, stride: int, reach: tuple[int, int]) -> None:
    """Add to ``dx`` the gradient of the second moments.

    Parameters
    ----------
    dx, x : Tensor
        (B, C, H, W).
    slope : Tensor
        dL/dS, symmetric, (C, k_y k_x, k_y k_x), taps in row order.
    stride : int
        s.
    reach : (int, int)
        e of rows and columns.
    """
    height, width = x.shape[2:]
    pairs = _to_pairs(2 * slope, 2 * reach[0] + 1, 2 * reach[1] + 1)
    if is_small(height, width):
        matrix = _spread(pairs, pair_table(height, stride, reach[0], kind_of(x)),
                         pair_table(width, stride, reach[1], kind_of(x)), (height, width))  # fmt: skip
        _add_product(dx, x, matrix)
        return
    # Outputs on all whole numbers, less those beyond the rows' and beyond the columns' ends, plus those beyond both.
    ends_y, ends_x = (
        [end_table(side, stride, e, last, kind_of(x)) for last in (False, True)]
        for side, e in zip((height, width), reach, strict=True)
    )
    by_lag = [pairs @ _lag(stride, reach[1], parity, x) for parity in range(stride)]  # (C, k_y k_y, lags)
    by_end = [pairs @ table.T for _, table in ends_x]  # (C, k_y k_y, pixel pairs at that end)
    lags_y = [_lag(stride, reach[0], parity, x).T for parity in range(stride)]
    for row in range(stride):
        for column in range(stride):
            padding = (2 * reach[0] + row, 2 * reach[1] + column)
            target = dx[:, :, row::stride, column::stride]
            _add_correlation(target, x, lags_y[row] @ by_lag[column], padding, ((stride, row), (stride, column)))
    turned_dx, turned_x = dx.transpose(2, 3), x.transpose(2, 3)
    for last, (rows, table) in enumerate(ends_y):
        _subtract_end(dx, x, rows, bool(last), [table @ products for products in by_lag])
    for last, (columns, _) in enumerate(ends_x):
        kernels = [(lags @ by_end[last]).transpose(1, 2) for lags in lags_y]
        _subtract_end(turned_dx, turned_x, columns, bool(last), kernels)
    for bottom, (rows, table) in enumerate(ends_y):
        for right, (columns, _) in enumerate(ends_x):
            corner = (_end(height, rows, bool(bottom)), _end(width, columns, bool(right)))
            matrix = _to_taps(table @ by_end[right], rows, columns)
            _add_product(dx[:, :, *corner], x[:, :, *corner], matrix)


def _end(length: int, pixels: int, last: bool) -> slice:
    return slice(length - pixels, length) if last else slice(0, pixels)


def _contract(products: Tensor, sides: tuple[int, int], stride: int, reach: tuple[int, int]) -> Tensor:
    """Return tap pairs from products of all pixels, (C, HW, HW) -> (C, k_y k_y, k_x k_x)."""
    height, width = sides
    products = products.view(-1, height, width, height, width).transpose(2, 3)
    products = products.reshape(-1, height * height, width * width)
    by_column = products @ pair_table(width, stride, reach[1], kind_of(products))
    return pair_table(height, stride, reach[0], kind_of(products)).T @ by_column


def _spread(pairs: Tensor, table_y: Tensor, table_x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return the transpose of :func:`_contract`: tap pairs to pixel pairs, (C, HW, HW)."""
    height, width = sides
    matrix = (table_y @ pairs) @ table_x.T
    matrix = matrix.view(-1, height, height, width, width).transpose(2, 3)
    return matrix.reshape(-1, height * width, height * width)


def _add_product(dx: Tensor, x: Tensor, matrix: Tensor) -> None:
    """Add to a map, or a corner of it, a matrix times it, channel by channel."""
    channels, height, width = x.shape[1:]
    pixels = x.permute(1, 0, 2, 3).reshape(channels, -1, height * width)
    product = torch.bmm(pixels, matrix.transpose(1, 2)).view(channels, -1, height, width)
    dx += product.transpose(0, 1)


def _to_taps(pairs: Tensor, rows: int, columns: int) -> Tensor:
    """Return (C, k_y k_y, k_x k_x) as (C, k_y k_x, k_y k_x)."""
    return pairs.view(-1, rows, rows, columns, columns).transpose(2, 3).reshape(-1, rows * columns, rows * columns)


def _to_pairs(taps: Tensor, rows: int, columns: int) -> Tensor:
    """Return (C, k_y k_x, k_y k_x) as (C, k_y k_y, k_x k_x)."""
    return taps.view(-1, rows, columns, rows, columns).transpose(2, 3).reshape(-1, rows * rows, columns * columns)


def _lag(stride: int, reach: int, parity: int, like: Tensor) -> Tensor:
    return lag_table(stride, reach, parity, kind_of(like))


def _to_rows(x: Tensor, stride: int) -> tuple[Tensor, list[int]]:
    """Return the rows, (C, H, B, W), those of equal parity mod s together, and where each parity starts."""
    rows = x.permute(1, 2, 0, 3)
    if stride == 1:
        return rows.contiguous(), [0]
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], 1), [0, (x.shape[2] + 1) // 2]


def _multiply_blocks(first: Tensor, second: Tensor, groups: Groups) -> Tensor:
    """Return the sums over rows of all products that ``groups`` asks for, (N, rows, W) twice -> (N, taps)."""
    sums = None
    for blocks, table in groups:
        total: Tensor | None = None
        for one, other in blocks:
            left, right = first[:, :, one].transpose(1, 2), second[:, :, other]
            total = torch.bmm(left, right) if total is None else total.baddbmm_(left, right)
        assert total is not None
        part = total.flatten(1) @ table
        sums = part if sums is None else sums.add_(part)
    assert sums is not None
    return sums


def _row_moments(x: Tensor, stride: int, reach: tuple[int, int]) -> Tensor:
    """Return half of S by products of rows, (C, k_y k_y, k_x k_x)."""
    channels, height, width = x.shape[1:]
    rows, starts = _to_rows(x, stride)
    lags, ends, table = row_classes(height, stride, reach[0], kind_of(x))
    groups = column_blocks(width, stride, reach[1], False, kind_of(x))
    sums = x.new_zeros(channels, len(lags) + len(ends), (2 * reach[1] + 1) ** 2)
    for number, (distance, parity) in enumerate(lags):
        count = (height - 1 - distance - parity) // stride + 1
        if count > 0:
            lower = starts[(parity + distance) % stride] + (parity + distance) // stride
            base = rows[:, starts[parity] : starts[parity] + count].flatten(1, 2)
            partner = rows[:, lower : lower + count].flatten(1, 2)
            sums[:, number] = _multiply_blocks(partner, base, groups)
    if ends:
        place = [starts[q % stride] + q // stride for q in range(height)]
        partner, base = (rows[:, [place[pair[n]] for pair in ends]].flatten(0, 1) for n in (1, 0))
        sums[:, len(lags) :] = _multiply_blocks(partner, base, groups).view(channels, len(ends), -1)
    return table @ sums


def _row_weight_gradient(x: Tensor, g: Tensor, stride: int, reach: tuple[int, int]) -> Tensor:
    """Return the weight gradient by products of rows, (C, k_y k_x)."""
    channels, height, width = x.shape[1:]
    rows, starts = _to_rows(x, stride)
    outputs = g.permute(1, 2, 0, 3).contiguous()  # (C, Ho, B, Wo)
    groups = column_blocks(width, stride, reach[1], True, kind_of(x))
    gradient = x.new_zeros(channels, 2 * reach[0] + 1, 2 * reach[1] + 1)
    for i in range(-reach[0], reach[0] + 1):
        first = max(0, -(i // stride))  # the first output whose tap i is a row of the map
        last = min(outputs.shape[1] - 1, (height - 1 - i) // stride)
        if first <= last:
            row = stride * first + i
            start = starts[row % stride] + row // stride
            seen = rows[:, start : start + last - first + 1].flatten(1, 2)
            gradient[:, i + reach[0]] = _multiply_blocks(seen, outputs[:, first : last + 1].flatten(1, 2), groups)
    return gradient.flatten(1)


def _add_correlation(
    target: Tensor, x: Tensor, kernel: Tensor, padding: tuple[int, int], steps: tuple[Step, Step]
) -> None:
    """Add a depthwise correlation in pieces that oneDNN is fast at.

    ``steps``, of rows and columns: the stride, and the output at which ``target`` begins.
    """
    stride, first = zip(*steps, strict=True)
    channels, sides = kernel.shape[0], kernel.shape[2]
    height, width = target.shape[2:]
    piece_width = sides
    if sides > WIDE_KERNEL and x.device.type == "cpu":
        # A piece begins a multiple of the stride after the one before, so that it is found some outputs further on.
        piece_width = -(-(sides // 2 + 1) // stride[1]) * stride[1]
    for start in range(0, sides, piece_width):
        piece = kernel[:, None, :, start : start + piece_width].contiguous()
        found = functional.conv2d(x, piece, None, stride, padding, 1, channels)
        column = first[1] + start // stride[1]
        target.add_(found[:, :, first[0] : first[0] + height, column : column + width])


def _subtract_end(dx: Tensor, x: Tensor, rows: int, last: bool, kernels: list[Tensor]) -> None:
    """Subtract from the first or last rows of ``dx`` the outputs beyond them, on all whole numbers along the columns.

    ``kernels`` has one per parity of the column, (C, rows rows, lags): row of ``dx``, row of ``x``, distance.
    """
    batch, channels = x.shape[:2]
    part = _end(x.shape[2], rows, last)
    strip = x[:, :, part].repeat_interleave(rows, 1)  # (B, C rows, rows, W): one copy for every row of dx
    strip = strip.contiguous(memory_format=torch.channels_last)
    for column, kernel in enumerate(kernels):
        steps, padding = ((1, 0), (len(kernels), column)), (0, kernel.shape[2] // 2 + column)
        target = dx[:, :, part, column :: len(kernels)]
        found = strip.new_zeros(batch, channels * rows, 1, target.shape[3])
        _add_correlation(found, strip, kernel.reshape(channels * rows, rows, -1), padding, steps)
        target.sub_(found.view(batch, channels, rows, -1))

"""How the images of an epoch are spread over batches."""

import math
from itertools import chain

import numpy as np
import pytest

from fedmed.data import count_batches, make_batches
from fedmed.data.batches import draw_batches


@pytest.mark.parametrize("batch_size", range(1, 65))
def test_every_image_is_used_once_in_batches_of_nearly_equal_size(batch_size: int) -> None:
    for num_images in range(1, 301):
        order = np.random.default_rng(num_images).permutation(num_images)
        batches = make_batches(order, batch_size)
        sizes = [len(batch) for batch in batches]
        assert [index for batch in batches for index in batch] == order.tolist()
        assert len(batches) == count_batches(num_images, batch_size)
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 1 or 1 in (num_images, batch_size)
        if batch_size >= 8:
            assert min(sizes) >= min(8, num_images)
        if batch_size >= 15 or batch_size in range(3, 8):
            assert len(batches) == math.ceil(num_images / batch_size)
        # Above the wished size only where one batch more would be too small.
        fewest = 8 if batch_size >= 8 else 2
        assert max(sizes) <= batch_size or num_images // (len(batches) + 1) < fewest
        assert max(sizes) <= max(batch_size, 15 if batch_size >= 8 else 3)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "expected"),
    [
        (34, 32, [17, 17]),
        (33, 32, [16, 17]),
        (100, 32, [25, 25, 25, 25]),
        (7, 32, [7]),
        (1, 32, [1]),
        (0, 32, []),
        (17, 8, [8, 9]),  # three batches would have 5 or 6
        (15, 8, [15]),
        (9, 4, [3, 3, 3]),
        (5, 2, [2, 3]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_sizes_by_hand(num_images: int, batch_size: int, expected: list[int]) -> None:
    assert [len(batch) for batch in make_batches(np.arange(num_images), batch_size)] == expected
    assert count_batches(num_images, batch_size) == len(expected)


def test_batches_are_drawn_in_passes_over_all_images() -> None:
    """Ten images in batches of at most 4: 3, 3 and 4, in a new order in every pass; the last pass is cut short."""
    batches = list(draw_batches(np.random.default_rng(0), np.arange(20, 30), 4, 7))
    assert [len(batch) for batch in batches] == [3, 3, 4] * 2 + [3]
    passes = [list(chain(*batches[first : first + 3])) for first in (0, 3)]
    assert [sorted(one) for one in passes] == [list(range(20, 30))] * 2
    assert passes[0] != passes[1]
    assert list(draw_batches(np.random.default_rng(0), np.arange(3), 4, 0)) == []

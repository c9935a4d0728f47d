"""The batches of an epoch."""

from collections.abc import Iterator

import numpy as np


def make_batches(order: np.ndarray, batch_size: int) -> list[list[int]]:
    """Cut an order of images into batches, none of them of one image.

    BatchNorm cannot normalise a single 1 x 1 map. A last batch of one joins the batch before it; a site's only image is
    taken twice.

    Parameters
    ----------
    order : ndarray of int, shape (N,)
        Indices of images, N >= 1.
    batch_size : int
        At least 2.
    """
    indices = [int(index) for index in order]
    if len(indices) == 1:
        return [indices * 2]
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    if len(batches[-1]) == 1:
        batches[-2].extend(batches.pop())
    return batches


def draw_batches(rng: np.random.Generator, indices: np.ndarray, batch_size: int, steps: int) -> Iterator[list[int]]:
    """Yield as many batches as there are steps, going through all images in a new order again and again."""
    size = max(2, min(batch_size, len(indices)))
    given = 0
    while given < steps:
        order = rng.permutation(indices)
        for first in range(0, max(len(order) - size + 1, 1), size):
            if given == steps:
                return
            given += 1
            yield [int(index) for index in order[first : first + size]]

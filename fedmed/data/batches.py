"""The batches of an epoch."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

FEWEST_IN_BATCH = 8
"""BatchNorm normalises by the images of its batch; by fewer than this, a step can be of any length."""


def count_batches(num_images: int, batch_size: int) -> int:
    """Return into how many batches :func:`make_batches` cuts an epoch.

    Parameters
    ----------
    num_images : int
        N, from 0.
    batch_size : int
        At least 1.
    """
    fewest = FEWEST_IN_BATCH if batch_size >= FEWEST_IN_BATCH else min(2, batch_size)
    return min(num_images, max(1, min(math.ceil(num_images / batch_size), num_images // fewest)))


def make_batches(order: np.ndarray, batch_size: int) -> list[list[int]]:
    """Spread the images of an epoch over batches of nearly equal size, each image once.

    Parameters
    ----------
    order : ndarray of int, shape (N,)
        Indices of images.
    batch_size : int
        At least 1.

    Returns
    -------
    list of list of int
        In the given order. Sizes differ by one at most. There are as few batches as ``batch_size`` images in each
        allow; but where one of them would then have fewer than 8 images, as many as leave 8 in each, or one batch of
        all of fewer than 16 images. That happens with a ``batch_size`` below 15 alone, and makes batches of 15 at most.
        A ``batch_size`` below 8 is a wish for small batches: there only a batch of one image is avoided, with 2 by a
        batch of three.

    Notes
    -----
    A short last batch ruins a network with BatchNorm. With 34 images and batches of 32, the last two images of an epoch
    are normalised by each other; at 32 pixels, where the last maps have one position, such an epoch moved a new
    ResNet-18 by 4272, one of 32 images by 2, and the same 34 in two batches of 17 by 6 (learning rate 0.05). A site
    with fewer than 8 images has no batch that is large enough, see
    :func:`fedmed.training.batch_norm_policy.set_train_mode`.
    """
    indices = [int(index) for index in order]
    number = count_batches(len(indices), batch_size)
    ends = [len(indices) * place // number for place in range(number + 1)] if number else []
    return [indices[first:last] for first, last in pairwise(ends)]


def draw_batches(rng: np.random.Generator, indices: np.ndarray, batch_size: int, steps: int) -> Iterator[list[int]]:
    """Yield as many batches as there are steps, going through all images in a new order again and again.

    Parameters
    ----------
    rng : Generator
        Gives the orders.
    indices : ndarray of int, shape (N,)
        Of images, N >= 1.
    batch_size : int
        See :func:`make_batches`.
    steps : int
        How many batches.
    """
    given = 0
    while given < steps:
        for batch in make_batches(rng.permutation(indices), batch_size)[: steps - given]:
            given += 1
            yield batch

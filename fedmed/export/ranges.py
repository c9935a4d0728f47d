"""In which ranges of size, colour and brightness a new image is like those that a model was made with."""

from collections.abc import Iterable
from typing import Literal, TypedDict

import numpy as np
import torch

from fedmed import predict

_SLACK = 0.25
"""Share of the span of observed means by which the allowed range is wider at either end."""
_SIDES: tuple[Literal["width", "height"], ...] = ("width", "height")
_STATISTICS: tuple[Literal["mean", "std"], ...] = ("mean", "std")


class Expected(TypedDict, total=False):
    """Ranges of the images that the model was made with, lowest and highest; empty where nothing is known."""

    basis: str
    """What images these are."""
    width: list[float]
    height: list[float]
    mean: list[float]
    std: list[float]
    colour: str
    """``grey``, ``colour`` or ``both``."""


def describe_range(images: Iterable[torch.Tensor], basis: str) -> Expected:
    """Return in which ranges new images are like those that the model was made with.

    Parameters
    ----------
    images : iterable of Tensor
        Some training images as they were decoded, each uint8 (3, H, W).
    basis : str
        What images these are.

    Returns
    -------
    Expected
        ``width`` and ``height`` from half the smallest to twice the largest; ``mean`` and ``std`` of an image's values
        in 0 to 1, a quarter of the observed span wider at both ends; ``colour``: ``grey``, ``colour`` or ``both``.
        Empty without images.
    """
    found = [predict.describe_pixels(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
    if not found:
        return {}
    result: Expected = {"basis": basis}
    for side in _SIDES:
        values = [numbers[side] for numbers, _ in found]
        result[side] = [min(values) // 2, max(values) * 2]
    for statistic in _STATISTICS:
        values = [numbers[statistic] for numbers, _ in found]
        slack = _SLACK * (max(values) - min(values)) + 0.005
        result[statistic] = [round(max(0.0, min(values) - slack), 4), round(min(1.0, max(values) + slack), 4)]
    colours = {colour for _, colour in found}
    result["colour"] = colours.pop() if len(colours) == 1 else "both"
    return result

"""In which ranges of size, colour and brightness a new image is like those that a model was made with."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fedmed import predict

_SLACK = 0.25
"""Share of the span of observed means by which the allowed range is wider at either end."""


def describe_range(images: Iterable[torch.Tensor], basis: str) -> dict[str, Any]:
    """Return in which ranges new images are like those that the model was made with.

    Parameters
    ----------
    images : iterable of Tensor
        Some training images as they were decoded, each uint8 (3, H, W).
    basis : str
        What images these are.

    Returns
    -------
    dict
        ``width`` and ``height`` from half the smallest to twice the largest; ``mean`` and ``std`` of an image's values
        in 0 to 1, a quarter of the observed span wider at both ends; ``colour``: ``grey``, ``colour`` or ``both``.
        Empty without images.
    """
    found = [predict.describe_pixels(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
    if not found:
        return {}
    result: dict[str, Any] = {"basis": basis}
    for key in ("width", "height"):
        values = [one[key] for one in found]
        result[key] = [min(values) // 2, max(values) * 2]
    for key in ("mean", "std"):
        values = [one[key] for one in found]
        slack = _SLACK * (max(values) - min(values)) + 0.005
        result[key] = [round(max(0.0, min(values) - slack), 4), round(min(1.0, max(values) + slack), 4)]
    colours = {one["colour"] for one in found}
    return result | {"colour": colours.pop() if len(colours) == 1 else "both"}

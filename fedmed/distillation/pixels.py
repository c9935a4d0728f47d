"""Between the normalised images of a student and the values in [0, 1] that teachers and prompts take."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of the channels, as :func:`fedmed.data.normalisation` gives them."""


def normalize(pixels_B3HW: Tensor, statistics: Statistics) -> Tensor:
    """Return ``(x - mean) / std`` by channel, as the training recipes compute it."""
    mean, deviation = _as_columns(pixels_B3HW, statistics)
    return pixels_B3HW.sub(mean).div_(deviation)


def restore_pixels(x_B3HW: Tensor, statistics: Statistics) -> Tensor:
    """Return the values in [0, 1] of images that a recipe has normalised; right to rounding."""
    mean, deviation = _as_columns(x_B3HW, statistics)
    return x_B3HW.mul(deviation).add_(mean).clamp_(0, 1)


def _as_columns(x: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
    mean, deviation = (torch.tensor(values, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for values in statistics)
    return mean, deviation


class PixelModel(nn.Module):
    """A network that takes values in [0, 1]: it normalises them first.

    Parameters
    ----------
    model : nn.Module
        Takes normalised images.
    statistics : (mean, std)
        Its normalisation.
    """

    def __init__(self, model: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.model, self.statistics = model, statistics

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the network's result for images (B,3,H,W) in [0, 1]."""
        result: Tensor = self.model(normalize(pixels_B3HW, self.statistics))
        return result


@contextmanager
def held_still(module: nn.Module) -> Iterator[None]:
    """Freeze a module and put it in eval mode for a while: no gradients, no BatchNorm update; restored afterwards."""
    modes = {part: part.training for part in module.modules()}
    wishes = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        module.eval()
        module.requires_grad_(False)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, wish in wishes.items():
            parameter.requires_grad_(wish)

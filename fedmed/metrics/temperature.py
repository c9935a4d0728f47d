"""One temperature for all sites, fitted on sums: ``softmax(logits / T)`` with the T that suits all their images best.

For one image of class y with logits z the negative log-likelihood at the inverse temperature b = 1/T is
``logsumexp(b z) - b z_y`` and its derivative by b is ``E_p[z] - z_y`` with ``p = softmax(b z)``. It is convex in b,
since the second derivative is the variance of z under p. So a site sends both, summed over its images, for a fixed grid
of b. The sums of all sites are those of all images together, and between two points of the grid a straight line between
the slopes gives the place where they vanish. It takes slopes alone, since hospitals' sums have three digits, with which
the values of two neighbouring points do not differ.

The temperature is the multiple of :data:`STEP` nearest to that place. With all its digits it would be one more exact
number about the validation images.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; the grid in place of an optimiser, which would
need many messages, is ours.

Letters: J points of the grid, K classes, N images.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmed.metrics.values import Array

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
STEP = 0.05
"""Temperatures are multiples of it; their place in this list is what is told of the fit."""
GRID = np.exp(np.linspace(-math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE), 121))
"""Inverse temperatures, float64 (J,), from 1/20 to 20 in steps of 5 %; the middle one is 1."""
_MIDDLE = len(GRID) // 2
FEWEST_IMAGES = 20
"""From how many images on a temperature is fitted."""


@dataclass(frozen=True)
class Temperature:
    """By what the logits are divided."""

    temperature: float
    """T, a multiple of :data:`STEP`; 1 where none was fitted."""
    n: int
    """Images that it rests on."""
    nll_before: float | None
    """Mean negative log-likelihood of an image at T = 1."""
    nll_after: float | None
    """The same at T."""
    fitted: bool
    """Whether T comes from the images."""
    note: str | None = None
    """Why it does not, or what is special about it."""


def temperature_sums(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return what a site tells of its images, so that a temperature can be fitted.

    Parameters
    ----------
    logits_NK : Tensor
        Outputs of the model, finite.
    labels_N : Tensor of int64
        True classes.

    Returns
    -------
    Tensor
        float64 (J,2): for each inverse temperature of :data:`GRID`, the sum over the images of the negative
        log-likelihood and of its derivative by the inverse temperature.
    """
    z_NK = logits_NK.double()
    z_NK = z_NK - z_NK.max(dim=1, keepdim=True).values  # changes neither sum, and loses no digits
    true_N = z_NK.gather(1, labels_N[:, None])[:, 0]
    rows = []
    for inverse in GRID:
        scaled_NK = inverse * z_NK
        mean_N = (scaled_NK.softmax(dim=1) * z_NK).sum(dim=1)
        nll_N = scaled_NK.logsumexp(dim=1) - inverse * true_N
        rows.append(torch.stack([nll_N.sum(), (mean_N - true_N).sum()]))
    return torch.stack(rows)


def solve_temperature(sums_J2: Array, n: int) -> Temperature:
    """Return the temperature that makes the images most likely.

    Parameters
    ----------
    sums_J2 : ndarray of float64, shape (J,2)
        Sums of :func:`temperature_sums` over all sites.
    n : int
        Number of images.

    Returns
    -------
    Temperature
        T = 1, with a note, for fewer than :data:`FEWEST_IMAGES` images, or where the likelihood still grows at the
        lowest temperature: then nearly all images are right, and any confidence would be praised.
    """
    if n < FEWEST_IMAGES:
        note = f"{n} validation images are told; from {FEWEST_IMAGES} on one is fitted"
        return Temperature(1.0, n, None, None, False, note)
    values_J, slopes_J = sums_J2[:, 0] / n, sums_J2[:, 1] / n
    before = float(values_J[_MIDDLE])
    if slopes_J[-1] < 0:
        note = f"the images would be most likely at a temperature below {MIN_TEMPERATURE:g}, as when all are right"
        return Temperature(1.0, n, before, before, False, note)
    if slopes_J[0] >= 0:
        note = f"the best temperature is at least {MAX_TEMPERATURE:g}, the highest that is tried"
        return Temperature(MAX_TEMPERATURE, n, before, float(values_J[0]), True, note)
    right = int(np.argmax(slopes_J >= 0))
    left = right - 1
    width = float(GRID[right] - GRID[left])
    begin, end = float(slopes_J[left]), float(slopes_J[right])
    index = min(max(round(1 / (GRID[left] - begin * width / (end - begin)) / STEP), 1), round(MAX_TEMPERATURE / STEP))
    temperature = round(index * STEP, 2)
    place = int(np.clip(np.searchsorted(GRID, 1 / temperature), 1, len(GRID) - 1)) - 1
    distance = 1 / temperature - GRID[place]
    rise = (slopes_J[place + 1] - slopes_J[place]) / (GRID[place + 1] - GRID[place])
    after = float(values_J[place] + distance * (slopes_J[place] + distance * rise / 2))
    return Temperature(temperature, n, before, after, True)

"""What a hospital may tell of its prompt and for its temperature.

The lists of all that leaves are in :mod:`fedmed.protocol.kinds`.
"""

from collections.abc import Mapping

import torch

from fedmed.distillation import MIN_IMAGES_TO_SHARE_PROMPT
from fedmed.fairness.disclosure.rows import Disclosure
from fedmed.metrics.rounding import DIGITS, is_rounded
from fedmed.protocol.reports import TemperatureReport, TrainReport


def find_bands_breach(told: TrainReport) -> str | None:
    """Return why a report about a training must not leave, or None.

    A site with few images tells nothing of its prompt, not even the few gains of a report, since they summarise the
    spectra of its images.
    """
    if told.prompt_bands is None or told.num_images >= MIN_IMAGES_TO_SHARE_PROMPT:
        return None
    return f"its prompt is of fewer than {MIN_IMAGES_TO_SHARE_PROMPT} images"


def find_sums_breach(told: TemperatureReport, sums: Mapping[str, torch.Tensor], disclosure: Disclosure) -> str | None:
    """Return why sums for the temperature must not leave, or None: too few images, or so exact that they name some."""
    if told.n < disclosure.k:
        return f"its sums are over fewer than k = {disclosure.k} images"
    if disclosure.is_open or all(is_rounded(tensor.numpy()) for tensor in sums.values()):
        return None
    return f"a sum over images has more than {DIGITS} digits"

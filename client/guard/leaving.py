"""What of prompt, figures and sums for its temperature a hospital may tell.

The lists of all that leaves are in :mod:`fedmed.protocol.kinds`.
"""

import logging
from collections.abc import Mapping

import torch

from client.guard.policy import check_choice
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.distillation import MIN_IMAGES_TO_SHARE_PROMPT
from fedmed.fairness.disclosure.rows import Disclosure
from fedmed.metrics.rounding import DIGITS, has_digits, is_rounded
from fedmed.protocol.reports import (
    DistilReport,
    FigureReport,
    Report,
    SiteDescription,
    TemperatureReport,
    TrainReport,
)

_logger = logging.getLogger("fedmed.client")


def find_bands_breach(told: TrainReport) -> str | None:
    """Return why a report about a training must not leave, or None.

    A site with few images tells nothing of its prompt, not even the few gains of a report, since they summarise the
    spectra of its images.
    """
    if told.prompt_bands is None or told.num_images >= MIN_IMAGES_TO_SHARE_PROMPT:
        return None
    return f"its prompt is of fewer than {MIN_IMAGES_TO_SHARE_PROMPT} images"


def find_training_breach(told: TrainReport, k: int) -> str | None:
    """Return why a report about a training must not leave because of its prompt or its number of images, or None."""
    return find_bands_breach(told) or find_number_breach(told, k)


def find_figure_breach(told: FigureReport) -> str | None:
    """Return why figures of validation images must not leave, or None.

    Parameters
    ----------
    told : FigureReport
        About to leave.
    """
    figures = [figure for figure in (told.accuracy, told.balanced_accuracy) if figure is not None]
    return None if all(map(has_digits, figures)) else "its figures have more than 3 digits"


def warn_of_tables(plan: Plan, policy: PolicyConfig) -> None:
    """Say at the site, when it joins, that the plan foresees tables that this site does not let leave."""
    for refusal in check_choice(policy, plan):
        _logger.warning("This site cannot take part as the federation is planned: %s", refusal)


def find_number_breach(told: Report, k: int) -> str | None:
    """Return why a report must not leave because of a number of images in it, or None.

    Parameters
    ----------
    told : Report
        About to leave.
    k : int
        Numbers of images are multiples of it.
    """
    match told:
        case SiteDescription():
            numbers = list(told.num_images.values())
        case DistilReport():
            numbers = [told.num_images]
        case FigureReport() | TemperatureReport():
            numbers = [told.n]
        case _:
            numbers = []
    return f"a number of images is no multiple of k = {k}" if any(number % k for number in numbers) else None


def find_sums_breach(told: TemperatureReport, sums: Mapping[str, torch.Tensor], disclosure: Disclosure) -> str | None:
    """Return why sums for the temperature must not leave, or None: too few images, or so exact that they name some."""
    if told.n < disclosure.k:
        return f"its sums are over fewer than k = {disclosure.k} images"
    if disclosure.is_open or all(is_rounded(tensor.numpy()) for tensor in sums.values()):
        return None
    return f"a sum over images has more than {DIGITS} digits"

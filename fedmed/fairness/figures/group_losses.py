"""Losses that a site tells for the sake of a fair aggregation: of all its training images, or by patient group.

Sums add over sites, as the evaluation tables do, and small groups are held back as there: a group with fewer than ``k``
images is not told, nor another group if its images could then be counted from the number of all training images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedmed.metrics.packing import LONGEST_NAME, MOST_GROUPS
from fedmed.metrics.site_tables import UNKNOWN
from fedmed.protocol.kinds import GROUP_LOSSES, START_LOSS

LARGEST_LOSS = 1e6
"""A mean loss above this is taken for a fault."""

GroupLosses = dict[str, tuple[int, float]]
"""Group to number of images and sum of their losses."""


def release_start_loss(losses_N: torch.Tensor, k: int) -> float | None:
    """Return the mean loss of a site's training images, None if there are fewer than ``k``."""
    return float(losses_N.double().mean()) if len(losses_N) >= max(k, 1) else None


def release_group_losses(losses_N: torch.Tensor, groups: Sequence[str], k: int) -> dict[str, list[float]]:
    """Return number of images and sum of losses of the groups that may be told.

    Parameters
    ----------
    losses_N : Tensor, shape (N,)
        Loss of each image.
    groups : sequence of str, length N
        Its group; images of ``unknown`` belong to none.
    k : int
        Fewest images of a group, and of all that are not told, whose number follows from N.

    Returns
    -------
    dict of str to [int, float]
        In the order of the names.
    """
    values_N = losses_N.double().tolist()
    told: dict[str, list[float]] = {}
    for group in sorted(set(groups) - {UNKNOWN}):
        own = [value for value, name in zip(values_N, groups, strict=True) if name == group]
        if len(own) >= k:
            told[group] = [len(own), math.fsum(own)]
    while told and 0 < len(groups) - sum(int(n) for n, _ in told.values()) < k:
        told.pop(min(told, key=lambda group: (told[group][0], group)))
    return told


def find_loss_breach(report: Mapping[str, Any], k: int) -> str | None:
    """Return what of the losses in a report must not leave, or None; the last look before it does.

    Parameters
    ----------
    report : mapping
        What the site is about to tell of its training.
    k : int
        Fewest images of a group.
    """
    num_images = report.get("num_images")
    if not isinstance(num_images, int):
        return None if START_LOSS not in report and GROUP_LOSSES not in report else "its number of images is missing"
    if START_LOSS in report and num_images < k:
        return f"its loss is of fewer than k = {k} images"
    try:
        losses = read_group_losses(report.get(GROUP_LOSSES, {}), num_images)
    except ValueError:
        return "its losses by group are malformed"
    left = num_images - sum(n for n, _ in losses.values())
    if any(n < k for n, _ in losses.values()) or (losses and 0 < left < k):
        return f"a group has fewer than k = {k} images"
    return None


def read_start_loss(value: object) -> float:
    """Return a mean loss that a site has told.

    Raises
    ------
    ValueError
        If it cannot be one.
    """
    return _read_sum(value, 1)


def read_group_losses(value: object, num_images: int) -> GroupLosses:
    """Return losses by group that a site has told.

    Parameters
    ----------
    value : object
        Whatever came.
    num_images : int
        Training images of the site.

    Raises
    ------
    ValueError
        If it does not have the form of :func:`release_group_losses`, or cannot be true.
    """
    if not isinstance(value, Mapping) or len(value) > MOST_GROUPS:
        raise ValueError(f"The losses by group are no mapping of at most {MOST_GROUPS} groups.")
    found = {}
    for group, pair in value.items():
        if not isinstance(group, str) or not 0 < len(group) <= LONGEST_NAME or group == UNKNOWN:
            raise ValueError("The losses by group name a group that cannot be one.")
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("The losses by group are no pairs of number and sum.")
        n, total = pair
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError("The losses by group hold a number of images that is none.")
        found[group] = n, _read_sum(total, n)
    if sum(n for n, _ in found.values()) > num_images:
        raise ValueError("The losses by group are of more images than the site has.")
    return found


def _read_sum(value: object, n: int) -> float:
    most = LARGEST_LOSS * n
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"A loss before the training is no number from 0 to {most:g}.")
    return float(value)

"""Losses that a site tells for the sake of a fair aggregation: of all its training images, or by patient group.

Sums add over sites, as the evaluation tables do, and small groups are held back as there: a group with fewer than ``k``
patients is not told, nor another group if its images could then be counted from the number of all training images.
"""

import math
from collections.abc import Sequence

import torch

from fedmed.metrics.rounding import has_digits, round_down, round_number
from fedmed.metrics.site_tables import UNKNOWN
from fedmed.protocol.reports import GroupLosses, TrainReport


def disclose_start_loss(losses_N: torch.Tensor, k: int) -> float | None:
    """Return the mean loss of a site's training images, None if there are fewer than ``k``; above 1, with 3 digits."""
    if len(losses_N) < max(k, 1):
        return None
    mean = float(losses_N.double().mean())
    return mean if k <= 1 else round_number(mean)


def disclose_group_losses(
    losses_N: torch.Tensor, groups: Sequence[str], k: int, patients: Sequence[str] | None = None
) -> GroupLosses:
    """Return number of images and sum of losses of the groups that may be told.

    Parameters
    ----------
    losses_N : Tensor, shape (N,)
        Loss of each image.
    groups : sequence of str, length N
        Its group; images of ``unknown`` belong to none.
    k : int
        Fewest patients of a group, and of all that are not told, whose number follows from N.
    patients : sequence of str, length N, optional
        Whose image each is. Without, every image is taken for a patient's only one.

    Returns
    -------
    dict of str to (int, float)
        In the order of the names. With a ``k`` above 1 the number is rounded down to a multiple of it, and the sum is
        that of so many images of the same mean, with 3 digits.
    """
    values_N = losses_N.double().tolist()
    owners: Sequence[object] = range(len(groups)) if patients is None else patients
    told: GroupLosses = {}
    for group in sorted(set(groups) - {UNKNOWN}):
        own = [value for value, name in zip(values_N, groups, strict=True) if name == group]
        if len({owner for owner, name in zip(owners, groups, strict=True) if name == group}) >= k:
            told[group] = len(own), math.fsum(own)
    while told and 0 < len({owner for owner, name in zip(owners, groups, strict=True) if name not in told}) < k:
        told.pop(min(told, key=lambda group: (told[group][0], group)))
    return told if k <= 1 else {group: _coarsen(n, total, k) for group, (n, total) in told.items()}


def _coarsen(n: int, total: float, k: int) -> tuple[int, float]:
    told = round_down(n, k)
    return told, round_number(total / n * told)


def find_loss_breach(report: TrainReport, k: int) -> str | None:
    """Return what of the losses in a report must not leave, or None; the last look before it does.

    Parameters
    ----------
    report : TrainReport
        What the site is about to tell of its training.
    k : int
        Fewest images of a group.
    """
    if report.start_loss is not None and report.num_images < k:
        return f"its loss is of fewer than k = {k} images"
    losses = report.group_losses or {}
    if k > 1 and not all(n % k == 0 and has_digits(total) for n, total in losses.values()):
        return f"a group's losses are of no multiple of k = {k} images, or have more than 3 digits"
    if k > 1 and report.start_loss is not None and not has_digits(report.start_loss):
        return "its loss has more than 3 digits"
    left = report.num_images - sum(n for n, _ in losses.values())
    if any(n < k for n, _ in losses.values()) or (losses and 0 < left < k):
        return f"a group has fewer than k = {k} images"
    return None

"""What a site tells of its training images so that BatchNorm can be recalibrated."""

import torch
from torch import nn

from client.answers.compared_models import collect_norm_sums
from client.guard.policy import Refusal, refuse
from client.guard.requests import Request
from client.hospital.site_data import Site
from fedmed.reparameterization.statistics import Sums


def tell_norm_sums(model: nn.Module, request: Request, site: Site) -> Sums:
    """Return the sums of what every BatchNorm gets, as if of the number of images that this site tells.

    That is a multiple of k, of at least k_bin patients; means and variances are those of all training images.

    Parameters
    ----------
    model, request, site
        As for :func:`client.answers.compared_models.collect_norm_sums`.

    Raises
    ------
    PolicyError
        If a hospital has too few patients, or tells no images.
    """
    limits, number = site.policy.suppression, len(site.data.train)
    fewest, told = 1 if limits.k <= 1 else limits.k_bin, site.round_down(number)
    if site.count_patients("train") < fewest or not told:
        advice = "BatchNorm keeps the statistics of the other sites; this site need do nothing."
        allowed = f"from k_bin = {fewest} patients and k = {limits.k} images"
        refuse([Refusal("suppression", f"sums over the training images of {_few(fewest)}", allowed, advice)])
    sums = collect_norm_sums(model, request, site, "recalibrate")
    return sums if told == number else {name: _scale(values, told, number) for name, values in sums.items()}


def _few(fewest: int) -> str:
    return f"fewer than {fewest} patients, or of too few images"


def _scale(values: torch.Tensor, told: int, number: int) -> torch.Tensor:
    """Return number, sum and squares (3, channels) of fewer images with the same means; the number stays whole."""
    scaled = values.double() * (told / number)
    scaled[0] = torch.round(scaled[0])
    return scaled

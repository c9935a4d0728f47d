"""What a site tells so that one temperature can be fitted for all sites; see :mod:`fedmed.metrics.temperature`."""

import numpy as np
import torch
from torch import nn

from client.answers.answering import are_of_few
from client.guard.requests import Request
from client.hospital.site_data import Site
from fedmed.config import SITE_ATTRIBUTE
from fedmed.metrics.rounding import round_digits
from fedmed.metrics.temperature import temperature_sums
from fedmed.training.evaluate import compute_logits


def collect_temperature_sums(model: nn.Module, request: Request, site: Site) -> tuple[int, torch.Tensor]:
    """Return the number of validation images that may be counted, and their sums.

    Those are the images that the tables of the whole site count class by class, so that no difference tells of others.

    Returns
    -------
    n : int
        Rounded down to a multiple of this site's k; 0 where all are withheld, as of fewer than k patients.
    sums : Tensor
        float64 (J,2), see :func:`fedmed.metrics.temperature.temperature_sums`; of so many images with the same means,
        and under thresholds above 1 with three significant digits.
    """
    part = site.data.validation
    plan = site.count_part("validation", request.plan.fairness).plan
    index = torch.from_numpy(np.flatnonzero(plan.attributes[SITE_ATTRIBUTE].counted))
    logits_NK = compute_logits(model, part, request.plan, device=site.device)
    told, sums_J2 = site.round_down(len(index)), temperature_sums(logits_NK[index], part.labels[index])
    if are_of_few(site, part, index.tolist()):
        told = 0
    if site.disclosure_of("validation").is_open:
        return told, sums_J2
    return told, torch.from_numpy(round_digits((sums_J2 * (told / max(len(index), 1))).numpy()))

"""What a site tells and applies for a fair aggregation.

That is losses of the global model, one number of its distance from a teacher, and weights of patient groups.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from client.hospital.site_data import Site
from fedmed.config import Plan
from fedmed.data import ImagePart
from fedmed.fairness.figures.group_losses import release_group_losses, release_start_loss
from fedmed.fairness.figures.groups import assign_groups
from fedmed.protocol.kinds import GROUP_LOSSES, MAS_WEIGHT, START_LOSS
from fedmed.training.evaluate import compute_logits


def measure_risks(model: nn.Module, plan: Plan, site: Site) -> dict[str, Any]:
    """Return the losses that the plan asks for, of a model on this site's training images.

    The loss is plain cross-entropy, in evaluation mode and without augmentation, whatever the training's loss is: that
    of an image depends neither on other images nor on the site's class counts, so that it adds and compares.

    Parameters
    ----------
    model : nn.Module
        The global model, as it came.
    plan : Plan
        ``losses`` says what is asked for.
    site : Site
        Its rules hold small groups back.

    Returns
    -------
    dict
        Keys of the report; empty where nothing is asked for or nothing may be told.
    """
    if plan.losses == "none":
        return {}
    part, k = site.data.train, site.policy.suppression.k
    losses_N = cross_entropy(compute_logits(model, part, plan, device=site.device), part.labels, reduction="none")
    if plan.losses == "site":
        mean = release_start_loss(losses_N, k)
        return {} if mean is None else {START_LOSS: mean}
    groups = _find_groups(part, plan, site.name)
    return {} if groups is None else {GROUP_LOSSES: release_group_losses(losses_N, groups, k)}


def hold_divergence_back(told: Mapping[str, Any], site: Site) -> dict[str, Any]:
    """Return a report without the divergence from the teacher where the site has too few training images to tell it."""
    is_told = len(site.data.train) >= site.policy.suppression.k
    return {key: value for key, value in told.items() if is_told or key != MAS_WEIGHT}


def weigh_images(plan: Plan, site: Site, group_weights: Mapping[str, float]) -> torch.Tensor | None:
    """Return the weight of every training image, float32 (N,), from those of its groups; None if all are 1.

    Images whose group is not known, or has no weight yet, have the weight 1.
    """
    groups = _find_groups(site.data.train, plan, site.name) if group_weights else None
    if groups is None:
        return None
    return torch.tensor([group_weights.get(group, 1.0) for group in groups], dtype=torch.float32)


def _find_groups(part: ImagePart, plan: Plan, site: str) -> tuple[str, ...] | None:
    """Return the group of every image, None where the site does not know the attribute."""
    if plan.loss_attribute is None:
        return None
    return assign_groups(site, part.attributes, plan.fairness, len(part)).get(plan.loss_attribute)

"""What a site tells and applies for a fair aggregation.

That is losses of the global model, one number of its distance from a teacher, and weights of patient groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from client.answers.group_weights import hold_weights
from client.hospital.site_data import Site
from fedmed.aggregation.divergence_rule import MAS_WEIGHT
from fedmed.config import Plan
from fedmed.data import ImagePart
from fedmed.distillation import MIN_IMAGES_TO_SHARE_PROMPT
from fedmed.errors import TrainingError
from fedmed.fairness.figures.group_losses import disclose_group_losses, disclose_start_loss
from fedmed.fairness.figures.groups import assign_groups
from fedmed.metrics.rounding import round_number
from fedmed.protocol.reading import explained
from fedmed.protocol.reports import DistilReport, GroupLosses, TrainReport
from fedmed.training.evaluate import compute_logits
from fedmed.training.fit import FitResult


@dataclass(frozen=True)
class Risks:
    """Losses of a model on a site's training images; None where they are not asked for or may not be told."""

    start_loss: float | None = None
    """Mean over all of them."""
    group_losses: GroupLosses | None = None


def measure_risks(model: nn.Module, plan: Plan, site: Site) -> Risks:
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
    Risks
    """
    if plan.losses == "none":
        return Risks()
    part, k = site.data.train, site.policy.suppression.k
    losses_N = cross_entropy(compute_logits(model, part, plan, device=site.device), part.labels, reduction="none")
    if plan.losses == "site":
        is_told = site.count_patients("train") >= k
        return Risks(start_loss=disclose_start_loss(losses_N, k) if is_told else None)
    groups = _find_groups(part, plan, site.name)
    if groups is None:
        return Risks()
    padding = _list_padding(plan, site)
    places = [place for place, item in enumerate(part.items) if item not in padding]
    told, patients = [groups[place] for place in places], [site.patient_of(part.items[place]) for place in places]
    return Risks(group_losses=disclose_group_losses(losses_N[places], told, k, patients))


def require_images(site: Site) -> None:
    """Refuse to train without images.

    Raises
    ------
    TrainingError
        If there are none.
    """
    if not len(site.data.train):
        raise TrainingError(
            "This site has no training image left; all that it had belong to patients who withdrew, or others who are "
            "left out with them so that nobody can be told apart."
        )


def _list_padding(plan: Plan, site: Site) -> set[str]:
    """Return the images that are in no loss by group, so that after a withdrawal no group has lost fewer than k."""
    if site.hospital is None:
        return set()
    whole = site.hospital.whole.train
    groups = _find_groups(whole, plan, site.name)
    assert groups is not None, "the site knows the attribute"
    return site.hospital.pad_groups(dict(zip(whole.items, groups, strict=True)), site.policy.suppression.k)


def tell_training(result: FitResult, risks: Risks, site: Site) -> TrainReport:
    """Return what a site tells of a training, without what it has too few images for.

    Raises
    ------
    TrainingError
        If a number cannot be told, as of a model that has diverged.
    """
    told = {name: _shorten(value, site) if isinstance(value, float) else value for name, value in result.told.items()}
    if count_for_prompt(result, site) < MIN_IMAGES_TO_SHARE_PROMPT:
        told.pop("prompt_bands", None)
    if site.count_patients("train") < site.policy.suppression.k:
        told.pop(MAS_WEIGHT, None)
    with explained(TrainReport, TrainingError):
        return TrainReport.model_validate(
            {
                "num_images": site.round_down(result.num_images),
                "loss": _shorten(result.loss, site),
                "learning_rate": result.learning_rate,
                "train_s": result.train_s,
                "start_loss": risks.start_loss,
                "group_losses": risks.group_losses,
                **told,
            }
        )


def count_for_prompt(result: FitResult, site: Site) -> int:
    """Return what is held against the fewest images of a prompt that is told: patients, where images are more."""
    return min(site.round_down(result.num_images), site.count_patients("train"))


def tell_distillation(result: FitResult, site: Site) -> DistilReport:
    """Return what a site tells of the training of a small network.

    Raises
    ------
    TrainingError
        As for :func:`tell_training`.
    """
    with explained(DistilReport, TrainingError):
        return DistilReport(
            num_images=site.round_down(result.num_images),
            loss=_shorten(result.loss, site),
            learning_rate=result.learning_rate,
            train_s=result.train_s,
        )


def _shorten(value: float, site: Site) -> float:
    """Return a number that is made of a hospital's images with few digits; in a simulation as it is."""
    return value if site.policy.suppression.k <= 1 else round_number(value)


def weigh_images(plan: Plan, site: Site, group_weights: Mapping[str, float]) -> torch.Tensor | None:
    """Return the weight of every training image, float32 (N,), from those of its groups; None if all are 1.

    Images whose group is not known, or has no weight yet, have the weight 1; at a hospital see
    :func:`client.answers.group_weights.hold_weights`.
    """
    groups = _find_groups(site.data.train, plan, site.name) if group_weights else None
    if groups is None:
        return None
    if site.is_hospital:
        part, k = site.data.train, site.policy.suppression.k
        patients = [site.patient_of(item) for item in part.items]
        group_weights = hold_weights(group_weights, groups, part.labels.tolist(), k, patients)
    return torch.tensor([group_weights.get(group, 1.0) for group in groups], dtype=torch.float32)


def _find_groups(part: ImagePart, plan: Plan, site: str) -> tuple[str, ...] | None:
    """Return the group of every image, None where the site does not know the attribute."""
    if plan.loss_attribute is None:
        return None
    return assign_groups(site, part.attributes, plan.fairness, len(part)).get(plan.loss_attribute)

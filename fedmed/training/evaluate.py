"""Score a model on one part of a site's images."""

import torch
from torch import nn

from fedmed.config import Plan
from fedmed.data import ImagePart, make_eval_transform
from fedmed.errors import TrainingError
from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from fedmed.training.devices import use_channels_last


def evaluate(
    model: nn.Module, part: ImagePart, plan: Plan, *, group: str, device: torch.device, batch_size: int = 128
) -> EvaluationTables:
    """Score a model on one part of a site's images and return additive tables.

    Parameters
    ----------
    model, part, plan, device, batch_size
        As for :func:`compute_logits`. Where the part is empty, the tables have no group.
    group : str
        Name of the only group, the site.

    Raises
    ------
    TrainingError
        If the model gives infinite or undefined outputs.
    """
    logits_NK = compute_logits(model, part, plan, device=device, batch_size=batch_size)
    return tables_from_logits(logits_NK, part.labels, [group] * len(part), part.patients)


@torch.no_grad()
def compute_logits(
    model: nn.Module, part: ImagePart, plan: Plan, *, device: torch.device, batch_size: int = 128
) -> torch.Tensor:
    """Return a model's outputs for one part of a site's images.

    Parameters
    ----------
    model : nn.Module
        Set to evaluation mode.
    part : ImagePart
        N images; may be empty.
    plan : Plan
        Common settings.
    device : torch.device
        Where to compute, in float32.
    batch_size : int
        Images at a time; no influence on the figures beyond rounding.

    Returns
    -------
    Tensor
        float32 (N, K) on the CPU, all finite.

    Raises
    ------
    TrainingError
        If the model gives infinite or undefined outputs.
    """
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    use_channels_last(model).to(device).eval()
    logits = [torch.zeros(0, len(plan.classes))]
    for first in range(0, len(part), batch_size):
        indices = range(first, min(first + batch_size, len(part)))
        x_BCHW = transform(part.images(indices)).to(device, memory_format=torch.channels_last)
        logits.append(model(x_BCHW).float().cpu())
    logits_NK = torch.cat(logits)
    if not torch.isfinite(logits_NK).all():
        raise TrainingError(
            "The global model's outputs are no longer finite numbers. Lower training.optimizer.lr or set "
            "training.clip_norm, for example to 1.0."
        )
    return logits_NK

"""One site's local work: fit and evaluate. No networking.

All randomness of a fit comes from streams named by (run seed, site, round), so the result depends neither on the
process that computes it nor on what it computed before.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fedmed.config import Plan
from fedmed.data import ImagePart, count_classes, make_batches, make_train_transform
from fedmed.distillation import DistillationStudent, FourierPrompt
from fedmed.distillation.at_sites.objective import DistillationReport, SiteRound
from fedmed.errors import TrainingError
from fedmed.losses import build_loss
from fedmed.seeding import make_rng, seeded_torch
from fedmed.training.devices import use_channels_last
from fedmed.training.optimizers import collect_optimizer, make_optimizer, restore_optimizer, set_learning_rate


@dataclass(frozen=True)
class FitResult:
    """What a site tells about one round of local training, beside its update."""

    num_images: int
    """Training images of the site."""
    loss: float
    """Mean loss per image over the round, without the proximal term."""
    learning_rate: float
    """Rate of the round's last epoch."""
    train_s: float
    """Seconds of training."""
    optimizer_state: dict[str, torch.Tensor] = field(default_factory=dict)
    """``<parameter>/<key>`` -> tensor, for a site that keeps its momentum."""
    distillation: DistillationReport | None = None
    """Of the distillation from a teacher, where the plan has one."""


def fit(
    model: nn.Module,
    part: ImagePart,
    plan: Plan,
    *,
    site: str,
    round_number: int,
    device: torch.device,
    optimizer_state: dict[str, torch.Tensor] | None = None,
    image_weights: torch.Tensor | None = None,
    prompt: FourierPrompt | None = None,
) -> FitResult:
    """Train ``model`` in place on one site's images for one round.

    Parameters
    ----------
    model : nn.Module
        Holds the global model's values; logits (B, K) from images (B, 3, S, S). A
        :class:`fedmed.distillation.DistillationStudent` where the plan has a teacher.
    part : ImagePart
        The site's training images, at least one.
    plan : Plan
        Common settings.
    site : str
        Name of the site, part of the names of its random streams.
    round_number : int
        From 1; fixes the place in the learning-rate schedule and the random streams.
    device : torch.device
        Where to compute.
    optimizer_state : dict of str to Tensor, optional
        What an earlier round's :attr:`FitResult.optimizer_state` held.
    image_weights : Tensor, shape (N,), optional
        Weight of each training image in the loss, see :class:`fedmed.losses.CombinedLoss`. A distillation's own terms
        have no such weights.
    prompt : FourierPrompt, optional
        With a teacher: the global prompt, a reconstruction; learned in place before the model is trained.

    Returns
    -------
    FitResult

    Raises
    ------
    TrainingError
        If the loss is no longer a finite number.

    Notes
    -----
    FedProx (Li et al., MLSys 2020) adds ``mu/2 ||w - w_global||^2`` to the loss; its gradient ``mu (w - w_global)`` is
    added to the loss's own before clipping.
    """
    start = time.perf_counter()
    settings = plan.training
    use_channels_last(model).to(device).train()
    loss_function = build_loss(plan.loss, count_classes(part, len(plan.classes))).to(device)
    optimizer = make_optimizer(model, settings.optimizer)
    if optimizer_state:
        restore_optimizer(optimizer, model, optimizer_state)
    distillation = None
    if plan.fopro is not None:
        assert isinstance(model, DistillationStudent), "a plan with a teacher has a student"
        assert prompt is not None, "and a prompt"
        distillation = SiteRound(
            model, prompt, loss_function, part, plan, site=site, round_number=round_number, device=device
        )
        distillation.explore()
    step = _Step(model, loss_function, optimizer, plan, device=device, distillation=distillation)
    rate = settings.optimizer.lr
    total = 0.0
    with seeded_torch(plan.seed, site, round_number, "fit"):
        for local_epoch in range(settings.epochs_per_round):
            rate = set_learning_rate(optimizer, plan, round_number, local_epoch)
            order = make_rng(plan.seed, site, round_number, local_epoch, "order").permutation(len(part))
            total += _train_epoch(step, part, make_batches(order, settings.batch_size), image_weights)
    mean_loss = total / (len(part) * settings.epochs_per_round)
    if not np.isfinite(mean_loss):
        raise TrainingError(
            f"The training loss is {mean_loss} in round {round_number}. "
            "Lower training.optimizer.lr or set training.clip_norm, for example to 1.0."
        )
    kept = collect_optimizer(optimizer, model) if settings.keep_momentum else {}
    report = distillation.report() if distillation is not None else None
    return FitResult(len(part), mean_loss, rate, time.perf_counter() - start, kept, report)


class _Step:
    """One optimisation step, with everything that does not change between steps."""

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        *,
        device: torch.device,
        distillation: SiteRound | None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.device = model, loss, optimizer, device
        self.distillation = distillation
        self.transform = make_train_transform(plan.augmentation, plan.image_size)
        self.clip_norm = plan.training.clip_norm
        self.mu = plan.training.proximal_mu
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.anchor = [parameter.detach().clone() for parameter in self.parameters] if self.mu else []
        amp = plan.training.amp == "auto" and device.type == "cuda"
        self.half = (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16) if amp else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)

    def __call__(
        self,
        images: Sequence[torch.Tensor],
        indices: Sequence[int],
        target: torch.Tensor,
        weights_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean loss of the batch of these indices, detached, and update the model."""
        if self.distillation is not None and self.distillation.has_views:
            x_BCHW, keys = self.distillation.prepare(images, indices)
        else:
            x_BCHW, keys = self.transform(list(images)), None
        x_BCHW, target = x_BCHW.to(self.device, memory_format=torch.channels_last), target.to(self.device)
        loss = self._compute_loss(x_BCHW, target, weights_B, keys)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        self._adjust_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _compute_loss(
        self, x_BCHW: torch.Tensor, target: torch.Tensor, weights_B: torch.Tensor | None, keys: list[int] | None
    ) -> torch.Tensor:
        if self.distillation is not None:
            with self._autocast():
                return self.distillation.compute_loss(x_BCHW, target, weights_B, keys)
        with self._autocast():
            logits_BK = self.model(x_BCHW)
        loss: torch.Tensor = self.loss(logits_BK.float(), target, weights_B)
        return loss

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.half is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.half)

    @torch.no_grad()
    def _adjust_gradients(self) -> None:
        if self.mu:
            for parameter, start in zip(self.parameters, self.anchor, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - start, alpha=self.mu)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)


def _train_epoch(step: _Step, part: ImagePart, batches: list[list[int]], image_weights: torch.Tensor | None) -> float:
    """Return the sum over images of their batch's mean loss."""
    total = torch.zeros((), dtype=torch.float64, device=step.device)
    num_trained = 0
    for indices in batches:
        weights_B = None if image_weights is None else image_weights[indices].to(step.device)
        total += step(part.images(indices), indices, part.labels[indices], weights_B) * len(indices)
        num_trained += len(indices)
    return float(total) * len(part) / num_trained

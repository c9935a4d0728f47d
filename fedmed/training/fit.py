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
from fedmed.data import ImagePart, make_batches
from fedmed.errors import TrainingError
from fedmed.seeding import make_rng, seeded_torch
from fedmed.training.batch_norm_policy import set_train_mode
from fedmed.training.devices import use_channels_last
from fedmed.training.objective import LocalObjective, MakeObjective, ObjectiveReport, PlainObjective
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
    told: ObjectiveReport = field(default_factory=dict)
    """What the objective has to tell beside."""


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
    objective: MakeObjective = PlainObjective,
) -> FitResult:
    """Train ``model`` in place on one site's images for one round.

    Parameters
    ----------
    model : nn.Module
        Holds the global model's values; what it maps to what is between it and the objective. For a
        :class:`PlainObjective` logits (B, K) from images (B, 3, S, S).
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
        Weight of each training image in the loss, see :class:`fedmed.losses.CombinedLoss`.
    objective : callable
        Makes what is minimised: for the model of a network its :attr:`fedmed.training.network.Network.objective`.

    Returns
    -------
    FitResult

    Raises
    ------
    TrainingError
        If the loss is no longer a finite number.

    Notes
    -----
    Batches are those of :func:`fedmed.data.make_batches`. With fewer than 8 images BatchNorm is frozen, see
    :func:`fedmed.training.batch_norm_policy.set_train_mode`.

    FedProx (Li et al., MLSys 2020) adds ``mu/2 ||w - w_global||^2`` to the loss; its gradient ``mu (w - w_global)`` is
    added to the loss's own before clipping.
    """
    start = time.perf_counter()
    settings = plan.training
    set_train_mode(use_channels_last(model).to(device), len(part))
    optimizer = make_optimizer(model, settings.optimizer)
    if optimizer_state:
        restore_optimizer(optimizer, model, optimizer_state)
    chosen = objective(model, part, plan, site=site, round_number=round_number, device=device)
    chosen.begin()
    step = _Step(model, chosen, optimizer, plan, device=device)
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
            f"The training loss is no finite number in round {round_number}. "
            "Lower training.optimizer.lr or set training.clip_norm, for example to 1.0."
        )
    kept = collect_optimizer(optimizer, model) if settings.keep_momentum else {}
    told = chosen.report()
    return FitResult(len(part), mean_loss, rate, time.perf_counter() - start, kept, told)


class _Step:
    """One optimisation step, with everything that does not change between steps."""

    def __init__(
        self,
        model: nn.Module,
        objective: LocalObjective,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        *,
        device: torch.device,
    ) -> None:
        self.objective, self.optimizer, self.device = objective, optimizer, device
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
        x_BCHW, keys = self.objective.load(images, indices)
        x_BCHW, target = x_BCHW.to(self.device, memory_format=torch.channels_last), target.to(self.device)
        with self._autocast():
            loss = self.objective.loss(x_BCHW, target, weights_B, keys)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        self._adjust_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

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
    for indices in batches:
        weights_B = None if image_weights is None else image_weights[indices].to(step.device)
        total += step(part.images(indices), indices, part.labels[indices], weights_B) * len(indices)
    return float(total)

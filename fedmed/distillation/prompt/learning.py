"""Explore: learn a Fourier prompt for a frozen teacher.

A reconstruction, as :mod:`fedmed.distillation.prompt.fourier_prompt`.

Letters: B batch, H W space.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedmed.distillation.pixels import held_still
from fedmed.distillation.prompt.fourier_prompt import FourierPrompt, share_outside, summarize_gain
from fedmed.distillation.teachers.statistics_match import StatisticsMatch
from fedmed.errors import ConfigError, FourierPromptError
from fedmed.storage.records import GainBand

Objective = Literal["batch_norm", "stats", "adversarial"]
Disagreement = Callable[[Tensor, Tensor], Tensor]
"""From images (B,3,H,W) in [0, 1] and the teacher's features (B,D) of the same images, prompted, to a scalar."""


@dataclass(frozen=True)
class PromptSettings:
    """How a prompt is learned. A reconstruction's choices.

    Attributes
    ----------
    options : mapping
        Of :class:`FourierPrompt`.
    objective : {"batch_norm", "stats", "adversarial"}
        What guides it: the teacher's BatchNorm statistics, a statistics file, or disagreement alone.
    bn : {"moments", "l1std"}
        Distance of :class:`StatisticsMatch`.
    beta, rho, gamma : float
        Weights of the statistics, of staying near the identity, and of raising the student's disagreement (0: off).
    lr : float
        Of Adam, without weight decay.
    steps, first_steps : int
        In every round, and in the first.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = "batch_norm"
    bn: str = "moments"
    beta: float = 1.0
    rho: float = 1.0
    gamma: float = 0.0
    lr: float = 0.05
    steps: int = 20
    first_steps: int = 100

    def steps_in(self, round_number: int) -> int:
        """Return the number of steps in a round, counted from 1."""
        return self.first_steps if round_number == 1 else self.steps


@dataclass(frozen=True)
class ExploreResult:
    """What one learning phase of a prompt, a reconstruction, did.

    Attributes
    ----------
    losses : tuple of float
        Objective at every step; empty for the mode ``none``.
    mismatches : tuple of float
        Distance of the teacher's statistics at every step; empty with ``adversarial``.
    outside : float
        Share of values outside [0, 1] in the last batch.
    bands : list of dict
        Of :func:`summarize_gain`, on the last batch.
    """

    losses: tuple[float, ...] = ()
    mismatches: tuple[float, ...] = ()
    outside: float = 0.0
    bands: list[GainBand] = field(default_factory=list)


def explore(
    prompt: FourierPrompt,
    teacher: nn.Module,
    batches: Iterable[Tensor],
    settings: PromptSettings,
    *,
    disagreement: Disagreement | None = None,
    student: nn.Module | None = None,
    statistics: Mapping[str, Tensor] | None = None,
) -> ExploreResult:
    """Learn a prompt with everything else frozen. A reconstruction.

    Parameters
    ----------
    prompt : FourierPrompt
        Changed in place; frozen before and afterwards.
    teacher : nn.Module
        From images in [0, 1] to features. Frozen and in eval mode while this runs.
    batches : iterable of Tensor
        One for each step: images (B,3,H,W) in [0, 1].
    settings : PromptSettings
        Weights and learning rate.
    disagreement : callable, optional
        With ``gamma > 0``: the distillation loss of the current student.
    student : nn.Module, optional
        Kept frozen and in eval mode.
    statistics : mapping, optional
        With the objective ``stats``; see :class:`StatisticsMatch`.

    Raises
    ------
    FourierPromptError
        If the teacher has no BatchNorm, but these are to guide the prompt; nothing is learned from a loss of zero.
    ConfigError
        If the objective needs what is not given.

    Notes
    -----
    ``beta L_BN + rho mean((ln g)^2) - gamma L_EKD`` by Adam, whose moments start anew in every round.
    """
    if prompt.mode == "none":
        return ExploreResult()
    match = _make_match(teacher, settings, statistics)
    if settings.gamma > 0 and disagreement is None:
        raise ConfigError("fpg.gamma is above 0, but there is no student whose disagreement could be raised.")
    losses, mismatches, last = [], [], None
    with _only_learning(prompt), held_still(teacher), held_still(student) if student is not None else nullcontext():
        optimizer = torch.optim.Adam(prompt.parameters(), lr=settings.lr)
        for images in batches:
            last = images
            loss, mismatch = _compute_objective(
                prompt, teacher, images, settings=settings, match=match, disagreement=disagreement
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            mismatches += [] if mismatch is None else [float(mismatch.detach())]
    if last is None:
        return ExploreResult()
    with torch.no_grad():
        outside, bands = share_outside(prompt(last)), summarize_gain(prompt.gain(last))
    return ExploreResult(tuple(losses), tuple(mismatches), outside, bands)


@contextmanager
def _only_learning(prompt: FourierPrompt) -> Iterator[None]:
    try:
        prompt.requires_grad_(True).train()
        yield
    finally:
        prompt.requires_grad_(False).eval()
        prompt.zero_grad(set_to_none=True)


def _make_match(
    teacher: nn.Module, settings: PromptSettings, statistics: Mapping[str, Tensor] | None
) -> StatisticsMatch | None:
    if settings.objective == "batch_norm":
        return StatisticsMatch(teacher, settings.bn)
    if settings.objective == "stats":
        if not statistics:
            raise ConfigError("fpg.objective is stats, but no statistics file is given. Make one, or use another.")
        return StatisticsMatch(teacher, settings.bn, statistics)
    if settings.gamma <= 0:
        raise FourierPromptError(
            "fpg.objective=adversarial has nothing to raise with fpg.gamma=0. Set it, e.g. to 0.1."
        )
    return None


def _compute_objective(
    prompt: FourierPrompt,
    teacher: nn.Module,
    images: Tensor,
    *,
    settings: PromptSettings,
    match: StatisticsMatch | None,
    disagreement: Disagreement | None,
) -> tuple[Tensor, Tensor | None]:
    loss = settings.rho * prompt.log_gain(images).square().mean()
    prompted, mismatch = prompt(images), None
    if match is None:
        features = teacher(prompted)
    else:
        features, mismatch = match(prompted)
        loss = loss + settings.beta * mismatch
    if settings.gamma > 0 and disagreement is not None:
        loss = loss - settings.gamma * disagreement(images, features)
    return loss, mismatch

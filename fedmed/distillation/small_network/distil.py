"""Distil the aggregated network into a small one at the server, on unlabelled proxy images.

Our own design (option S of the specification), called a reconstruction wherever it is described: the Fourier prompt
moves proxy images towards the BatchNorm statistics of the aggregated network, the only trace of the hospitals' images
that a server has. Not from the paper, which distils at the place of the data.

Letters: N images, B batch, H W space, D features of the large network, K classes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedmed.data.batches import draw_batches
from fedmed.distillation.pixels import PixelModel, held_still, normalize
from fedmed.distillation.prompt.fourier_prompt import FourierPrompt, make_prompt
from fedmed.distillation.prompt.learning import ExploreResult, explore
from fedmed.distillation.small_network.losses import Ensemble, Targets
from fedmed.distillation.small_network.proxy_images import ProxyImages
from fedmed.distillation.small_network.training import CompactSettings, CompactTraining, Progress
from fedmed.distillation.teachers.classifier import run_with_features
from fedmed.reparameterization.statistics import tracked_norms
from fedmed.seeding import make_rng, seeded_torch
from fedmed.storage.records import DistilledLine


@dataclass(frozen=True)
class CompactResult:
    """What a distillation at the server did.

    Attributes
    ----------
    prompt : FourierPrompt
        A reconstruction; the identity where nothing could guide it.
    explored : ExploreResult
        How it was learned.
    history : list of dict
        ``step``, ``train_loss``, ``held_out_loss``, ``agreement`` of every evaluation.
    best_step : int
        Whose weights the student has; 0 where no step was better than its start.
    seconds : dict
        Of the phases ``explore``, ``targets`` and ``train``.
    notes : tuple of str
        What the report has to say, for example that there were no statistics to match.
    """

    prompt: FourierPrompt
    explored: ExploreResult
    history: list[DistilledLine]
    best_step: int
    seconds: dict[str, float]
    notes: tuple[str, ...]


def distil_compact(
    teacher: nn.Module | Ensemble,
    student: nn.Module,
    proxy: ProxyImages,
    settings: CompactSettings,
    *,
    seed: int,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> CompactResult:
    """Train a small network to answer as a large one does. A reconstruction's phase; equal seeds give equal bits.

    Parameters
    ----------
    teacher : nn.Module or Ensemble
        The aggregated network in its train form, whose values and mode stay; or the sites' single networks, each with
        BatchNorm statistics of its own, so that there is no prompt.
    student : nn.Module
        Changed in place; the recipe's normalisation is that of the teacher. Left in eval mode. Its BatchNorm statistics
        come from proxy images: recalibrate them at the sites before it is judged.
    proxy : ProxyImages
        Unlabelled.
    settings : CompactSettings
        Steps and weights.
    seed : int
        Of the order of images, of the projector and of the held-out part.
    device : torch.device, optional
        Where to compute; default the CPU.
    progress : callable, optional
        Told of every evaluation.

    Raises
    ------
    ConfigError
        If one of the networks does not end in a linear layer.
    """
    device = device or torch.device("cpu")
    student.to(device)
    notes: list[str] = []
    started = time.perf_counter()
    prompt, explored = _learn_prompt(teacher, proxy, settings=settings, seed=seed, device=device, notes=notes)
    explored_at = time.perf_counter()
    targets = compute_targets(teacher, prompt, proxy, batch_size=settings.batch_size, device=device)
    computed_at = time.perf_counter()
    training = CompactTraining(student, prompt, proxy, targets, settings=settings, seed=seed, device=device)
    history, best_step = training.run(progress)
    seconds = {
        "explore": explored_at - started,
        "targets": computed_at - explored_at,
        "train": time.perf_counter() - computed_at,
    }
    return CompactResult(prompt, explored, history, best_step, seconds, tuple(notes))


def compute_targets(
    teacher: nn.Module | Ensemble, prompt: FourierPrompt, proxy: ProxyImages, *, batch_size: int, device: torch.device
) -> Targets:
    """Return the large network's logits and fused features of all proxy images through the prompt, on the CPU."""
    if isinstance(teacher, Ensemble):
        return teacher.average(lambda network: _answer(network, prompt, proxy, batch_size=batch_size, device=device))
    return _answer(teacher, prompt, proxy, batch_size=batch_size, device=device)


@torch.no_grad()
def _answer(
    network: nn.Module, prompt: FourierPrompt, proxy: ProxyImages, *, batch_size: int, device: torch.device
) -> Targets:
    network.to(device)
    logits, features = [], []
    with held_still(network), held_still(prompt):
        for pixels in proxy.batches(batch_size):
            found = run_with_features(network, normalize(prompt(pixels.to(device)), proxy.statistics))
            features.append(found[0].float().cpu())
            logits.append(found[1].float().cpu())
    return Targets(torch.cat(logits), torch.cat(features))


def copy_matching(student: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy the pre-trained tensors that have the same name and shape in a student, in place.

    Parameters
    ----------
    student : nn.Module
        For example ``mobilenet_v2_erohprf``, whose bags have no counterpart and stay as they are.
    state : mapping of str to Tensor
        For example of :func:`fedmed.distillation.teachers.teacher.read_mobilenet_features`.

    Returns
    -------
    list of str
        The student's tensors that were not copied, sorted.
    """
    own = student.state_dict()
    matching = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
    student.load_state_dict({**own, **matching})
    return sorted(set(own) - set(matching))


def _learn_prompt(
    teacher: nn.Module | Ensemble,
    proxy: ProxyImages,
    *,
    settings: CompactSettings,
    seed: int,
    device: torch.device,
    notes: list[str],
) -> tuple[FourierPrompt, ExploreResult]:
    mode = settings.prompt.options.get("mode", "static")
    if isinstance(teacher, Ensemble):
        if mode != "none":
            notes.append(
                f"The {len(teacher.members)} networks that answer together have no BatchNorm statistics in common, so "
                "the proxy images were taken as they are."
            )
        return make_prompt({"mode": "none"}).to(device).requires_grad_(False).eval(), ExploreResult()
    if mode != "none" and not tracked_norms(teacher):
        notes.append("The teacher has no BatchNorm statistics of its own, so the proxy images were taken as they are.")
        mode = "none"
    with seeded_torch(seed, "compact", "prompt"):
        prompt = make_prompt({**settings.prompt.options, "mode": mode}).to(device)
        teacher.to(device)
        rng = make_rng(seed, "compact", "explore")
        batches = (
            proxy.pixels(indices).to(device)
            for indices in draw_batches(rng, np.arange(len(proxy)), settings.prompt_batch, settings.prompt.first_steps)
        )
        explored = explore(prompt, PixelModel(teacher, proxy.statistics), batches, settings.prompt)
    return prompt.requires_grad_(False).eval(), explored

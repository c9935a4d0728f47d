"""The exploit phase at the server: the compact student learns, everything else is frozen. A reconstruction.

Letters: N images, B batch, H W space, D features of the large network.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedmed.data.batches import draw_batches
from fedmed.distillation.at_sites.ekd import DistillationStudent
from fedmed.distillation.pixels import held_still, normalize
from fedmed.distillation.prompt.fourier_prompt import FourierPrompt
from fedmed.distillation.prompt.learning import PromptSettings
from fedmed.distillation.small_network.losses import Targets, balance_predictions, compact_loss
from fedmed.distillation.small_network.proxy_images import ProxyImages
from fedmed.distillation.teachers.classifier import find_classifier
from fedmed.seeding import make_rng, seeded_torch
from fedmed.storage.records import DistilledLine
from fedmed.training.batch_norm_policy import set_train_mode

Progress = Callable[[int, Mapping[str, float]], None]
"""Called with the step and ``train_loss``, ``held_out_loss`` and ``agreement`` at every evaluation."""


@dataclass(frozen=True)
class CompactSettings:
    """How the compact student is distilled; the defaults are those of the specification, a reconstruction.

    Attributes
    ----------
    prompt : PromptSettings
        Of the prompt; its ``first_steps`` are taken.
    prompt_batch, batch_size : int
        Images at a time.
    steps, evaluate_every, patience : int
        Most steps; steps between evaluations on the held-out proxy images; evaluations without gain before the end.
    lr : float
        Of Adam at the start; it falls as a cosine.
    temperature, feature_weight, confidence : float
        Of :func:`compact_loss`.
    prompted_share : float
        How often the student, too, sees an image through the prompt.
    held_out_share : float
        Of the proxy images.
    hidden : int, optional
        Width of the projector, which is thrown away at the end.
    """

    prompt: PromptSettings = field(default_factory=lambda: PromptSettings(first_steps=200))
    prompt_batch: int = 64
    batch_size: int = 64
    steps: int = 2000
    evaluate_every: int = 100
    patience: int = 10
    lr: float = 1e-3
    temperature: float = 2.0
    feature_weight: float = 1.0
    confidence: float = 0.3
    prompted_share: float = 0.5
    held_out_share: float = 0.1
    hidden: int | None = 256


class CompactTraining:
    """The exploit phase: the student learns, everything else is frozen."""

    def __init__(
        self,
        student: nn.Module,
        prompt: FourierPrompt,
        proxy: ProxyImages,
        targets: Targets,
        *,
        settings: CompactSettings,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.prompt, self.proxy = student, prompt, proxy
        self.targets, self.settings, self.seed, self.device = targets, settings, seed, device
        order = make_rng(seed, "compact", "held out").permutation(len(proxy))
        # At least two images on either side, where there are four.
        num_held_out = max(min(2, len(order) - 2), round(settings.held_out_share * len(order)))
        self.held_out, self.trained = np.sort(order[:num_held_out]), order[num_held_out:]
        self.weights = balance_predictions(targets.logits)
        with seeded_torch(seed, "compact", "projector"):
            size = 1 if targets.features is None else targets.features.shape[1]
            self.wrapper: DistillationStudent | None = None
            if targets.features is not None and settings.feature_weight > 0:
                self.wrapper = DistillationStudent(student, size, hidden=settings.hidden, auxiliary=False).to(device)
            else:
                find_classifier(student)

    def run(self, progress: Progress | None) -> tuple[list[DistilledLine], int]:
        """Train, and leave the student with the weights of its best evaluation."""
        settings, network = self.settings, self.wrapper or self.model
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
        rng = make_rng(self.seed, "compact", "train")
        history: list[DistilledLine] = []
        best, best_step, best_state = self._evaluate()[0], 0, copy.deepcopy(self.model.state_dict())
        total, since = 0.0, 0
        with seeded_torch(self.seed, "compact", "train"):
            set_train_mode(network, len(self.trained))
            for step, indices in enumerate(
                draw_batches(rng, self.trained, settings.batch_size, settings.steps), start=1
            ):
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * (1 + math.cos(math.pi * (step - 1) / settings.steps)) / 2
                total += self._train_step(optimizer, indices, rng)
                since += 1
                if step % settings.evaluate_every and step != settings.steps:
                    continue
                held_out, agreement = self._evaluate()
                figures = {"train_loss": total / since, "held_out_loss": held_out, "agreement": agreement}
                history.append(
                    {
                        "step": float(step),
                        "train_loss": figures["train_loss"],
                        "held_out_loss": held_out,
                        "agreement": agreement,
                    }
                )
                if progress is not None:
                    progress(step, figures)
                total, since = 0.0, 0
                if held_out < best:
                    best, best_step, best_state = held_out, step, copy.deepcopy(self.model.state_dict())
                if step - best_step >= settings.patience * settings.evaluate_every:
                    break
        self.model.load_state_dict(best_state)
        self.model.eval()
        return history, best_step

    def _train_step(self, optimizer: torch.optim.Optimizer, indices: list[int], rng: np.random.Generator) -> float:
        pixels = self.proxy.pixels(indices).to(self.device)
        is_prompted_B = torch.from_numpy(rng.random(len(indices)) < self.settings.prompted_share).to(self.device)
        with torch.no_grad():
            pixels = torch.where(is_prompted_B[:, None, None, None], self.prompt(pixels), pixels)
        loss = self._compute_loss(normalize(pixels, self.proxy.statistics), indices)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    def _compute_loss(self, x_B3HW: Tensor, indices: list[int]) -> Tensor:
        projected = None
        if self.wrapper is None:
            logits = self.model(x_B3HW)
        else:
            _, logits, projected, _ = self.wrapper.run(x_B3HW)
        return self._score(logits, projected, indices)

    def _score(self, logits: Tensor, projected: Tensor | None, indices: list[int]) -> Tensor:
        settings, features = self.settings, self.targets.features
        targets = Targets(
            self.targets.logits[indices].to(self.device),
            None if features is None else features[indices].to(self.device),
        )
        return compact_loss(
            logits,
            projected,
            targets,
            weight_B=self.weights[indices].to(self.device),
            temperature=settings.temperature,
            feature_weight=settings.feature_weight,
            confidence=settings.confidence,
        )

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float]:
        """Return the loss on the held-out images, by answers alone, and the share with the teacher's class."""
        total = agreeing = 0.0
        with held_still(self.model):
            for first in range(0, len(self.held_out), self.settings.batch_size):
                indices = [int(index) for index in self.held_out[first : first + self.settings.batch_size]]
                pixels = self.prompt(self.proxy.pixels(indices).to(self.device))
                logits = self.model(normalize(pixels, self.proxy.statistics))
                total += float(self._score(logits, None, indices)) * len(indices)
                agreeing += float((logits.argmax(1).cpu() == self.targets.logits[indices].argmax(1)).sum())
        return total / len(self.held_out), agreeing / len(self.held_out)

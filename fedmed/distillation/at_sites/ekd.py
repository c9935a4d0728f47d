"""Distillation of a frozen teacher's features into a site's network: EKD, with an optional Fourier prompt.

Elbatel, Martí and Li, and the released Fed-MAS code, as in :mod:`fedmed.distillation.at_sites.losses`. The prompt
is a reconstruction. The student sees the image as it is; only the teacher sees the prompted one.

Letters: B batch, H W space, d features of the student, D of the teacher, K classes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmed.distillation.at_sites.losses import (
    MaskedBalancedSoftmax,
    average_terms,
    choose_beta,
    class_weights,
    ekd_loss,
    ekd_terms,
    ramp_weight,
)
from fedmed.distillation.pixels import Statistics, held_still, normalize, restore_pixels
from fedmed.distillation.prompt.fourier_prompt import FourierPrompt
from fedmed.distillation.prompt.learning import ExploreResult, PromptSettings, explore
from fedmed.distillation.teachers.classifier import find_classifier, run_with_features
from fedmed.distillation.teachers.feature_cache import FeatureCache

MIN_IMAGES_TO_SHARE_PROMPT = 20
"""Training images below which a site keeps its prompt to itself: it summarises their spectra."""


class StudentOutputs(NamedTuple):
    """What one forward of a :class:`DistillationStudent` gives.

    Attributes
    ----------
    features : Tensor
        (B,d), input of the classifier.
    logits : Tensor
        (B,K), of the network itself.
    projected : Tensor, optional
        (B,D); None for a batch of one in train mode, which BatchNorm cannot normalise.
    auxiliary : Tensor, optional
        (B,K) logits of the head on the projection.
    """

    features: Tensor
    logits: Tensor
    projected: Tensor | None
    auxiliary: Tensor | None


class Projector(nn.Sequential):
    """Linear(d, h), BatchNorm, ReLU, Linear(h, D); h is d as published, or smaller for small networks.

    Parameters
    ----------
    in_features, out_features : int
        d and D.
    hidden : int, optional
        h.
    """

    def __init__(self, in_features: int, out_features: int, hidden: int | None = None) -> None:
        width = hidden or in_features
        super().__init__(
            nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out_features)
        )


class DistillationStudent(nn.Module):
    """Any network that ends in a linear layer, with a projector and an auxiliary head that training alone needs.

    As a module it gives the plain network's logits, so whatever evaluates or exports a network takes it as it is. Build
    it in a random stream of its own: the network's weights are then the same with and without it.

    Parameters
    ----------
    model : nn.Module
        From normalised images to logits. Its tensors are named ``model.*`` here.
    teacher_features : int
        D.
    hidden : int, optional
        Width of the projector; None is as published.
    auxiliary : bool
        Whether there is a head on the projection.

    Raises
    ------
    ConfigError
        If the network does not end in a linear layer.
    """

    def __init__(
        self, model: nn.Module, teacher_features: int, *, hidden: int | None = None, auxiliary: bool = True
    ) -> None:
        super().__init__()
        _, classifier = find_classifier(model)
        self.model = model
        self.projector = Projector(classifier.in_features, teacher_features, hidden)
        self.auxiliary = nn.Linear(teacher_features, classifier.out_features) if auxiliary else None

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return the plain network's logits, (B,K)."""
        logits: Tensor = self.model(x_B3HW)
        return logits

    def run(self, x_B3HW: Tensor) -> StudentOutputs:
        """Return features, logits, projection and auxiliary logits of normalised images, in one forward."""
        features, logits = run_with_features(self.model, x_B3HW)
        if self.training and len(features) < 2:
            return StudentOutputs(features, logits, None, None)
        projected: Tensor = self.projector(features)
        return StudentOutputs(features, logits, projected, self.auxiliary(projected) if self.auxiliary else None)

    def strip(self) -> nn.Module:
        """Return the plain network: the same object, with its own names and without projector and auxiliary head."""
        return self.model


@dataclass(frozen=True)
class DistillationSettings:
    """Weights of the distillation at a site.

    Attributes
    ----------
    weight : float
        Lambda; 3 as published. Short trainings need less.
    auxiliary : float
        Weight of the auxiliary head's loss; 1 as published.
    class_balanced : bool
        Whether late rounds weigh the images of rare classes more.
    ramp_from : int, optional
        Round from which lambda falls to 0; None is constant, as published.
    """

    weight: float = 3.0
    auxiliary: float = 1.0
    class_balanced: bool = False
    ramp_from: int | None = None


class LossParts(NamedTuple):
    """The loss of a batch and its parts, each before its weight; None where it was not computed."""

    total: Tensor
    main: Tensor
    auxiliary: Tensor | None
    ekd: Tensor | None
    distances: Tensor | None = None
    """(B,) distance of each image, of which ``ekd`` is the weighted mean; without gradients."""


class SiteDistiller:
    """One site's distillation in one round: first :meth:`explore`, then the loss of every batch.

    Parameters
    ----------
    student : DistillationStudent
        Trained by the caller.
    teacher : nn.Module
        Frozen, from images in [0, 1] to features: :class:`fedmed.distillation.Teacher` or :class:`SelfTeacher`.
    prompt : FourierPrompt
        A reconstruction; frozen except inside :meth:`explore`.
    main_loss : nn.Module
        From logits and targets to a scalar: whatever the network is trained with.
    class_counts : sequence of K int
        The site's training images; they stay here.
    statistics : (mean, std)
        Normalisation of the student's images.
    settings : DistillationSettings
        Weights.
    round_number, rounds : int
        From 1.
    cache : FeatureCache, optional
        For views that repeat.

    Notes
    -----
    ``L = L_main(h(z), y) + a L_BSM(h_t(P(z)), y) + lambda mean(2 - 2 cos(P(z), f(FPG(x))))``. A site with one image or
    one class trains with ``L_main`` alone, as does a batch of one.
    """

    def __init__(
        self,
        student: DistillationStudent,
        teacher: nn.Module,
        prompt: FourierPrompt,
        main_loss: nn.Module,
        *,
        class_counts: Sequence[int],
        statistics: Statistics,
        settings: DistillationSettings,
        round_number: int = 1,
        rounds: int = 1,
        cache: FeatureCache | None = None,
    ) -> None:
        self.student, self.teacher, self.main_loss = student, teacher, main_loss
        self.prompt = prompt.requires_grad_(False).eval()
        self.statistics, self.settings, self.cache = statistics, settings, cache
        device = next(student.parameters()).device
        self.weight = ramp_weight(settings.weight, round_number, rounds, settings.ramp_from)
        self.is_active = sum(class_counts) > 1 and sum(count > 0 for count in class_counts) > 1
        self._auxiliary_loss = MaskedBalancedSoftmax(class_counts).to(device) if self.is_active else None
        beta = choose_beta(round_number, rounds) if settings.class_balanced else 0.0
        self._class_weights = class_weights(class_counts, beta).to(device) if beta > 0 else None
        self._version = self.prompt.digest()

    def explore(
        self, batches: Iterable[Tensor], settings: PromptSettings, stats: dict[str, Tensor] | None = None
    ) -> ExploreResult:
        """Learn the prompt, a reconstruction, with student and teacher frozen.

        Parameters
        ----------
        batches : iterable of Tensor
            Normalised images, (B,3,H,W), one batch for each step, as many as the round has steps.
        settings : PromptSettings
            How.
        stats : dict, optional
            With the objective ``stats``.
        """
        if not self.is_active:
            return ExploreResult()
        pixels = (restore_pixels(x_B3HW, self.statistics) for x_B3HW in batches)
        disagreement = self._disagree if settings.gamma > 0 else None
        result = explore(
            self.prompt,
            self.teacher,
            pixels,
            settings,
            disagreement=disagreement,
            student=self.student,
            statistics=stats,
        )
        self._version = self.prompt.digest()
        return result

    def fill_cache(self, keys: Sequence[int], load: Callable[[Sequence[int]], Tensor]) -> None:
        """Compute the teacher's features of all views that repeat; ``load`` gives their normalised images."""
        if self.cache is not None and self.is_active and self.weight > 0:
            self.cache.fill(keys, self._version, lambda chunk: self.teach(load(chunk)))

    @torch.no_grad()
    def teach(self, x_B3HW: Tensor) -> Tensor:
        """Return the teacher's features, (B,D), of the student's normalised images, through the frozen prompt."""
        features: Tensor = self.teacher(self.prompt(restore_pixels(x_B3HW, self.statistics)))
        return features

    def __call__(self, x_B3HW: Tensor, target_B: Tensor, keys: Sequence[int] | None = None) -> LossParts:
        """Return the loss of a batch; call ``backward`` on its total.

        Parameters
        ----------
        x_B3HW : Tensor
            Normalised for the student, on its device.
        target_B : Tensor
            True classes.
        keys : sequence of int, optional
            Which repeating view each image is; only with a cache.
        """
        needs_projection = self.weight > 0 or self._has_auxiliary
        if not self.is_active or not needs_projection or len(x_B3HW) < 2:
            main: Tensor = self.main_loss(self.student(x_B3HW), target_B)
            return LossParts(main, main, None, None)
        outputs = self.student.run(x_B3HW)
        total = main = self.main_loss(outputs.logits, target_B)
        auxiliary = ekd = terms_B = None
        if self._has_auxiliary and outputs.auxiliary is not None and self._auxiliary_loss is not None:
            auxiliary = self._auxiliary_loss(outputs.auxiliary, target_B)
            total = total + self.settings.auxiliary * auxiliary
        if self.weight > 0 and outputs.projected is not None:
            weight_B = None if self._class_weights is None else self._class_weights[target_B]
            terms_B = ekd_terms(outputs.projected, self._find_features(x_B3HW, keys))
            ekd = average_terms(terms_B, weight_B)
            total = total + self.weight * ekd
        return LossParts(total, main, auxiliary, ekd, None if terms_B is None else terms_B.detach())

    @torch.no_grad()
    def measure(self, x_B3HW: Tensor, keys: Sequence[int] | None = None) -> Tensor:
        """Return the distance of each image, (B,) in [0, 4], for the student as it is now, in eval mode."""
        with held_still(self.student):
            projected = self.student.run(x_B3HW).projected
        assert projected is not None, "in eval mode one image is enough"
        return ekd_terms(projected, self._find_features(x_B3HW, keys))

    @property
    def _has_auxiliary(self) -> bool:
        return self.student.auxiliary is not None and self.settings.auxiliary > 0

    def _find_features(self, x_B3HW: Tensor, keys: Sequence[int] | None) -> Tensor:
        if self.cache is None or keys is None:
            return self.teach(x_B3HW)
        return self.cache.fetch(keys, self._version, lambda: self.teach(x_B3HW))

    def _disagree(self, pixels_B3HW: Tensor, features_BD: Tensor) -> Tensor:
        outputs = self.student.run(normalize(pixels_B3HW, self.statistics))
        assert outputs.projected is not None, "the student is in eval mode while the prompt is learned"
        return ekd_loss(outputs.projected, features_BD)

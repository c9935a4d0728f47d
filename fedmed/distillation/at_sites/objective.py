"""What a site minimises in a round of distillation, as :class:`fedmed.training.objective.LocalObjective`.

First the prompt, a reconstruction, is learned with the student frozen; then it is frozen, and the student learns.
Letters: B batch, K classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedmed.aggregation.divergence_rule import MAS_WEIGHT, compute_divergence
from fedmed.config import FoproPlan, Plan
from fedmed.data import (
    NUM_VIEWS,
    ImagePart,
    count_classes,
    draw_views,
    make_eval_transform,
    make_train_transform,
    make_view_transform,
    normalisation,
)
from fedmed.data.batches import draw_batches
from fedmed.distillation.at_sites.ekd import (
    MIN_IMAGES_TO_SHARE_PROMPT,
    DistillationSettings,
    DistillationStudent,
    SiteDistiller,
)
from fedmed.distillation.at_sites.losses import ClassMeans
from fedmed.distillation.prompt.fourier_prompt import FourierPrompt, summarize_gain
from fedmed.distillation.prompt.learning import PromptSettings
from fedmed.distillation.teachers.cache import get_teacher
from fedmed.distillation.teachers.feature_cache import FeatureCache
from fedmed.distillation.teachers.self_teacher import SelfTeacher
from fedmed.distillation.teachers.teacher import Teacher
from fedmed.losses import build_loss
from fedmed.seeding import make_rng, seeded_torch
from fedmed.storage.records import GainBand
from fedmed.training.objective import Keys, ObjectiveReport

_FEATURE_BYTES = 2
_CHUNK = 64


class _MainLoss(nn.Module):
    """The training's own loss in full precision, with the image weights of the batch at hand."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.weights_B: Tensor | None = None

    def forward(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        with torch.autocast(logits_BK.device.type, enabled=False):
            result: Tensor = self.loss(logits_BK.float(), target_B, self.weights_B)
        return result


class DistillationObjective:
    """The distillation of one site in one round.

    Parameters
    ----------
    model : nn.Module
        A :class:`DistillationStudent`, on its device.
    part : ImagePart
        The site's training images.
    plan : Plan
        With ``fopro``. Image weights act through its loss alone.
    site : str
        Part of the names of random streams.
    round_number : int
        From 1.
    device : torch.device
        Where to compute.
    prompt : FourierPrompt
        A reconstruction; changed by :meth:`begin` alone.
    """

    def __init__(
        self,
        model: nn.Module,
        part: ImagePart,
        plan: Plan,
        *,
        site: str,
        round_number: int,
        device: torch.device,
        prompt: FourierPrompt,
    ) -> None:
        assert plan.fopro is not None, "the plan has a teacher"
        assert isinstance(model, DistillationStudent), "and its model is a student"
        self.part, self.plan, self.fopro, self.site, self.round = part, plan, plan.fopro, site, round_number
        self.device, self.prompt = device, prompt.to(device)
        class_counts = count_classes(part, len(plan.classes))
        self._main = _MainLoss(build_loss(plan.loss, class_counts).to(device))
        self._transform = make_train_transform(plan.augmentation, plan.image_size)
        teacher = _make_teacher(model, plan).to(device)
        self._views = make_view_transform(plan.augmentation, plan.image_size) if self._repeats else None
        self.distiller = SiteDistiller(
            model,
            teacher,
            self.prompt,
            self._main,
            class_counts=class_counts,
            statistics=normalisation(plan.augmentation),
            settings=DistillationSettings(
                weight=self.fopro.weight,
                auxiliary=1.0 if self.fopro.auxiliary else 0.0,
                class_balanced=self.fopro.class_balanced,
                ramp_from=self.fopro.ramp_from,
            ),
            round_number=round_number,
            rounds=plan.rounds,
            cache=_take_cache(site, plan, part, teacher.num_features) if self._repeats else None,
        )
        self._bands: list[float | None] | None = None
        self._before: list[float | None] | None = None
        self._during = ClassMeans(len(plan.classes))
        self._ekd, self._num_images = torch.zeros((), dtype=torch.float64, device=device), 0

    @property
    def _learns(self) -> bool:
        prompt = self.fopro.prompt
        if self.fopro.teacher.is_self:
            return False
        return self.fopro.weight > 0 and prompt.mode != "none" and prompt.steps + prompt.first_steps > 0

    @property
    def _repeats(self) -> bool:
        """Whether the views of an image repeat so often, while the prompt stays, that the teacher is saved work."""
        num_views = NUM_VIEWS.get(self.plan.augmentation)
        if num_views is None or self.fopro.prompt.mode == "latent" or self.fopro.cache_mib == 0:
            return False
        if self.fopro.teacher.is_self:  # it is another one in every round
            return False
        epochs = self.plan.training.epochs_per_round * (1 if self._learns else self.plan.rounds)
        return epochs > num_views

    def begin(self) -> None:
        """Learn the prompt, a reconstruction, and compute what must be known before the student learns.

        That is the features of all views that repeat and, where it is asked for, the distances of the global model.
        """
        settings = make_prompt_settings(self.fopro)
        steps = settings.steps_in(self.round)
        if self._learns and steps and self.distiller.is_active and self.distiller.weight > 0:
            load = make_eval_transform(self.plan.augmentation, self.plan.image_size)
            rng = make_rng(self.plan.seed, self.site, self.round, "explore")
            batches = draw_batches(rng, np.arange(len(self.part)), self.plan.training.batch_size, steps)
            with seeded_torch(self.plan.seed, self.site, self.round, "explore"):
                result = self.distiller.explore(
                    (load(self.part.images(batch)).to(self.device) for batch in batches), settings
                )
            if len(self.part) >= MIN_IMAGES_TO_SHARE_PROMPT:
                self._bands = [band["gain"] for band in result.bands]
        if self._views is not None:
            num_views = NUM_VIEWS[self.plan.augmentation]
            self.distiller.fill_cache(range(len(self.part) * num_views), self._load_views)
        if self.plan.divergence != "none" and self.distiller.is_active:
            self._before = self._measure_distances()

    def load(self, images: Sequence[Tensor], indices: Sequence[int]) -> tuple[Tensor, Keys | None]:
        """Return a batch, (B,3,S,S), as the training recipe draws it, and which views they are where these repeat."""
        if self._views is None:
            return self._transform(list(images)), None
        views = draw_views(self.plan.augmentation, len(images))
        num_views = NUM_VIEWS[self.plan.augmentation]
        keys = [index * num_views + view for index, view in zip(indices, views.tolist(), strict=True)]
        return self._views(images, views), keys

    def loss(self, x_BCHW: Tensor, target_B: Tensor, weights_B: Tensor | None, keys: Keys | None) -> Tensor:
        """Return the loss of a batch, a scalar."""
        self._main.weights_B = weights_B
        parts = self.distiller(x_BCHW, target_B, keys)
        if parts.ekd is not None:
            self._ekd += parts.ekd.detach() * len(x_BCHW)
            self._num_images += len(x_BCHW)
        if self._before is not None and parts.distances is not None:
            self._during.add(parts.distances, target_B)
        return parts.total

    def report(self) -> ObjectiveReport:
        """Return what the site tells of its distillation in this round; what there is none of is left out.

        Returns
        -------
        dict
            ``ekd``, the mean distance of features, before its weight; ``prompt_bands``, the learned prompt's gain by
            band of frequencies, unless it stays at the site; r_k of :mod:`fedmed.aggregation.divergence_rule`, where
            it is asked for.
        """
        told: dict[str, float | list[float | None]] = {}
        if self._num_images:
            told["ekd"] = float(self._ekd) / self._num_images
        if self._bands is not None:
            told["prompt_bands"] = self._bands
        if self._before is not None:
            is_inverse = self.plan.divergence == "inverse"
            divergence = compute_divergence(self._before, self._during.to_list(), inverse=is_inverse)
            if divergence is not None:
                told[MAS_WEIGHT] = divergence
        return told

    def _measure_distances(self) -> list[float | None]:
        """Return the mean distance by class of the model that came, over all images without augmentation."""
        load = make_eval_transform(self.plan.augmentation, self.plan.image_size)
        means = ClassMeans(len(self.plan.classes))
        for first in range(0, len(self.part), _CHUNK):
            indices = range(first, min(first + _CHUNK, len(self.part)))
            x_B3HW = load(self.part.images(indices)).to(self.device, memory_format=torch.channels_last)
            # The first view is the image as it is.
            keys = None if self._views is None else [index * NUM_VIEWS[self.plan.augmentation] for index in indices]
            labels_B = self.part.labels[first : indices.stop].to(self.device)
            means.add(self.distiller.measure(x_B3HW, keys), labels_B)
        return means.to_list()

    def _load_views(self, keys: Sequence[int]) -> Tensor:
        assert self._views is not None, "the views repeat"
        num_views = NUM_VIEWS[self.plan.augmentation]
        images = self.part.images([key // num_views for key in keys])
        return self._views(images, torch.tensor([key % num_views for key in keys])).to(self.device)


def _make_teacher(student: DistillationStudent, plan: Plan) -> Teacher | SelfTeacher:
    """Return the plan's teacher; for ``self`` a copy of the network as it came."""
    assert plan.fopro is not None, "the plan has a teacher"
    if plan.fopro.teacher.is_self:
        return SelfTeacher(student.model, normalisation(plan.augmentation))
    return get_teacher(plan.fopro.teacher)


def make_prompt_settings(fopro: FoproPlan) -> PromptSettings:
    """Return how a plan's prompt, a reconstruction, is learned."""
    prompt = fopro.prompt
    return PromptSettings(
        options=prompt.options,
        objective=prompt.objective,
        bn=prompt.bn,
        beta=prompt.beta,
        rho=prompt.rho,
        gamma=prompt.gamma,
        lr=prompt.lr,
        steps=prompt.steps,
        first_steps=prompt.first_steps,
    )


def summarize_static(prompt: FourierPrompt, image_size: int) -> list[GainBand] | None:
    """Return the gain by band of a static prompt, a reconstruction; None for others, which depend on the image."""
    if prompt.mode != "static":
        return None
    return summarize_gain(prompt.gain(torch.zeros(1, 3, image_size, image_size)))


_caches: dict[str, tuple[ImagePart, FeatureCache]] = {}


def _take_cache(site: str, plan: Plan, part: ImagePart, num_features: int) -> FeatureCache:
    """Return the features that this process has for a site's images; the oldest go when there is no more room."""
    assert plan.fopro is not None, "the plan has a teacher"
    name = site.split(" ", maxsplit=1)[0]  # a site's own model, "NAME local", sees the same images
    key = f"{name} {plan.image_size} {plan.augmentation} {plan.fopro.teacher!r}"
    found = _caches.pop(key, None)
    if found is None or found[0] is not part:
        wanted = len(part) * NUM_VIEWS[plan.augmentation] * num_features * _FEATURE_BYTES / 2**20
        while _caches and _total_mib() + wanted > plan.fopro.cache_mib:
            _caches.pop(next(iter(_caches)))
        found = part, FeatureCache(min(wanted, plan.fopro.cache_mib))
    _caches[key] = found
    return found[1]


def _total_mib() -> float:
    return sum(cache.max_bytes for _, cache in _caches.values()) / 2**20

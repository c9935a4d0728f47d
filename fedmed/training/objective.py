"""What a site's training minimises: the seam for whatever learns from more than the labels.

Letters: B batch, C H W image, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fedmed.config import Plan
from fedmed.data import ImagePart, count_classes, make_train_transform
from fedmed.losses import build_loss

Keys = list[int]
"""What an objective calls the images of a batch, where it must know them again."""
ObjectiveReport = Mapping[str, float | list[float | None]]
"""Entries of a site's report."""


class LocalObjective(Protocol):
    """The objective of one site in one round; :func:`fedmed.training.fit.fit` calls :meth:`begin` once, first."""

    def begin(self) -> None:
        """Do what must be done before the first step, outside the random stream of the steps."""

    def load(self, images: Sequence[Tensor], indices: Sequence[int]) -> tuple[Tensor, Keys | None]:
        """Return a batch, (B,C,S,S), as the training recipe draws it, and how :meth:`loss` knows its images.

        Parameters
        ----------
        images : sequence of B Tensor
            Of the site's training part.
        indices : sequence of B int
            Their places in it.
        """

    def loss(self, x_BCHW: Tensor, target_B: Tensor, weights_B: Tensor | None, keys: Keys | None) -> Tensor:
        """Return the loss of a batch, a scalar; call ``backward`` on it.

        Parameters
        ----------
        x_BCHW, target_B : Tensor
            On the device of the training.
        weights_B : Tensor, optional
            Weights of the images.
        keys : list of int, optional
            From :meth:`load`.
        """

    def report(self) -> ObjectiveReport:
        """Return what the site tells of the round beside its mean loss."""


class MakeObjective(Protocol):
    """Makes the objective of one site in one round, for a model that is on its device and in train mode."""

    def __call__(
        self, model: nn.Module, part: ImagePart, plan: Plan, *, site: str, round_number: int, device: torch.device
    ) -> LocalObjective:
        """Return the objective; parameters as of :func:`fedmed.training.fit.fit`."""


class PlainObjective:
    """The plan's loss between the model's logits and the labels.

    Parameters
    ----------
    model : nn.Module
        On its device; logits (B,K) from images (B,C,S,S).
    part : ImagePart
        The site's training images.
    plan : Plan
        Names loss and recipe.
    site : str
        Of no meaning here.
    round_number : int
        Of no meaning here.
    device : torch.device
        Where to compute.
    """

    def __init__(
        self, model: nn.Module, part: ImagePart, plan: Plan, *, site: str, round_number: int, device: torch.device
    ) -> None:
        self._model = model
        self._loss = build_loss(plan.loss, count_classes(part, len(plan.classes))).to(device)
        self._transform = make_train_transform(plan.augmentation, plan.image_size)

    def begin(self) -> None:
        """Do nothing."""

    def load(self, images: Sequence[Tensor], indices: Sequence[int]) -> tuple[Tensor, Keys | None]:
        """Return the batch, (B,C,S,S), and no keys."""
        return self._transform(list(images)), None

    def loss(self, x_BCHW: Tensor, target_B: Tensor, weights_B: Tensor | None, keys: Keys | None) -> Tensor:
        """Return the loss, computed in full precision."""
        logits_BK = self._model(x_BCHW)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            result: Tensor = self._loss(logits_BK.float(), target_B, weights_B)
        return result

    def report(self) -> ObjectiveReport:
        """Return nothing."""
        return {}

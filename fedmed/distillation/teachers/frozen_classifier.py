"""The model ``frozen_teacher``: a frozen teacher with one trainable layer.

A baseline that every distillation has to beat, and a choice for a hospital with very few images. Only the layer is
trained and travels.

Letters: B batch, H W space, K classes.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedmed.config import TeacherPlan
from fedmed.data import normalisation
from fedmed.distillation.pixels import Statistics, restore_pixels
from fedmed.distillation.teachers.cache import get_teacher
from fedmed.distillation.teachers.teacher import Teacher
from fedmed.errors import ConfigError


class FrozenTeacherClassifier(nn.Module):
    """A frozen teacher with one trainable linear layer: the baseline that every distillation has to beat.

    Parameters
    ----------
    teacher : Teacher
        Frozen; its tensors are in the state dict, so that the model is whole.
    num_classes : int
        K.
    statistics : (mean, std)
        Normalisation of the images that it is given.
    """

    frozen_parts: ClassVar = ("teacher",)
    """Never change, and every process has them; see :class:`fedmed.training.network.Network`."""

    def __init__(self, teacher: Teacher, num_classes: int, statistics: Statistics) -> None:
        super().__init__()
        self.teacher, self.statistics = teacher, statistics
        self.head = nn.Linear(teacher.num_features, num_classes)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return logits, (B,K), of normalised images."""
        with torch.no_grad():
            features = self.teacher(restore_pixels(x_B3HW, self.statistics))
        logits: Tensor = self.head(features)
        return logits


def build_frozen_teacher(
    num_classes: int,
    *,
    teacher: str = "efficientnet_lite0",
    source: Literal["package", "torchvision", "random"] = "package",
    layout: Literal["torchvision", "timm"] = "torchvision",
    image_size: int = 96,
    seed: int = 0,
    augmentation: str = "flips",
) -> nn.Module:
    """Build the network.

    Parameters
    ----------
    num_classes : int
        K.
    teacher, source, layout, image_size, seed
        As in :class:`fedmed.config.TeacherPlan`.
    augmentation : str
        The run's recipe, whose normalisation of the images is undone before the teacher's own.

    Raises
    ------
    TeacherUnavailableError
        If the teacher is not here.
    ConfigError
        If an option is not allowed.
    """
    if source not in ("package", "torchvision", "random"):
        raise ConfigError(f"'source' is {source!r}. Allowed: package, torchvision, random.")
    if layout not in ("torchvision", "timm"):
        raise ConfigError(f"'layout' is {layout!r}. Allowed: torchvision, timm.")
    if type(image_size) is not int or image_size < 32 or type(seed) is not int or seed < 0:
        raise ConfigError(
            f"'image_size' is {image_size!r} and 'seed' {seed!r}. Allowed: whole numbers from 32 and from 0."
        )
    plan = TeacherPlan(name=teacher, source=source, layout=layout, image_size=image_size, seed=seed)
    return FrozenTeacherClassifier(get_teacher(plan), num_classes, normalisation(augmentation))

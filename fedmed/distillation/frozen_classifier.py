"""The model ``frozen_teacher``: a frozen teacher with one trainable layer.

A baseline that every distillation has to beat, and a choice for a hospital with very few images. Only the layer is
trained and travels.
"""

from typing import Literal

from torch import nn

from fedmed.config import TeacherPlan
from fedmed.data import normalisation
from fedmed.distillation.feature_distillation import FrozenTeacherClassifier
from fedmed.distillation.known_teachers import get_teacher
from fedmed.errors import ConfigError
from fedmed.models import MODELS

NAME = "frozen_teacher"


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


if NAME not in MODELS.names():
    MODELS.register(NAME)(build_frozen_teacher)

"""The networks, by name.

>>> from fedmed.models import create_model, list_models
>>> model = create_model("adsr_resnet18", num_classes=7, gate="depthwise")
"""

from functools import partial
from typing import Any

from torch import nn

from fedmed.errors import ConfigError
from fedmed.extensions import build_extension, is_path
from fedmed.models.adsr_resnet import ARCHITECTURES, adsr_resnet, insert_adsr
from fedmed.models.bags.insert import convert_depthwise
from fedmed.models.came import came
from fedmed.models.erohprf import (
    SHUFFLENET_WIDTHS,
    build_mixnet_s_erohprf,
    build_mobilenet_v2_erohprf,
    build_shufflenet_v2_erohprf,
)
from fedmed.models.hemf import hemf
from fedmed.models.hifuse import VARIANTS, hifuse
from fedmed.models.plain import build_mobilenet_v2, build_resnet18
from fedmed.registry import Registry

__all__ = ["convert_depthwise", "create_model", "insert_adsr", "list_models"]

MODELS: Registry[nn.Module] = Registry("model")
MODELS.register("resnet18")(build_resnet18)
MODELS.register("mobilenet_v2")(build_mobilenet_v2)
for _depth in ARCHITECTURES:
    MODELS.register(f"adsr_resnet{_depth}")(partial(adsr_resnet, _depth))
MODELS.register("mobilenet_v2_erohprf")(build_mobilenet_v2_erohprf)
for _size in SHUFFLENET_WIDTHS:
    MODELS.register(f"shufflenet_v2_{_size}_erohprf")(partial(build_shufflenet_v2_erohprf, _size))
MODELS.register("mixnet_s_erohprf")(build_mixnet_s_erohprf)
MODELS.register("hemf")(hemf)
MODELS.register("came")(came)
for _variant in VARIANTS:
    MODELS.register(f"hifuse_{_variant}")(partial(hifuse, _variant))
# A network with a teacher inside is built where teachers are, which stands above this package.
MODELS.register_lazily("frozen_teacher", "fedmed.distillation.teachers.frozen_classifier:build_frozen_teacher")


def create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Build a network with new weights, drawn from torch's global generator.

    Parameters
    ----------
    name : str
        One of :func:`list_models`, or the import path of a builder from outside fedmed,
        ``package.module:function``. It gets ``num_classes`` and, as keyword-only parameters, the options.
    num_classes : int
        K, at least 2: number of logits.
    **options
        Options of that network; lists may stand for tuples, as YAML gives them.

    Returns
    -------
    nn.Module
        In train mode. Maps normalised float32 images, (B,3,H,W), to logits, (B,K).

    Raises
    ------
    ConfigError
        If the name or an option is unknown, or a value is not allowed.
    ExtensionError, ExtensionFailedError
        If what an import path names is not installed, not allowed here, or builds no network.
    """
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 2:
        raise ConfigError(f"'num_classes' is {num_classes!r}. Allowed: a whole number from 2.")
    if is_path(name):
        return build_extension("model", name, nn.Module, num_classes, **options)
    return MODELS.build(name, num_classes, **options)


def list_models() -> list[str]:
    """Return the names of all networks, sorted."""
    return MODELS.names()

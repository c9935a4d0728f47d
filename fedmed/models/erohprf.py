"""Efficient networks whose depthwise convolutions are bags: MobileNetV2, ShuffleNetV2 and MixNet-S with ERoHPRF.

Sources: ERoHPRF and its released code as in :mod:`fedmed.models.bags.bag`; Sandler et al., "MobileNetV2", CVPR 2018; Ma
et al., "ShuffleNet V2", ECCV 2018; Tan and Le, "MixConv", BMVC 2019. Hosts and tensor names are torchvision's and
timm's. Stem, pointwise convolutions, their BatchNorms, squeeze-and-excitation, head and activations are the host's.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import nn
from torchvision.models import ShuffleNetV2

from fedmed.errors import ConfigError, suggest_nearest
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d
from fedmed.models.bags.insert import Levels, convert_depthwise, levels_up_to_kernel
from fedmed.models.blocks.layers import check_choice, check_number

DEFAULT_LEVELS = (3, 5, 7)
BAG_OPTIONS = tuple(
    name
    for name in inspect.signature(HeterogeneousPyramidConv2d).parameters
    if name not in ("in_channels", "out_channels", "stride", "groups")
)
SHUFFLENET_WIDTHS = {
    "x0_5": (24, 48, 96, 192, 1024),
    "x1_0": (24, 116, 232, 464, 1024),
    "x1_5": (24, 176, 352, 704, 1024),
    "x2_0": (24, 224, 488, 976, 2048),
}
"""Stem, three stages and head, as ERoHPRF's released code has them."""
TORCHVISION_X2_0 = (24, 244, 488, 976, 2048)
"""As the ShuffleNetV2 paper and torchvision have it."""


def initialize_as_mobilenet(model: nn.Module) -> None:
    """Initialise convolutions with N(0, 2 / (kh kw O)) and linear layers with N(0, 0.01^2), biases with 0.

    BatchNorms stay as they are. Draws from torch's global generator.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # PyTorch's fan out of a weight (O,I/G,kh,kw) is kh kw O, whatever the groups.
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def insert_bags(host: nn.Module, levels: Levels, options: dict[str, Any], more: Sequence[str] = ()) -> nn.Module:
    """Replace the host's depthwise convolutions, in place, after a check of the options.

    Parameters
    ----------
    host : nn.Module
        With new weights.
    levels : sequence of int, or callable
        Where ``options`` has no ``levels``.
    options : dict
        Of :class:`fedmed.models.bags.bag.HeterogeneousPyramidConv2d`.
    more : sequence of str
        Options that the builder took itself, for the message.

    Raises
    ------
    ConfigError
        If an option is unknown or has a value that is not allowed.
    """
    for option in options:
        if option not in BAG_OPTIONS:
            allowed = sorted((*BAG_OPTIONS, *more))
            raise ConfigError(
                f"This network has no option '{option}'.{suggest_nearest(option, allowed)} "
                f"Allowed: {', '.join(allowed)}."
            )
    return convert_depthwise(host, **{"levels": levels, **options})


def build_mobilenet_v2_erohprf(
    num_classes: int, *, width_mult: float = 1.0, dropout: float = 0.0, **options: Any
) -> nn.Module:
    """Build MobileNetV2 with 17 bags.

    Parameters
    ----------
    num_classes : int
        K.
    width_mult : float
        Factor of the host's widths, which are rounded to multiples of 8.
    dropout : float
        Probability in front of the classifier, from 0 and below 1. The published form has none.
    **options
        Of every bag: ``levels``, ``families``, ``norm``, ``bn_momentum``, ``bn_eps``, ``gamma_init``, ``form`` and
        ``allow_repeated``; see :class:`fedmed.models.bags.bag.HeterogeneousPyramidConv2d`.

    Raises
    ------
    ConfigError
        If an option is unknown or has a value that is not allowed.
    """
    check_number("width_mult", width_mult)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"'dropout' is {dropout!r}. Allowed: a number from 0 and below 1.")
    host = torchvision.models.MobileNetV2(num_classes, width_mult, dropout=dropout)
    model = insert_bags(host, DEFAULT_LEVELS, options, more=("width_mult", "dropout"))
    initialize_as_mobilenet(model)
    return model


def build_shufflenet_v2_erohprf(size: str, num_classes: int, *, widths: str = "official", **options: Any) -> nn.Module:
    """Build ShuffleNetV2 with 19 bags, initialised as PyTorch does.

    Parameters
    ----------
    size : {"x0_5", "x1_0", "x1_5", "x2_0"}
        Which of the four networks.
    num_classes : int
        K.
    widths : {"official", "torchvision"}
        Of ``x2_0``, the first stage has 224 channels in ERoHPRF's released code, but 244 in the ShuffleNetV2 paper and
        torchvision. The other sizes are the same in both.
    **options
        Of every bag, as for :func:`build_mobilenet_v2_erohprf`.

    Raises
    ------
    ConfigError
        If an option is unknown or has a value that is not allowed.
    """
    check_choice("widths", widths, ("official", "torchvision"))
    chosen = TORCHVISION_X2_0 if (size, widths) == ("x2_0", "torchvision") else SHUFFLENET_WIDTHS[size]
    host = ShuffleNetV2([4, 8, 4], list(chosen), num_classes)
    return insert_bags(host, DEFAULT_LEVELS, options, more=("widths",))


def build_mixnet_s_erohprf(num_classes: int, **options: Any) -> nn.Module:
    """Build timm's MixNet-S with 43 bags.

    Parameters
    ----------
    num_classes : int
        K.
    **options
        Of every bag, as for :func:`build_mobilenet_v2_erohprf`. Without ``levels`` a group of channels whose kernel had
        side k has the levels 3, 5, …, k, as published; with it, all have the same.

    Raises
    ------
    ConfigError
        If an option is unknown or has a value that is not allowed.
    """
    import timm  # noqa: PLC0415  (a second or more, for this network alone)

    model = insert_bags(timm.create_model("mixnet_s", num_classes=num_classes), levels_up_to_kernel, options)
    initialize_as_mobilenet(model)
    return model


def insert_dense_bags(model: nn.Module, levels: Sequence[int], **options: Any) -> None:
    """Replace the dense 3x3 convolutions of a residual network, with their BatchNorms, by dense bags; in place.

    The stem, strided shortcuts and ADSR modules stay. New weights: Kaiming normal, fan out.

    Parameters
    ----------
    model : nn.Module
        Whose blocks are named as torchvision's are.
    levels, **options
        Of :class:`fedmed.models.bags.bag.HeterogeneousPyramidConv2d`.

    Raises
    ------
    ConfigError
        If an option is not allowed, or such a convolution cannot be replaced.
    """

    def is_chosen(name: str, convolution: nn.Conv2d) -> bool:
        in_block = name.startswith("layer") and ".adsr." not in name
        return in_block and convolution.kernel_size == (3, 3) and convolution.groups == 1

    convert_depthwise(model, levels, is_chosen, **options)
    for bag in model.modules():
        if isinstance(bag, HeterogeneousPyramidConv2d):
            for branch in bag.list_branches():
                nn.init.kaiming_normal_(branch.conv.weight, mode="fan_out", nonlinearity="relu")

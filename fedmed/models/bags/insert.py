"""Puts bags into other networks: finds convolutions with the BatchNorm that follows each, and replaces the pair."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedmed.errors import ConfigError
from fedmed.models.bags.bag import HeterogeneousPyramidConv2d
from fedmed.reparameterization.flow import Flow, watch
from fedmed.reparameterization.places import PLAIN_SUBCLASSES, identify, keeps_activation

Predicate = Callable[[str, nn.Conv2d], bool]
Levels = Sequence[int] | Callable[[nn.Conv2d], Sequence[int]]


@dataclass(frozen=True)
class ConvolutionPlace:
    """Convolutions that a BatchNorm follows.

    Parameters
    ----------
    convolutions : tuple of str
        Names; more than one if their outputs are concatenated before the BatchNorm (mixed convolutions).
    norm : str
        Name of the BatchNorm.
    """

    convolutions: tuple[str, ...]
    norm: str


def is_depthwise(_name: str, convolution: nn.Conv2d) -> bool:
    """Return whether every input channel has kernels of its own, of more than one tap: the default choice."""
    return convolution.groups == convolution.in_channels > 1 and convolution.kernel_size != (1, 1)


def levels_up_to_kernel(convolution: nn.Conv2d) -> tuple[int, ...]:
    """Return the levels 3, 5, … up to the side of the present kernel, as published for mixed convolutions."""
    return tuple(range(3, convolution.kernel_size[0] + 1, 2))


def convert_depthwise(
    model: nn.Module,
    levels: Levels = (3, 5, 7),
    predicate: Predicate | None = None,
    *,
    image_shape: Sequence[int] = (3, 224, 224),
    **options: Any,
) -> nn.Module:
    """Replace convolutions, each together with the BatchNorm that follows it, by bags; in place.

    Parameters
    ----------
    model : nn.Module
        Any convolutional network, such as those of torchvision and timm, on any device.
    levels : sequence of int, or callable
        Of every bag, or ``levels(convolution)``, for example :func:`levels_up_to_kernel`.
    predicate : callable, optional
        ``predicate(name, convolution)`` chooses. Default: every depthwise convolution that can be replaced; the others
        stay. With a predicate all that it chooses must be replaceable. A bag has the stride and groups of what it
        replaces, so dense convolutions become dense bags.
    image_shape : sequence of int
        (channels, H, W) of an image that the model takes.
    **options
        Further options of :class:`fedmed.models.bags.bag.HeterogeneousPyramidConv2d`.

    Returns
    -------
    nn.Module
        The same object. Bags have new weights, in the mode, precision and place of the convolution. Where a BatchNorm
        stood there is an identity, or what a derived BatchNorm did beside normalising, such as timm's activation.

    Raises
    ------
    ConfigError
        If nothing is chosen, something that the predicate chose cannot be replaced, or an option is not allowed.

    Examples
    --------
    >>> model = convert_depthwise(torchvision.models.mobilenet_v2(), bn_momentum=0.1)
    >>> model = convert_depthwise(torchvision.models.resnet18(), (3,), lambda name, c: c.kernel_size == (3, 3))
    """
    places, refused = find_places(model, predicate, image_shape)
    if not places or (predicate is not None and refused):
        reasons = [f"'{name}': {reason}" for name, reason in refused.items()]
        shown = "; ".join(reasons[:3]) + ("; …" if len(reasons) > 3 else "")
        raise ConfigError(
            f"No bag can stand for {'these' if refused else 'any'} of the model's convolutions"
            f"{': ' + shown if shown else ', because none was chosen'}. "
            "Needed: a square kernel of odd side from 3, no dilation, and a BatchNorm right behind it."
        )
    modules = dict(model.named_modules())
    replacements: dict[int, nn.Module] = {}
    for place in places:
        for name in place.convolutions:
            convolution = modules[name]
            assert isinstance(convolution, nn.Conv2d), "find_places names convolutions"
            replacements[id(convolution)] = make_bag(convolution, levels, **options)
        norm = modules[place.norm]
        replacements[id(norm)] = make_remainder(norm)
    # A module may have several names; every one gets the replacement.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in replacements:
            parent_name, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent_name), own_name, replacements[id(module)])
    return model


def make_remainder(norm: nn.Module) -> nn.Module:
    """Return what a derived BatchNorm does beside normalising: its modules in order, as timm's has them."""
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    if len(parts) == 1:
        return parts[0]
    return nn.Sequential(*parts) if parts else nn.Identity()


def make_bag(convolution: nn.Conv2d, levels: Levels, **options: Any) -> HeterogeneousPyramidConv2d:
    """Return a bag with new weights in the stead of a convolution.

    Parameters
    ----------
    convolution : nn.Conv2d
        Gives channels, stride, groups, device, precision and mode.
    levels, **options
        As for :func:`convert_depthwise`.
    """
    chosen = levels(convolution) if callable(levels) else levels
    with torch.device(convolution.weight.device):
        bag = HeterogeneousPyramidConv2d(
            convolution.in_channels,
            convolution.out_channels,
            chosen,
            convolution.stride[0],
            convolution.groups,
            **options,
        )
    return bag.to(convolution.weight.dtype).train(convolution.training)


def find_places(
    model: nn.Module, predicate: Predicate | None = None, image_shape: Sequence[int] = (3, 224, 224)
) -> tuple[list[ConvolutionPlace], dict[str, str]]:
    """Find the convolutions that bags can stand for. The model is not changed.

    Parameters
    ----------
    model, predicate, image_shape
        As for :func:`convert_depthwise`; by default depthwise convolutions are looked at.

    Returns
    -------
    places : list of ConvolutionPlace
        In the order of evaluation.
    refused : dict of str to str
        Names of the chosen convolutions that cannot be replaced, and why.

    Raises
    ------
    ConfigError
        If the model cannot be evaluated on such an image.
    """
    choose = predicate or is_depthwise
    modules = dict(model.named_modules())
    bags = [f"{name}." for name, module in modules.items() if isinstance(module, HeterogeneousPyramidConv2d)]
    chosen = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and not name.startswith(tuple(bags)) and choose(name, module)
    }
    flow = watch_shapes(model, image_shape)
    found: dict[str, ConvolutionPlace] = {}
    refused: dict[str, str] = {}
    for name, convolution in chosen.items():
        reason = why_not(convolution)
        place = find_place(name, flow, modules)
        if reason or isinstance(place, str):
            refused[name] = reason or str(place)
        else:
            found[name] = place
    for name, place in found.items():
        # All that one BatchNorm normalises is replaced, or nothing of it.
        if any(partner not in found for partner in place.convolutions):
            refused[name] = "its output is joined with one that stays"
    return list(dict.fromkeys(place for name, place in found.items() if name not in refused)), refused


def watch_shapes(model: nn.Module, image_shape: Sequence[int]) -> Flow:
    """Evaluate the model once, in eval mode, on shapes alone: on the meta device, which has no numbers.

    Raises
    ------
    ConfigError
        If the model does not take such an image.
    """
    # The copy gets empty tensors, so that no weight is copied.
    blank = {id(tensor): copy_blank(tensor) for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, blank).eval()
    try:
        with torch.device("meta"):
            return watch(twin, torch.empty(1, *image_shape))
    # Of torch: shapes that do not fit, an operation without a meta form. Of the network: what it checks itself.
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"The model cannot be evaluated on an image of shape {tuple(image_shape)} ({error}). Allowed for "
            "'image_shape': channels, height and width that the model takes."
        ) from error


def copy_blank(tensor: Tensor) -> Tensor:
    """Return a tensor of the same kind, shape and precision, on the meta device."""
    blank = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(blank, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank


def why_not(convolution: nn.Conv2d) -> str:
    """Return why no bag can stand for this convolution, whatever follows it; empty if one can."""
    height, width = convolution.kernel_size
    half = (height // 2, width // 2)
    pads_by_half = convolution.padding in (half, "same") or identify(type(convolution)) in PLAIN_SUBCLASSES
    checks = {
        f"its kernel is {height}x{width}": height != width or height % 2 == 0 or height < 3,
        f"its strides are {convolution.stride}": convolution.stride[0] != convolution.stride[1],
        f"its dilation is {convolution.dilation}": convolution.dilation != (1, 1),
        f"its padding is {convolution.padding}, not half of its kernel": not pads_by_half,
        f"its padding is '{convolution.padding_mode}'": convolution.padding_mode != "zeros",
    }
    return next((reason for reason, applies in checks.items() if applies), "")


def find_place(name: str, flow: Flow, modules: Mapping[str, nn.Module]) -> ConvolutionPlace | str:
    """Follow the output of a convolution to its BatchNorm; return the place, or why there is none."""
    if flow.calls.get(name) != 1:
        return f"it is evaluated {flow.calls.get(name, 0)} times"
    value = flow.outputs[name]
    if value.joined is not None and not value.readers:
        value = value.joined
    norm = modules.get(next(iter(value.readers), ""))
    if len(value.readers) != 1 or value.joined is not None or not isinstance(norm, nn.BatchNorm2d):
        return "no BatchNorm alone takes its output"
    (follower,) = value.readers
    if flow.calls[follower] != 1:
        return f"'{follower}', which follows it, is evaluated {flow.calls[follower]} times"
    if type(norm) is not nn.BatchNorm2d and not keeps_activation(norm):
        return f"'{follower}' ({type(norm).__name__}), which follows it, may do more than a BatchNorm"
    return ConvolutionPlace(value.layers, follower)

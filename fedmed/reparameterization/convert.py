"""From the train form of a network to its deploy form, on a copy.

Bags of parallel branches (modules with a method ``to_merged``) become one convolution each. With ``fold_bn=True`` every
BatchNorm that is provably alone with a convolution or linear layer goes into that layer's weight and bias too.

The deploy form computes the same function as the train form *in eval mode* and is for inference only: its parameters
want no gradient, and training it would train another network. ``train()`` on it is harmless where every BatchNorm is
folded; where some stay, and for dropout, it means what it always means.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed.errors import FedmedError
from fedmed.reparameterization.algebra import Kernel, fold_batch_norm, fold_batch_norm_before
from fedmed.reparameterization.places import Place, is_bag, keeps_activation, plan_folding

NOT_ASKED = "BatchNorms are folded only with fold_bn=True"


@dataclass(frozen=True)
class Conversion:
    """A deploy form and how it came about.

    Attributes
    ----------
    model : nn.Module
        The deploy form, in eval mode, without gradients.
    places : tuple of Place
        What was merged, and what was not and why.
    """

    model: nn.Module
    places: tuple[Place, ...]


def reparameterize(model: nn.Module, fold_bn: bool = False, *, example: Tensor | None = None) -> nn.Module:
    """Return the deploy form of a network; see :func:`convert`."""
    return convert(model, fold_bn, example=example).model


def find_places(model: nn.Module, fold_bn: bool = False, *, example: Tensor | None = None) -> list[Place]:
    """Return what :func:`reparameterize` would merge, and what it would not and why; the network is unchanged."""
    return list(convert(model, fold_bn, example=example).places)


def convert(model: nn.Module, fold_bn: bool = False, *, example: Tensor | None = None) -> Conversion:
    """Merge a copy of a network.

    Parameters
    ----------
    model : nn.Module
        Any network, in train or eval mode, also inside ``nn.DataParallel``; it is not changed in any way. BatchNorms
        are merged with their *running* statistics, whatever the mode.
    fold_bn : bool
        Whether BatchNorms outside bags are folded as well.
    example : Tensor, optional
        An input of the network, for finding out which layers follow each other (only with ``fold_bn``). Default: a
        seeded one of 64 pixels a side, or of 224 or 32 where the network does not take that.

    Returns
    -------
    Conversion
        The deploy form has the same module names; a folded BatchNorm becomes ``nn.Identity``, or what it had besides.
        A network that is a bag itself becomes the merged convolution. Nothing to merge is no error, and a second
        conversion changes nothing.

    Notes
    -----
    What stays, always with a reason: a BatchNorm whose input is read by others as well, is no layer's output, or comes
    from a layer that is shared, parametrized, hooked or of an unknown class; one without running statistics; and group,
    layer and instance normalisation. Gates whose factors are computed from the input (as of ADSR) are no layers with
    fixed weights; only the convolutions and BatchNorms inside them are merged.
    """
    merged = copy.deepcopy(model).eval()
    merged.requires_grad_(False)
    # A bag may draw weights that it then replaces; the caller's generator must not notice.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        merged, places = _merge_bags(merged)
        if fold_bn:
            planned = plan_folding(merged, example)
            _fold(merged, [place for place in planned if place.merged])
            places += planned
        else:
            norms = [name for name, module in merged.named_modules() if isinstance(module, _BatchNorm)]
            places += [Place(name, "norm", (name,), False, NOT_ASKED) for name in norms]
    # Again, because new modules begin in train mode.
    return Conversion(merged.eval(), tuple(places))


def _merge_bags(model: nn.Module) -> tuple[nn.Module, list[Place]]:
    """Replace the bags, each under all its names; inside a bag nothing is searched."""
    places: list[Place] = []
    merged: dict[int, nn.Module | None] = {}
    for name, parent, own_name, bag in list(_walk_bags(model)):
        if id(bag) not in merged:
            merged[id(bag)], reason = _try_merging(bag)
            places.append(Place(name, "bag", (name,), not reason, reason))
        layer = merged[id(bag)]
        if layer is None:
            continue
        if parent is None:
            return layer, places
        setattr(parent, own_name, layer)
    return model, places


def _walk_bags(
    module: nn.Module, name: str = "", parent: nn.Module | None = None
) -> Iterator[tuple[str, nn.Module | None, str, nn.Module]]:
    """Yield name, parent, name in the parent, and bag."""
    if is_bag(module):
        yield name, parent, name.rpartition(".")[2], module
        return
    # named_children() would drop the second name of a shared child.
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _walk_bags(child, f"{name}.{child_name}" if name else child_name, module)


def _try_merging(bag: nn.Module) -> tuple[nn.Module | None, str]:
    try:
        layer: nn.Module = bag.to_merged()  # type: ignore[operator]
    except FedmedError as error:
        return None, str(error)
    return layer.eval().requires_grad_(False), ""


def _fold(model: nn.Module, places: list[Place]) -> None:
    modules = dict(model.named_modules())
    norms: set[str] = set()
    for place in places:
        layer = modules[place.name]
        weight, bias = fold_parts([modules[part] for part in place.parts], layer, place.channels)
        dtype = layer.weight.dtype
        layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        norms |= set(place.parts) - {place.name}
    for name in norms:
        parent_name, _, own_name = name.rpartition(".")
        setattr(modules[parent_name], own_name, _remainder(modules[name]))


def fold_parts(parts: list[nn.Module], layer: nn.Module, channels: tuple[int, int] | None = None) -> Kernel:
    """Return weight and bias, float64, of the layer that equals [BatchNorm,] layer [, BatchNorm].

    Parameters
    ----------
    parts : list of nn.Module
        In the order in which they run; the layer is one of them.
    layer : nn.Module
        A convolution or linear layer.
    channels : (int, int), optional
        See :class:`Place`.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    position = next(index for index, part in enumerate(parts) if part is layer)
    for norm in parts[:position]:
        weight, bias = fold_batch_norm_before(norm, weight, bias, groups=getattr(layer, "groups", 1))
    for norm in parts[position + 1 :]:
        weight, bias = fold_batch_norm(weight, bias, norm if channels is None else slice_norm(norm, *channels))
    assert bias is not None, "a norm lies before or behind the layer"
    return weight.double(), bias.double()


def slice_norm(norm: nn.Module, start: int, stop: int) -> nn.Module:
    """Return a BatchNorm of some of the channels of another, in eval mode.

    Parameters
    ----------
    norm : nn.Module
        A BatchNorm with running statistics.
    start, stop : int
        First channel, and the one behind the last.
    """
    part = nn.BatchNorm2d(stop - start, eps=norm.eps, affine=norm.weight is not None)  # type: ignore[arg-type]
    state = {name: value[start:stop] if value.dim() else value for name, value in norm.state_dict().items()}
    part.to(norm.running_mean.device, norm.running_mean.dtype).load_state_dict(state)  # type: ignore[arg-type]
    return part.eval()


def _remainder(norm: nn.Module) -> nn.Module:
    """Return what stays of a folded norm: nothing, or its activation under the name that it had."""
    return nn.Sequential(OrderedDict(norm.named_children())) if keeps_activation(norm) else nn.Identity()

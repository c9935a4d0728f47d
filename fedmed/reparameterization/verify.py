"""Proves that the deploy form of a network computes what its train form does; the numbers go into a :class:`Proof`.

With images: every merged place alone in float64, on what it really gets, and the whole network in float64 and float32.
Without images (a server has none): every merged place alone in float64, on seeded noise. Two networks that agree in
every merged place and are the same elsewhere agree as a whole.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization.class_figures import PerClass, figures_before_and_after
from fedmed.reparameterization.convert import find_places, slice_norm
from fedmed.reparameterization.flow import without_replicas
from fedmed.reparameterization.places import Place, is_bag
from fedmed.reparameterization.proof import (
    BlockProof,
    Comparison,
    Proof,
    compare_logits,
    largest_difference,
)
from fedmed.seeding import derive_seed

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


def verify(
    model: nn.Module,
    merged: nn.Module,
    images: Tensor | Iterable[Tensor],
    labels: Tensor | None = None,
    *,
    places: Sequence[Place] | None = None,
    batch_size: int = 32,
    num_wide: int = 16,
) -> Proof:
    """Compare both forms of a network on images.

    Parameters
    ----------
    model, merged : nn.Module
        Train form, in either mode, and deploy form; both unchanged.
    images : Tensor or iterable of Tensor
        (N,3,H,W), normalised as for the network; or batches of that shape, which are read several times (a list or a
        data loader, no generator). They may come in any floating type.
    labels : Tensor, optional
        (N,), true classes, for the figures by class before and after.
    places : sequence of Place, optional
        As :func:`find_places` gave them; default: found anew.
    batch_size : int
        Images that run at once, if ``images`` is one tensor.
    num_wide : int
        Images for the comparison of the whole networks in float64, the first ones. On a CPU a depthwise convolution in
        float64 costs some twenty times that in float32; the comparison in float32 is over all images.

    Returns
    -------
    Proof
        Not yet required to pass: call :meth:`Proof.require` before a release.

    Raises
    ------
    ReparameterizationError
        If the two networks are no train and deploy form of each other, or there are no images.

    Notes
    -----
    Blocks are compared on the first two images. One copy of one network in float64 is in memory at a time. Both float64
    passes use the weights as they are shipped, rounded to their type once.
    """
    batches = list(torch.split(images, batch_size)) if isinstance(images, Tensor) else images
    first = next(iter(batches), None)
    if first is None or not len(first):
        raise ReparameterizationError("There are no images to compare the two forms on.")
    blocks = _compare_on_images(model, merged, first[:2], merged_places(model, merged, places))
    comparisons: list[Comparison] = []
    per_class: PerClass | None = None
    for precision, dtype in PRECISIONS.items():
        chosen = batches if dtype == torch.float32 else take_images(batches, num_wide)
        before, after = (run_in_eval(network, chosen, dtype) for network in (model, merged))
        comparisons.append(compare_logits(before, after, precision))
        if labels is not None and dtype == torch.float32:
            per_class = figures_before_and_after(labels.cpu(), before, after)
    return Proof("images", tuple(blocks), tuple(comparisons), per_class)


def verify_blocks(
    model: nn.Module, merged: nn.Module, seed: int = 0, *, places: Sequence[Place] | None = None
) -> Proof:
    """Compare every merged place of both forms alone, on seeded inputs in float64.

    Parameters
    ----------
    model, merged : nn.Module
        Train form, in either mode, and deploy form; both unchanged.
    seed : int
        Of the inputs, standard normal.
    places : sequence of Place, optional
        As :func:`find_places` gave them; default: found anew.

    Raises
    ------
    ReparameterizationError
        If the two networks are no train and deploy form of each other.

    Notes
    -----
    A convolution gets two maps of twice its kernel and one more a side, so that border, inside and stride all occur.
    What is not merged has the same weights in both forms, which is checked too.
    """
    blocks = []
    chosen = merged_places(model, merged, places)
    _check_rest(model, merged, chosen)
    with torch.no_grad():
        for place in chosen:
            before = _chain(model, place)
            after = _chain(merged, place)
            layer = merged.get_submodule(place.name)
            value = _make_input(layer, derive_seed(seed, "verify_blocks", place.name))
            blocks.append(_compare(place, before(value), after(value)))
    return Proof("seeded", tuple(blocks))


def merged_places(model: nn.Module, merged: nn.Module, places: Sequence[Place] | None = None) -> list[Place]:
    """Return the places in which the two forms differ.

    Raises
    ------
    ReparameterizationError
        If the networks are no train and deploy form of each other.
    """
    if places is None:
        places = find_places(model, fold_bn=False)
        if _is_folded(model, merged, places):
            places = find_places(model, fold_bn=True)
    chosen = [place for place in places if place.merged]
    own, other = dict(model.named_modules()), dict(merged.named_modules())
    for place in chosen:
        if any(part not in own or part not in other for part in place.parts):
            raise ReparameterizationError(
                f"'{place.name}' is not in both networks: they are no train and deploy form of each other."
            )
    return chosen


def _is_folded(model: nn.Module, merged: nn.Module, places: Iterable[Place]) -> bool:
    """Return whether a BatchNorm outside bags has become something else."""
    other = dict(merged.named_modules())
    norms = [place.name for place in places if place.kind == "norm"]
    return any(name in other and type(other[name]) is not type(model.get_submodule(name)) for name in norms)


def _check_rest(model: nn.Module, merged: nn.Module, places: Iterable[Place]) -> None:
    """Raise unless all tensors outside the merged places are the same in both networks."""
    parts = tuple(f"{part}." if part else "" for place in places for part in place.parts)
    own, other = model.state_dict(), merged.state_dict()
    rest = [name for name in own.keys() | other.keys() if not name.startswith(parts)]
    wrong = sorted(name for name in rest if name not in own or name not in other or not own[name].equal(other[name]))
    if wrong:
        raise ReparameterizationError(
            f"{len(wrong)} tensors outside the merged places differ between the two forms, for example '{wrong[0]}'."
        )


def take_images(batches: Iterable[Tensor], most: int) -> list[Tensor]:
    """Return the first batches, cut so that they hold at most so many images."""
    taken: list[Tensor] = []
    for batch in batches:
        taken.append(batch[:most])
        most -= len(batch)
        if most <= 0:
            break
    return taken


def run_in_eval(network: nn.Module, batches: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the logits of all images, (N,K), from a copy of a network in eval mode and another precision."""
    twin = use_branches(copy.deepcopy(network).to(dtype).eval())
    device = next((parameter.device for parameter in twin.parameters()), torch.device("cpu"))
    with torch.no_grad():
        return torch.cat([twin(batch.to(device, dtype)).cpu() for batch in batches])


def use_branches(network: nn.Module) -> nn.Module:
    """Let every bag run branch by branch, in place: one that merges itself in eval mode would prove nothing."""
    for module in network.modules():
        if is_bag(module) and hasattr(module, "form"):
            module.form = "reference"  # type: ignore[assignment]
    return network


@contextmanager
def running_branches(network: nn.Module) -> Iterator[None]:
    """Let every bag run branch by branch for a while; afterwards its form is as before."""
    forms = {module: module.form for module in network.modules() if is_bag(module) and hasattr(module, "form")}
    use_branches(network)
    try:
        yield
    finally:
        for module, form in forms.items():
            module.form = form


class _Chain(nn.Module):
    """The parts of a place, one behind the other, as copies in float64."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def _chain(network: nn.Module, place: Place) -> nn.Module:
    parts = []
    for name in place.parts:
        part = network.get_submodule(name)
        if place.channels is not None and hasattr(part, "running_mean"):
            # An activation of the norm's own sees all channels together; it is left out on both sides.
            part = slice_norm(part, *place.channels)
        elif place.channels is not None and name != place.name:
            part = nn.Identity()
        parts.append(use_branches(copy.deepcopy(part).double()))
    return _Chain(parts).eval()


def _make_input(layer: nn.Module, seed: int) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    channels: int = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # type: ignore[assignment]
    sides = [2 * side + 1 for side in weight.shape[2:]]
    values = torch.randn(2, channels, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.to(weight.device)


def _compare(place: Place, before: Tensor, after: Tensor) -> BlockProof:
    if before.shape != after.shape:
        raise ReparameterizationError(
            f"'{place.name}' gives {tuple(before.shape)} in the train form and {tuple(after.shape)} in the deploy form."
        )
    return BlockProof(place.name, place.kind, place.parts, *largest_difference(before, after))


def _compare_on_images(model: nn.Module, merged: nn.Module, batch: Tensor, places: Sequence[Place]) -> list[BlockProof]:
    """Run the train form in float64 and compare every merged place on the input that it gets there."""
    twin = copy.deepcopy(model).double().eval()
    modules = dict(twin.named_modules())
    proofs: dict[str, BlockProof] = {}
    for place in places:

        def compare(_: nn.Module, args: Any, place: Place = place) -> None:
            if place.name not in proofs:
                value: Tensor = args[0]
                proofs[place.name] = _compare(place, _chain(model, place)(value), _chain(merged, place)(value))

        modules[place.parts[0]].register_forward_pre_hook(compare)
    device = next((parameter.device for parameter in twin.parameters()), torch.device("cpu"))
    with torch.no_grad(), without_replicas(twin):
        twin(batch.to(device, torch.float64))
    missing = [place.name for place in places if place.name not in proofs]
    if missing:
        raise ReparameterizationError(f"'{missing[0]}' is merged but did not run on the images.")
    return [proofs[place.name] for place in places]

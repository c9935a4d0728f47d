"""How far a batch's statistics are from those that a frozen network was trained on: what a Fourier prompt lowers.

The statistics of a BatchNorm's inputs are the trace that the training images left in a network. Sources: Yin et al.,
"Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020 (``moments``); Chen et al., "Each Test
Image Deserves A Specific Prompt" (VPTTA), CVPR 2024 (``l1std``). Their use for FoPro-KD is a reconstruction.

Letters: B batch, C channels, L layers.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedmed.errors import FourierPromptError
from fedmed.models.blocks.layers import check_choice, widen_half
from fedmed.reparameterization.statistics import tracked_norms

FORMS = ("moments", "l1std")
_SMALLEST = 1e-12  # keeps the slope of the square root finite where a channel is constant


class StatisticsMatch:
    """Run a frozen network and measure how far the inputs of its layers are from stored statistics. A reconstruction.

    Parameters
    ----------
    network : nn.Module
        In eval mode, and staying so. Its own values do not change.
    form : {"moments", "l1std"}
        Which distance.
    statistics : mapping of str to Tensor, optional
        For networks without BatchNorm: name of a layer to (2,C), mean and biased variance of its input, of
        :func:`measure_statistics` or a file of it. Left out: those stored in the BatchNorms.

    Raises
    ------
    FourierPromptError
        If there is no BatchNorm with statistics, and none are given; or a layer of them is not in the network.

    Notes
    -----
    With mean m and variance v stored for layer l, and m', v' (biased) those of the batch,

        moments:  (1/L) sum_l ||m' - m||_2 + ||v' - v||_2
        l1std:    (1/L) sum_l mean_c |m' - m| + mean_c |sqrt(v') - sqrt(v)|

    L counts the layers that ran.
    """

    def __init__(
        self, network: nn.Module, form: str = "moments", statistics: Mapping[str, Tensor] | None = None
    ) -> None:
        check_choice("bn", form, FORMS)
        self.network, self.form = network, form
        self._stored = None if statistics is None else {name: tuple(pair) for name, pair in statistics.items()}
        self._layers: dict[str, nn.Module] = (
            dict(tracked_norms(network)) if statistics is None else _find_layers(network, statistics)
        )
        if not self._layers:
            raise FourierPromptError(
                "The teacher has no BatchNorm layers, so its statistics cannot guide the Fourier prompt. Use "
                "fpg.objective=stats with a statistics file, fpg.objective=adversarial, or fpg.mode=none."
            )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's result for a batch, and the distance, a scalar; differentiable in the images.

        Raises
        ------
        FourierPromptError
            If the network used none of its layers.
        """
        terms: list[Tensor] = []
        assert not any(layer.training for layer in self._layers.values()), "the network is in eval mode"

        def watch(name: str) -> Any:
            def add(layer: nn.Module, args: Any) -> None:
                terms.append(self._distance(name, layer, args[0]))

            return add

        handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in self._layers.items()]
        try:
            result: Tensor = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        if not terms:
            raise FourierPromptError("The teacher ran none of its BatchNorm layers. Use fpg.mode=none.")
        return result, torch.stack(terms).mean()

    def _distance(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            mean, variance = _channel_moments(layer, x)
            stored_mean, stored_variance = (
                (layer.running_mean, layer.running_var) if self._stored is None else self._stored[name]
            )
            assert isinstance(stored_mean, Tensor), "the norm is tracked"
            assert isinstance(stored_variance, Tensor), "the norm is tracked"
            stored_mean, stored_variance = stored_mean.to(mean), stored_variance.to(mean)
            if self.form == "moments":
                norm = torch.linalg.vector_norm
                distance: Tensor = norm(mean - stored_mean) + norm(variance - stored_variance)
                return distance
            deviation = variance.clamp(min=_SMALLEST).sqrt()
            return (mean - stored_mean).abs().mean() + (deviation - stored_variance.sqrt()).abs().mean()


@torch.no_grad()
def measure_mismatch(match: StatisticsMatch, batches: Iterable[Tensor]) -> float:
    """Return the mean distance over batches of images, weighted by their size. A reconstruction's yardstick.

    Raises
    ------
    FourierPromptError
        If there are no images.
    """
    total, num_images = 0.0, 0
    for images in batches:
        total += float(match(images)[1]) * len(images)
        num_images += len(images)
    if not num_images:
        raise FourierPromptError("There are no images to compare with the teacher's statistics.")
    return total / num_images


@torch.no_grad()
def measure_statistics(network: nn.Module, batches: Iterable[Tensor], kind: type[nn.Module]) -> dict[str, Tensor]:
    """Return the statistics file of a network without BatchNorm, from images like those it was trained on.

    Part of the reconstruction.

    Parameters
    ----------
    network : nn.Module
        In eval mode.
    batches : iterable of Tensor
        As the network takes them.
    kind : type
        Of the layers whose inputs are measured, for example ``nn.LayerNorm``.

    Returns
    -------
    dict of str to Tensor
        Layer to (2,C) float32: mean and biased variance, averaged over the images.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, kind)}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def add(layer: nn.Module, args: Any) -> None:
            x = args[0].double()
            dims = _value_dims(layer, x)
            num_values = math.prod(x.shape[dim] for dim in dims)
            values = torch.stack([x.sum(dims), x.square().sum(dims)])
            sums[name] = sums[name] + values if name in sums else values
            counts[name] = counts.get(name, 0) + num_values

        return add

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, values in sums.items():
        mean, square = values / counts[name]
        found[name] = torch.stack([mean, square - mean.square()]).float().cpu()
    return found


def _value_dims(layer: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Return the dimensions over which a channel's values lie: all but the last of tokens (B,N,C), else the second."""
    has_tokens = x.ndim == 3 and not isinstance(layer, nn.BatchNorm1d)
    return (0, 1) if has_tokens else tuple(dim for dim in range(x.ndim) if dim != 1)


def _channel_moments(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, (C,) both."""
    x, dims = widen_half(x), _value_dims(layer, x)
    mean = x.mean(dims, keepdim=True)
    return mean.flatten(), (x - mean).square().mean(dims)


def _find_layers(network: nn.Module, statistics: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    modules = dict(network.named_modules())
    missing = [name for name in statistics if name not in modules]
    if missing:
        raise FourierPromptError(
            f"The statistics file has the layer '{missing[0]}', which the teacher has not. Make it with this teacher."
        )
    return {name: modules[name] for name in statistics}

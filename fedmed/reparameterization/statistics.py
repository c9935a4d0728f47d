"""BatchNorm statistics of all sites' images together, from sums that the sites send: the policy ``recalibrate``.

Averaged weights meet averaged running statistics, which no data ever had. Recalibration replaces them by the mean and
variance that each BatchNorm's input really has over all sites' images, before the branches are merged. A site sends,
per BatchNorm, three numbers a channel: the count of values n, and the sums of ``x - c`` and ``(x - c)^2``, with the
running mean c of the model that all sites have. Sums add, so the server's result is that of the pooled images,
whatever the split over sites and batches.

Depth
-----
What a deep BatchNorm gets depends on how the ones before it normalise. With ``batch_statistics`` they do so by the
statistics of the batch at hand, as in training: what the policy ``recalibrate`` does (the "precise BatchNorm" of Wu and
Johnson, 2021, https://arxiv.org/abs/2105.07576, with sums over sites). One pass is enough, and it is stable. Exact for
the layers behind no other BatchNorm; behind, the sums are those of all sites' images in batches. Without, they
normalise by the statistics that the model has now; a pass after each change would get the deep layers right one by one,
but on the way there those of a network with tens of BatchNorms can be off by orders of magnitude.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization.flow import without_replicas

Sums = dict[str, Tensor]
"""By name of the BatchNorm: (3,C) float64 with the rows n, sum of x - c, sum of (x - c)^2."""


def tracked_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorms with running statistics, by name, in the order of the modules."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def collect_sums(model: nn.Module, batches: Iterable[Tensor], *, batch_statistics: bool = False) -> Sums:
    """Return the sums of the inputs of every BatchNorm over some images.

    Parameters
    ----------
    model : nn.Module
        Train form; is unchanged afterwards, its mode included.
    batches : iterable of Tensor
        (B,3,H,W), normalised as for the network. With ``batch_statistics`` at least two images each; without, how
        images are grouped makes no difference.
    batch_statistics : bool
        Whether every BatchNorm normalises by the batch at hand, or by the running statistics that it has.

    Returns
    -------
    dict from str to Tensor
        See :data:`Sums`. A BatchNorm that did not run has count 0.
    """
    norms = tracked_norms(model)
    sums = {name: _zeros(norm) for name, norm in norms.items()}
    handles = [norm.register_forward_pre_hook(_adder(sums[name])) for name, norm in norms.items()]
    with _running(model, handles):
        if batch_statistics:
            _normalise_by_batch(norms.values())
        for batch in batches:
            model(batch)
    return {name: values.cpu() for name, values in sums.items()}


@contextmanager
def _running(model: nn.Module, handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Let the network run in eval mode without gradients; remove the hooks and restore all modes afterwards."""
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in tracked_norms(model).values()}
    counts = {norm: int(norm.num_batches_tracked or 0) for norm in momenta}
    try:
        with torch.no_grad(), without_replicas(model.eval()):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(counts[norm])


def _normalise_by_batch(norms: Iterable[_BatchNorm]) -> None:
    for norm in norms:
        norm.training = True
        norm.momentum = 0.0  # keeps the running statistics


def _zeros(norm: _BatchNorm) -> Tensor:
    assert norm.running_mean is not None, "the norm is tracked"
    return torch.zeros(3, norm.num_features, dtype=torch.float64, device=norm.running_mean.device)


def _adder(sums: Tensor) -> Any:
    def add(norm: _BatchNorm, args: Any) -> None:
        assert norm.running_mean is not None, "the norm is tracked"
        centre = norm.running_mean.double()
        x = args[0].double().transpose(0, 1).flatten(1)  # (B,C,...) -> (C,B...)
        x = x - centre[:, None]
        sums[0] += x.shape[1]
        sums[1] += x.sum(dim=1)
        sums[2] += x.square().sum(dim=1)

    return add


def pool_sums(sites: Mapping[str, Sums]) -> Sums:
    """Add the sums of several sites, in the order of their names.

    Parameters
    ----------
    sites : mapping from str to dict
        By site, what :func:`collect_sums` gave there, all with the same model.

    Raises
    ------
    ReparameterizationError
        If there are no sites, or they do not have the same layers and shapes, or a number is not finite or a count is
        negative.
    """
    if not sites:
        raise ReparameterizationError("There are no BatchNorm sums to add up.")
    first = sites[min(sites)]
    for site, sums in sites.items():
        same = sums.keys() == first.keys() and all(sums[name].shape == first[name].shape for name in first)
        if not same:
            raise ReparameterizationError(f"The BatchNorm sums of site '{site}' are of another network.")
        if any(not torch.isfinite(values).all() or bool((values[[0, 2]] < 0).any()) for values in sums.values()):
            raise ReparameterizationError(
                f"The BatchNorm sums of site '{site}' cannot be true: negative or not finite."
            )
    return {name: _add([sites[site][name] for site in sorted(sites)]) for name in first}


def _add(values: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value in values:
        total += value
    return total


def statistics_from_sums(sums: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of all values that were summed.

    Parameters
    ----------
    sums : Tensor
        (3,C): n, sum of x - c, sum of (x - c)^2.
    centre : Tensor
        (C,): c.

    Returns
    -------
    mean, variance : Tensor
        (C,), float64: ``c + S1 / n`` and the unbiased ``(S2 - S1^2 / n) / (n - 1)``, which is what torch keeps as
        running variance. At least 0.

    Raises
    ------
    ReparameterizationError
        If there are fewer than two values.
    """
    count, total, squares = sums.double()
    if bool((count < 2).any()):
        raise ReparameterizationError("A BatchNorm saw fewer than two values; its variance is not known.")
    variance = (squares - total.square() / count) / (count - 1)
    return centre.double() + total / count, variance.clamp(min=0.0)


def apply_sums(model: nn.Module, pooled: Sums) -> float:
    """Set the running statistics of a network to those of pooled sums, in place.

    Parameters
    ----------
    model : nn.Module
        The network whose running means were the centres of the sums.
    pooled : dict from str to Tensor
        Of :func:`pool_sums`. Layers without any value keep what they have.

    Returns
    -------
    float
        Largest change, in standard deviations: ``max |mean - old mean| / sqrt(var + eps)`` and
        ``max |sqrt((var + eps) / (old var + eps)) - 1|``.

    Raises
    ------
    ReparameterizationError
        If the sums are of another network, or a layer saw fewer than two values. The network is unchanged then.
    """
    norms = tracked_norms(model)
    shapes = {name: (3, norm.num_features) for name, norm in norms.items()}
    if shapes != {name: tuple(values.shape) for name, values in pooled.items()}:
        raise ReparameterizationError("These BatchNorm sums are of another network.")
    found = {}
    for name, norm in norms.items():
        if bool((pooled[name][0] > 0).any()):
            assert norm.running_mean is not None, "the norm is tracked"
            centre = norm.running_mean
            found[name] = statistics_from_sums(pooled[name].to(centre.device), centre)
    return max((_set_statistics(norms[name], *values) for name, values in found.items()), default=0.0)


def _set_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> float:
    assert norm.running_mean is not None, "the norm is tracked"
    assert norm.running_var is not None, "the norm is tracked"
    scale = (variance + norm.eps).sqrt()
    old_scale = (norm.running_var.double() + norm.eps).sqrt()
    shift = ((mean - norm.running_mean.double()).abs() / scale).max()
    change = float(torch.maximum(shift, (scale / old_scale - 1).abs().max()))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    return change

"""BatchNorm at a site: what of it stays there, and when its statistics rest.

Under the policy ``local`` it stays (FedBN, Li et al. 2021, https://arxiv.org/abs/2102.07623).

BatchNorm is found by the module's type, never by a name: a layer may be called ``bn1``, ``norm`` or ``2``.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed.data import FEWEST_IN_BATCH


@dataclass(frozen=True)
class NormBuffers:
    """Names of what one BatchNorm keeps of the images that it has seen."""

    layer: str
    """For people."""
    mean: str
    variance: str
    counter: str | None
    """Of its batches; None where it has none."""
    eps: float
    """Added to the variance."""


def find_norm_buffers(model: nn.Module, shared: Collection[str]) -> tuple[NormBuffers, ...]:
    """Return the running statistics of a network's BatchNorms, in the order of the modules.

    Parameters
    ----------
    model : nn.Module
        Any network; BatchNorm is found as by :func:`batch_norm_names`.
    shared : collection of str
        Names of the tensors that travel; a BatchNorm whose statistics stay at the sites is left out.
    """
    found = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm):
            start = f"{prefix}." if prefix else ""
            mean, variance, counter = (start + name for name in ("running_mean", "running_var", "num_batches_tracked"))
            if mean in shared and variance in shared:
                found.append(
                    NormBuffers(prefix, mean, variance, counter if counter in shared else None, float(module.eps))
                )
    return tuple(found)


def batch_norm_names(model: nn.Module) -> frozenset[str]:
    """Return the state-dict names of all parameters and buffers of BatchNorm layers.

    Parameters
    ----------
    model : nn.Module
        Any network. ``BatchNorm1d`` to ``3d``, ``SyncBatchNorm`` and classes derived from them count; group, layer and
        instance normalisation do not, because they keep no statistics of a site's images.

    Returns
    -------
    frozenset of str
        Scale, shift, running mean, running variance and count of batches, as far as the layer has them.
    """
    names = {
        f"{prefix}.{name}" if prefix else name
        # A layer that is used in two places has two names in the state dict.
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
        # Derived layers may own further modules, for example an activation; those are not BatchNorm.
        for tensors in (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, _ in tensors
    }
    return frozenset(names & model.state_dict().keys())


def shared_names(model: nn.Module, policy: Literal["average", "local", "recalibrate"]) -> list[str]:
    """Return the names of the tensors that travel between the sites and the server.

    Parameters
    ----------
    model : nn.Module
        The network.
    policy : {"average", "local", "recalibrate"}
        ``local``: all but BatchNorm travels. Else everything does; ``recalibrate`` only adds a step before the test.

    Returns
    -------
    list of str
        In the order of the state dict.

    Raises
    ------
    ValueError
        If the policy is unknown.
    """
    if policy not in ("average", "local", "recalibrate"):
        raise ValueError(f"batch_norm is {policy!r}; allowed are 'average', 'local' and 'recalibrate'")
    kept = batch_norm_names(model) if policy == "local" else frozenset()
    return [name for name in model.state_dict() if name not in kept]


def set_train_mode(model: nn.Module, num_images: int) -> None:
    """Put a model in train mode, in place; for few images with BatchNorm in eval mode.

    It then normalises by the running statistics that came with the model and does not change them, while its scale and
    shift learn as ever.

    Parameters
    ----------
    model : nn.Module
        Any network; BatchNorm is found as by :func:`batch_norm_names`.
    num_images : int
        Training images; few are fewer than :data:`fedmed.data.FEWEST_IN_BATCH`, of which no batch is large enough.
    """
    model.train()
    if num_images < FEWEST_IN_BATCH:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

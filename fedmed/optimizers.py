"""The optimiser at a site, and its state as tensors with names."""

from collections.abc import Iterator

import torch
from torch import nn

from fedmed.config import OptimizerConfig


def make_optimizer(model: nn.Module, settings: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, of all parameters that are trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _named_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def collect_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies on the CPU of an optimiser's state, as ``<parameter>/<key>`` -> tensor."""
    kept = {}
    for name, parameter in _named_trainable(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                kept[f"{name}/{key}"] = value.detach().cpu().clone()
    return kept


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, kept: dict[str, torch.Tensor]) -> None:
    """Set an optimiser's state to what :func:`collect_optimizer` returned."""
    parameters = dict(_named_trainable(model))
    for full_name, value in kept.items():
        name, _, key = full_name.rpartition("/")
        # Adam's step counter is a CPU tensor of its own; the moments live with the parameter.
        device = value.device if value.dim() == 0 else parameters[name].device
        optimizer.state[parameters[name]][key] = value.clone().to(device)

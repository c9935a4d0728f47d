"""The optimiser at a site, and its state as tensors with names."""

from collections.abc import Iterator

import torch
from torch import nn

from fedmed.config import OptimizerConfig, Plan
from fedmed.training.schedules import learning_rate


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


def set_learning_rate(optimizer: torch.optim.Optimizer, plan: Plan, round_number: int, local_epoch: int) -> float:
    """Set and return the rate of one local epoch, counted from 0, of a round, counted from 1."""
    settings = plan.training
    epochs = settings.epochs_per_round
    epoch = (round_number - 1) * epochs + local_epoch
    rate = learning_rate(settings.schedule, settings.optimizer.lr, epoch, plan.rounds * epochs)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


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

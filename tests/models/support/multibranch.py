"""What the tests of HEMF, CAME and HiFuse share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedmed.models import create_model
from fedmed.models.blocks.attention import ChannelGate
from tests.models.support.golden import fill_by_size, images, train_once


def count_parameters(name: str, num_classes: int = 7, **options: Any) -> int:
    with torch.device("meta"):
        model = create_model(name, num_classes, **options)
    return sum(parameter.numel() for parameter in model.parameters())


def check_network(
    name: str,
    options: dict[str, Any],
    *,
    logits: Sequence[Sequence[float]],
    loss: float,
    gradient: float,
    maps: dict[tuple[str, int], tuple[float, float]],
) -> None:
    """Compare a filled network at 224 px: eval logits, mean and deviation of maps, train loss and gradient norm."""
    model = fill_by_size(create_model(name, 7, **options)).eval()
    found: dict[tuple[str, int], tuple[float, float]] = {}

    def note(key: tuple[str, int], y: torch.Tensor) -> None:
        found[key] = (y.double().mean().item(), y.double().std(correction=0).item())

    stages = [(branch, index, part) for branch, parts in model.branches.items() for index, part in enumerate(parts)]
    stages += [("fused", index, fusion) for index, fusion in enumerate(model.fusions)]
    handles = [
        part.register_forward_hook(lambda _module, _inputs, y, key=(branch, index + 1): note(key, y))
        for branch, index, part in stages
    ]
    with torch.no_grad():
        y = model(images())
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(y, torch.tensor(logits), rtol=0, atol=1e-4)
    for key, expected in maps.items():
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(expected), rtol=0, atol=2e-5, msg=str(key))
    found_loss, found_gradient = train_once(model)
    assert abs(found_loss - loss) < 1e-4
    assert abs(found_gradient - gradient) < 1e-3 * gradient


def stage_maps(branch: str, *values: tuple[float, float]) -> dict[tuple[str, int], tuple[float, float]]:
    return {(branch, index): value for index, value in enumerate(values, start=1)}


def zero_gradients(model: nn.Module, side: int = 64) -> set[str]:
    """Return the parameters whose gradient is zero up to rounding, after one backward in float64 and train mode."""
    model = fill_by_size(model).double().train()
    for module in model.modules():
        if isinstance(module, ChannelGate):  # the two hidden units of a narrow network may both be silent
            module.squeeze.weight.data.abs_()
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    functional.cross_entropy(model(x), torch.arange(4) % 2).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    return {name for name, parameter in model.named_parameters() if parameter.grad.abs().max() < 1e-12}


def expected_zeros(branches: Sequence[str], *, squeeze: bool) -> set[str]:
    """What a BatchNorm downstream makes zero: biases right before one, and shifts that only add a constant to it."""
    zeros = set()
    for stage in range(4):
        block = f"fusions.{stage}"
        zeros |= {f"{block}.projections.{branch}.conv.bias" for branch in branches}
        zeros |= {f"{block}.context.conv.bias", f"{block}.context_norm.bias"}
        zeros |= {f"{block}.previous.conv.bias"} if stage else set()
        zeros |= {f"{block}.mlp.squeeze.conv.bias", f"{block}.merge_norm.bias"} if squeeze else set()
        zeros |= {f"{block}.mlp.reduce.norm.bias"} if stage < 3 else set()
    return zeros


def export(model: nn.Module, x: torch.Tensor) -> nn.Module:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()

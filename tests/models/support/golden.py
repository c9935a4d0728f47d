"""Deterministic weights and inputs of the golden vectors: no name of a module enters, only sizes or a listed order.

Every tensor is drawn uniformly from (-1, 1), then scaled: weights with two or more dimensions by sqrt(3 / fan in),
scales of norms to 1 + 0.1 u, biases and shifts to 0.1 u.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def draw(seed: int, shape: Sequence[int]) -> np.ndarray:
    size = int(np.prod(shape))
    return np.random.RandomState(seed).uniform(-1, 1, size).reshape(shape)


def scale(name: str, u: np.ndarray) -> np.ndarray:
    if u.ndim >= 2:
        return u * np.sqrt(3 / (u.size / u.shape[0]))
    return 1 + 0.1 * u if name.endswith("weight") else 0.1 * u


def fill_by_size(model: nn.Module) -> nn.Module:
    """Fill a whole network: a tensor of n elements is drawn from the seed n."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            u = draw(parameter.numel(), parameter.shape)
            parameter.copy_(torch.from_numpy(scale(name, u)).to(parameter.dtype))
    return model


def fill_in_order(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Fill a block: the i-th tensor comes from the seed 1000 + i. A module's name stands for its weight, then bias."""
    parameters = dict(model.named_parameters())
    order = []
    for name in names:
        order += [key for key in (name, f"{name}.weight", f"{name}.bias") if key in parameters]
    assert sorted(order) == sorted(parameters), "every tensor is listed once"
    with torch.no_grad():
        for index, name in enumerate(order):
            u = draw(1000 + index, parameters[name].shape)
            parameters[name].copy_(torch.from_numpy(scale(name, u)).to(parameters[name].dtype))
    return model


def block_inputs(*shapes: Sequence[int]) -> list[Tensor]:
    return [torch.from_numpy(draw(10 + index, shape)).float() for index, shape in enumerate(shapes)]


def images() -> Tensor:
    return torch.from_numpy(draw(0, (2, 3, 224, 224))).float()


def check_vector(y: Tensor, mean: float, std: float, first: Sequence[float], last: Sequence[float]) -> None:
    """Compare mean, population standard deviation, the first four and the last two values in row-major order."""
    y = y.detach().double()
    flat = y.flatten()  # copies row-major, whatever the memory format
    found = [flat.mean(), flat.std(correction=0), *flat[:4], *flat[-2:]]
    expected = torch.tensor([mean, std, *first, *last], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=2e-5)


def train_once(model: nn.Module) -> tuple[float, float]:
    """Return cross-entropy with labels 0, 1 in train mode, and the norm of all gradients together."""
    loss = functional.cross_entropy(model.train()(images()), torch.tensor([0, 1]))
    loss.backward()
    norms = [parameter.grad.double().norm() for parameter in model.parameters()]
    return loss.item(), torch.stack(norms).norm().item()

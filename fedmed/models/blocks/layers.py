"""What the networks share: moments of feature maps, checks of options, reading of weights.

The checks raise :class:`ConfigError`, because the values come from the ``model`` section of a config.
"""

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedmed.errors import ConfigError

Value = TypeVar("Value", int, str)


def compute_moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance over some dimensions.

    Parameters
    ----------
    x : Tensor
        Any shape; float32 or wider.
    dims : tuple of int
        Dimensions that disappear, n values together.

    Returns
    -------
    mean, variance : Tensor
        ``variance = sum((x - mean)^2) / (n - 1)``, and 0 for n = 1, where ``torch.var`` gives NaN.

    Notes
    -----
    ``torch.var_mean`` walks one value at a time on a CPU; two passes are 15 to 25 times as fast and no less accurate.
    """
    num_values = math.prod(x.shape[dim] for dim in dims)
    mean = x.mean(dims, keepdim=True)
    variance = (x - mean).square().sum(dims) / max(num_values - 1, 1)
    return mean.squeeze(dims), variance


def widen_half(x: Tensor) -> Tensor:
    """Return a half-precision tensor as float32, and any other as it is: statistics need the digits under autocast."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_choice(option: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of the allowed words."""
    if value not in allowed:
        raise ConfigError(f"'{option}' is {value!r}. Allowed: {', '.join(allowed)}.")


def check_switch(option: str, value: Any) -> None:
    """Raise ConfigError unless the value is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"'{option}' is {value!r}. Allowed: true, false.")


def check_number(option: str, value: Any, most: float = math.inf) -> None:
    """Raise ConfigError unless the value is a finite number above 0 and not above ``most``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and 0 < value <= most):
        bound = "" if most == math.inf else f" and at most {most:g}"
        raise ConfigError(f"'{option}' is {value!r}. Allowed: a number above 0{bound}.")


def check_subset(option: str, values: Any, allowed: Sequence[Value]) -> tuple[Value, ...]:
    """Return the chosen values in the order of ``allowed``.

    Raises
    ------
    ConfigError
        Unless ``values`` is a non-empty sequence of allowed values without repetition.
    """
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not is_sequence or any(value not in allowed or values.count(value) > 1 for value in values):
        words = ", ".join(str(value) for value in allowed)
        raise ConfigError(f"'{option}' is {values!r}. Allowed: a list of one or more of {words}, each once.")
    return tuple(value for value in allowed if value in values)


def check_kernels(kernels: Any) -> None:
    """Raise ConfigError unless the value is a pair of odd sides."""
    is_pair = isinstance(kernels, Sequence) and len(kernels) == 2
    if not is_pair or not all(type(side) is int and side > 0 and side % 2 == 1 for side in kernels):
        raise ConfigError(f"'kernels' is {kernels!r}. Allowed: two odd numbers, for example [3, 7].")


def load_weights(file: Path) -> Any:
    """Return what a ``.safetensors`` file, or one of ``torch.save``, holds, without running code from it.

    Raises
    ------
    ValueError
        With the first line of the reason, if it cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise ValueError(str(error).split("\n", maxsplit=1)[0]) from error


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from the file.

    Raises
    ------
    ConfigError
        If the file is missing, unreadable, or holds something else.
    """
    if not file.is_file():
        raise ConfigError(f"There is no file {file}. Put the weights there; nothing is downloaded.")
    try:
        state = load_weights(file)
    except ValueError as error:
        raise ConfigError(f"The file {file} cannot be read as weights ({error}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"The file {file} holds no state dict. Save model.state_dict() and nothing around it.")
    return dict(state)

"""Parts of the bag of :mod:`fedmed.models.bags.bag`: a branch, a norm without statistics, the merged kernel, checks.

Shape letters as there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedmed.errors import ConfigError, ReparameterizationError
from fedmed.reparameterization.algebra import Kernel, fold_batch_norm, fold_scale
from fedmed.reparameterization.places import has_hooks

FAMILIES = ("strip", "rect", "square")
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Affine(nn.Module):
    """Scale and shift of each channel, without any statistics: stands for BatchNorm where that is not allowed.

    Per-sample gradients (differential privacy) exist for it, and it merges as BatchNorm does.

    Parameters
    ----------
    channels : int
        C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return ``weight_c x_c + bias_c``, (B,C,H,W)."""
        return x_BCHW * self.weight[:, None, None] + self.bias[:, None, None]


class BagBranch(nn.Module):
    """One convolution of a bag and its norm.

    Parameters
    ----------
    in_channels, out_channels : int
        I and O.
    size : (int, int)
        Height and width of the kernel, odd. Padded by half of it, so that all branches are centred on the same pixel at
        any stride.
    stride, groups : int
        Of the convolution.
    norm : nn.Module
        Of O channels.
    """

    norm: nn.BatchNorm2d | Affine

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        stride: int,
        groups: int,
        norm: nn.BatchNorm2d | Affine,
    ) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding, groups=groups, bias=False)
        self.norm = norm

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """Return (B, O, ceil(H / stride), ceil(W / stride))."""
        y_BOHW: Tensor = self.norm(self.conv(x_BIHW))
        return y_BOHW

    def fold(self) -> Kernel:
        """Return the branch in eval mode as one convolution: weight (O,I/G,h,w) and bias (O,), float64.

        Raises
        ------
        ReparameterizationError
            If the norm depends on its input in eval mode.
        """
        if isinstance(self.norm, Affine):
            return fold_scale(self.conv.weight, None, self.norm.weight, self.norm.bias)
        if type(self.norm) not in BATCH_NORMS:
            # Of another class it is not known what else it does; a derived BatchNorm may have an activation.
            raise ReparameterizationError(
                f"A bag whose branches end in {type(self.norm).__name__} cannot be merged: it is not known to be a "
                "fixed scale and shift of each channel. Only BatchNorm2d, SyncBatchNorm and Affine are."
            )
        return fold_batch_norm(self.conv.weight, None, self.norm)

    def tensors(self) -> list[Tensor]:
        """Return all that the folded form depends on."""
        names = ("weight", "bias", "running_mean", "running_var")
        values = [getattr(self.norm, name, None) for name in names]
        return [self.conv.weight, *(value for value in values if value is not None)]

    def has_hooks(self) -> bool:
        """Return whether somebody watches this branch, so that it has to be evaluated as it stands."""
        return has_hooks(self) or has_hooks(self.conv) or has_hooks(self.norm)


Mark = tuple[int, int]


def mark(sources: Sequence[Tensor]) -> list[Mark] | None:
    """Return address and version of each tensor, or ``None`` where torch does not tell (inference or fake tensors)."""
    try:
        return [(source.data_ptr(), source._version) for source in sources]
    except RuntimeError:
        return None


class MergedKernel:
    """A merged kernel, and what tells whether it still holds.

    Parameters
    ----------
    pair : (Tensor, Tensor)
        Weight and bias.
    sources : sequence of Tensor
        What they were computed from. The kernel holds as long as :func:`mark` of the present ones is ``marks``.
    marks : list of (int, int)
        :func:`mark` of the sources.
    """

    def __init__(self, pair: Kernel, sources: Sequence[Tensor], marks: list[Mark]) -> None:
        self.pair = pair
        self.marks = marks
        # Aliases, not copies. They keep the memory from going to other tensors, so that an address proves identity.
        self.aliases = [source.detach() for source in sources]


def is_frozen(norm: nn.Module) -> bool:
    """Return whether a norm is at present a fixed scale and shift per channel.

    Only the plain classes are: a derived one may do more, an activation for example.
    """
    if isinstance(norm, BATCH_NORMS) and type(norm) in BATCH_NORMS:
        return not norm.training and norm.running_mean is not None
    return type(norm) is Affine


def normalises_by_batch(norm: nn.Module, eps: float) -> bool:
    """Return whether a norm is a plain BatchNorm in train mode with scale, shift, running statistics and this eps."""
    if not isinstance(norm, nn.BatchNorm2d) or type(norm) is not nn.BatchNorm2d:
        return False
    return norm.training and norm.affine and norm.track_running_stats and norm.eps == eps


@torch.no_grad()
def update_statistics(norms: Sequence[nn.BatchNorm2d], mean_CN: Tensor, variance_CN: Tensor, count: int) -> None:
    """Move running statistics as the norms do in train mode.

    Parameters
    ----------
    norms : sequence of nn.BatchNorm2d
        N norms of C channels, changed in place.
    mean_CN, variance_CN : Tensor
        Batch statistics; the variance is biased.
    count : int
        Values per channel, at least 2.
    """
    unbiased_CN = variance_CN * (count / (count - 1))
    for norm, mean_C, variance_C in zip(norms, mean_CN.unbind(1), unbiased_CN.unbind(1), strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        factor = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean_C.to(norm.running_mean.dtype), factor)
        norm.running_var.lerp_(variance_C.to(norm.running_var.dtype), factor)


def list_sizes(levels: Sequence[int], families: Sequence[str] = FAMILIES) -> list[tuple[int, int]]:
    """Return height and width of every branch, in the order that the state dict has.

    Parameters
    ----------
    levels : sequence of int
        Ascending.
    families : sequence of {"strip", "rect", "square"}
        In any order.
    """
    sizes = []
    for k in levels:
        shapes = {"strip": [(k, 1), (1, k)], "rect": [(k, k - 2), (k - 2, k)], "square": [(k, k)]}
        sizes += [size for family in FAMILIES if family in families for size in shapes[family]]
    return sizes


def check_levels(levels: Any, allow_repeated: bool = False) -> tuple[int, ...]:
    """Return the levels in ascending order.

    Raises
    ------
    ConfigError
        Unless they are a non-empty sequence of odd numbers from 3, each once if they may not be repeated.
    """
    is_sequence = isinstance(levels, Sequence) and not isinstance(levels, str) and len(levels) > 0
    if not is_sequence or not all(type(level) is int and level >= 3 and level % 2 == 1 for level in levels):
        raise ConfigError(f"'levels' is {levels!r}. Allowed: a list of odd numbers from 3, for example [3, 5, 7].")
    if len(set(levels)) < len(levels) and not allow_repeated:
        raise ConfigError(f"'levels' is {levels!r}. Allowed: each level once, unless 'allow_repeated' is true.")
    return tuple(sorted(levels))


def check_shape(**sizes: Any) -> None:
    """Raise ConfigError unless channels, stride and groups make a convolution.

    Parameters
    ----------
    **sizes
        ``in_channels``, ``out_channels``, ``stride`` and ``groups``.
    """
    for option, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"'{option}' is {value!r}. Allowed: a whole number from 1.")
    for option in ("in_channels", "out_channels"):
        if sizes[option] % sizes["groups"]:
            raise ConfigError(f"'groups' is {sizes['groups']}. Allowed: a divisor of '{option}', {sizes[option]}.")

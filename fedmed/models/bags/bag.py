"""The bag: a convolution that is trained as a sum of many, of different shapes and sizes, and deployed as one.

Each level k adds five parallel convolutions, k x 1, 1 x k, k x (k-2), (k-2) x k and k x k, every one with its own
BatchNorm. With frozen statistics all of it is linear, and the bag equals one K x K convolution with a bias, where K
is the largest level.

Source: Wu et al., "Expert-Like Reparameterization of Heterogeneous Pyramid Receptive Fields" (ERoHPRF), arXiv
2505.13039, and the authors' released code. Shape letters: B batch, C channels, H W space, O output channels, I input
channels, G groups, K side of the merged kernel.
"""

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ReparameterizationError
from fedmed.models.bags.fast import can_run_fast, fast_bag
from fedmed.models.bags.parts import (
    FAMILIES,
    Affine,
    BagBranch,
    MergedKernel,
    check_levels,
    check_shape,
    is_frozen,
    list_sizes,
    mark,
    normalises_by_batch,
    update_statistics,
)
from fedmed.models.blocks.layers import check_choice, check_number, check_subset, check_switch
from fedmed.reparameterization.algebra import Kernel, merge_parallel

NORMS = ("bn", "affine")
FORMS = ("auto", "fast", "reference")


class BranchRow(TypedDict):
    """What a branch of a bag is; kernel and padding in height and width."""

    level: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    taps: int
    """Per output channel."""


class HeterogeneousPyramidConv2d(nn.Module):
    """The bag: the sum of the branches of all levels. Takes the place of a convolution and of its BatchNorm.

    Parameters
    ----------
    in_channels, out_channels : int
        I and O.
    levels : sequence of int
        Odd, from 3; kept in ascending order.
    stride : int
        Of every branch.
    groups : int, optional
        Of every branch; default I, which is depthwise. 1 is the dense form.
    families : sequence of {"strip", "rect", "square"}
        Which shapes each level has: k x 1 and 1 x k; k x (k-2) and (k-2) x k; k x k. Of level 3 the rectangles have the
        shape of the strips, and all four are there, as published.
    norm : {"bn", "affine"}
        BatchNorm, or :class:`Affine`.
    bn_momentum, bn_eps : float
        Of every BatchNorm. 0.01 is the published momentum; after 100 steps 37 % of the initial statistics remain, so a
        federation with few local steps wants 0.1.
    gamma_init : float
        First value of every scale. 1 is the published form, whose sum over n branches has a standard deviation of about
        sqrt(n); 1 / sqrt(n) makes it 1.
    form : {"auto", "fast", "reference"}
        How the same numbers are computed. ``reference``: branch by branch, always. ``fast``: in train mode from the
        moments of the input, with one convolution (:mod:`fedmed.models.bags.fast`), where that is possible: depthwise
        with O = I, BatchNorm, stride 1 or 2; in eval mode with the merged kernel. ``auto``: as ``fast``, but in train
        mode on the CPU alone, where it is measured to pay.
    allow_repeated : bool
        Whether a level may occur more than once.

    Raises
    ------
    ConfigError
        If an argument has a value that is not allowed.

    Notes
    -----
    ``y = sum_b norm_b(conv_b(x))``, (B,I,H,W) to (B,O,ceil(H/stride),ceil(W/stride)). Nothing follows the sum; the host
    applies its activation. A depthwise bag of levels 3, 5, 7 trains 249 numbers per channel and is deployed with 50.
    Order of the branches, hence of the state dict (``branches.<i>.conv.weight``, ``branches.<i>.norm.*``): ascending
    level; k x 1, 1 x k, k x (k-2), (k-2) x k, k x k.

    The forms agree in outputs, gradients, running statistics and state dict. A branch with hooks, or whose norm is in
    another mode than its siblings, is evaluated as it stands, branch by branch. The fast form in train mode has first
    derivatives only, and a branch has no output there. The merged kernel of eval mode is kept
    until a tensor is replaced or written in place, or the mode is set; only writing through ``.data`` or a NumPy view
    while the module stays in eval mode goes unseen.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        levels: Sequence[int] = (3, 5, 7),
        stride: int = 1,
        groups: int | None = None,
        *,
        families: Sequence[str] = FAMILIES,
        norm: str = "bn",
        bn_momentum: float = 0.01,
        bn_eps: float = 1e-5,
        gamma_init: float = 1.0,
        form: str = "auto",
        allow_repeated: bool = False,
    ) -> None:
        super().__init__()
        self.groups = in_channels if groups is None else groups
        check_switch("allow_repeated", allow_repeated)
        check_choice("norm", norm, NORMS)
        check_choice("form", form, FORMS)
        check_number("bn_momentum", bn_momentum, most=1)
        check_number("bn_eps", bn_eps)
        check_number("gamma_init", gamma_init)
        check_shape(in_channels=in_channels, out_channels=out_channels, stride=stride, groups=self.groups)
        self.in_channels, self.out_channels, self.stride, self.form = in_channels, out_channels, stride, form
        self.levels = check_levels(levels, allow_repeated)
        self.families = check_subset("families", families, FAMILIES)
        self.branches = nn.ModuleList()
        for size in list_sizes(self.levels, self.families):
            own = nn.BatchNorm2d(out_channels, bn_eps, bn_momentum) if norm == "bn" else Affine(out_channels)
            nn.init.constant_(own.weight, gamma_init)
            self.branches.append(
                BagBranch(in_channels, out_channels, size, stride=stride, groups=self.groups, norm=own)
            )
        self._merged: MergedKernel | None = None

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """Return (B, O, ceil(H / stride), ceil(W / stride))."""
        branches = self.list_branches()
        if self.form == "reference" or any(branch.has_hooks() for branch in branches):
            return self._add_branches(x_BIHW)
        if all(is_frozen(branch.norm) for branch in branches):
            weight, bias = self._merge(branches)
            padding = self.levels[-1] // 2
            return functional.conv2d(x_BIHW, weight, bias, self.stride, padding, groups=self.groups)
        if self._has_fast_form(x_BIHW, branches):
            return self._train_fast(x_BIHW, branches)
        return self._add_branches(x_BIHW)

    def equivalent_kernel(self, dtype: torch.dtype = torch.float64) -> Kernel:
        """Return the merged convolution of eval mode.

        Parameters
        ----------
        dtype : torch.dtype
            Of the result; the arithmetic is float64.

        Returns
        -------
        weight, bias : Tensor
            (O,I/G,K,K) and (O,), on the bag's device. Nothing is changed; differentiable in the parameters.

        Raises
        ------
        ReparameterizationError
            If a norm depends on its input in eval mode.

        Notes
        -----
        ``weight = sum_b pad(a_b W_b)``, ``bias = sum_b (beta_b - a_b mean_b)``, ``a_b = gamma_b / sqrt(var_b + eps)``;
        with ``norm="affine"``, a is the scale and the bias is the sum of the shifts.
        """
        weight, bias = merge_parallel([branch.fold() for branch in self.list_branches()])
        return weight.to(dtype), bias.to(dtype)

    @torch.no_grad()
    def to_merged(self, strict_eval: bool = False) -> nn.Conv2d:
        """Return the deploy form: one new convolution in eval mode, without gradients. The bag is not changed.

        Parameters
        ----------
        strict_eval : bool
            Whether a bag in train mode is refused, whose present outputs the merged form does not reproduce, because it
            is made of the running statistics.

        Raises
        ------
        ReparameterizationError
            If a norm cannot be merged, or the bag is in train mode and ``strict_eval`` is set.
        """
        if strict_eval and self.training:
            raise ReparameterizationError(
                "The bag is in train mode, where its outputs depend on the batch. Call eval() before merging."
            )
        weight, bias = self.equivalent_kernel()
        side = self.levels[-1]
        present = self.list_branches()[0].conv.weight
        merged = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            side,
            self.stride,
            side // 2,
            groups=self.groups,
            device="meta",  # so that no random number is drawn
        )
        merged.weight = nn.Parameter(weight.to(present.dtype), requires_grad=False)
        merged.bias = nn.Parameter(bias.to(present.dtype), requires_grad=False)
        return merged.eval()

    def branch_table(self) -> list[BranchRow]:
        """Return what every branch is, in order."""
        sizes = [(k, size) for k in self.levels for size in list_sizes([k], self.families)]
        inner = self.in_channels // self.groups
        return [
            {"level": k, "kernel": (h, w), "padding": (h // 2, w // 2), "taps": h * w * inner} for k, (h, w) in sizes
        ]

    def extra_repr(self) -> str:
        """Return the settings in one line, for ``print``."""
        return (
            f"{self.in_channels}, {self.out_channels}, levels={self.levels}, stride={self.stride}, "
            f"groups={self.groups}, families={self.families}, form={self.form}"
        )

    def train(self, mode: bool = True) -> "HeterogeneousPyramidConv2d":
        """Set the mode, and forget the merged kernel."""
        self._merged = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # For copies and pickles: the merged kernel belongs to this object's tensors.
        return {**self.__dict__, "_merged": None}

    def list_branches(self) -> list[BagBranch]:
        """Return the branches in order, as what they are."""
        return cast("list[BagBranch]", list(self.branches))

    def _add_branches(self, x_BIHW: Tensor) -> Tensor:
        outputs: list[Tensor] = [branch(x_BIHW) for branch in self.branches]
        return sum(outputs[1:], start=outputs[0])

    def _merge(self, branches: Sequence[BagBranch]) -> Kernel:
        """Return the merged kernel in the bag's own precision: with gradients where they are wanted, else kept."""
        sources = [tensor for branch in branches for tensor in branch.tensors()]
        dtype = branches[0].conv.weight.dtype
        marks = mark(sources)
        trains = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        if trains or marks is None or torch.compiler.is_compiling():
            return self.equivalent_kernel(dtype)
        merged = self._merged
        if merged is None or merged.marks != marks:
            # Not an inference tensor even under inference_mode: a later pass may want gradients of the images.
            with torch.inference_mode(False), torch.no_grad():
                merged = MergedKernel(self.equivalent_kernel(dtype), sources, marks)
            self._merged = merged
        return merged.pair

    def _has_fast_form(self, x_BIHW: Tensor, branches: Sequence[BagBranch]) -> bool:
        """Return whether the fast form can, and should, compute this batch."""
        kernels, device = [branch.conv.weight for branch in branches], x_BIHW.device.type
        first = branches[0].norm
        is_usual = device == "cpu" if self.form == "auto" else torch.amp.is_autocast_available(device)
        return (
            is_usual
            and not torch.compiler.is_compiling()
            and self.out_channels == self.in_channels
            and can_run_fast(x_BIHW, kernels, self.stride)
            and (x_BIHW.dtype == kernels[0].dtype or torch.is_autocast_enabled(device))
            and isinstance(first, nn.BatchNorm2d)
            and all(normalises_by_batch(branch.norm, first.eps) for branch in branches)
        )

    def _train_fast(self, x_BIHW: Tensor, branches: Sequence[BagBranch]) -> Tensor:
        """Return the sum in train mode, from the moments of the input."""
        norms = cast("list[nn.BatchNorm2d]", [branch.norm for branch in branches])
        y_BOHW, mean_CN, variance_CN = fast_bag(
            x_BIHW,
            [branch.conv.weight for branch in branches],
            [norm.weight for norm in norms],
            [norm.bias for norm in norms],
            stride=self.stride,
            eps=norms[0].eps,
        )
        update_statistics(norms, mean_CN, variance_CN, y_BOHW.numel() // self.out_channels)
        return y_BOHW

"""Cross-entropy and its relatives for classes of unequal size.

All of them take the class counts of the training images of the site that computes them; the counts never leave it and
are in no state dict. A class without images has no prior, so it is given :data:`UNSEEN_COUNT` images where a prior is
needed: its logit stays finite, and lower than that of every class seen.

Letters: B batch, K classes. Each loss is a module that maps logits (B,K) and targets (B,) to the mean over the batch;
with a weight for each image, (B,), to the sum of weight times loss, divided by B.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmed.losses.class_statistics import in_full_precision

UNSEEN_COUNT = 0.5


class CrossEntropy(nn.Module):
    """Plain cross-entropy."""

    def forward(self, logits: Tensor, target: Tensor, image_weights: Tensor | None = None) -> Tensor:
        """Return the mean of ``-log p_y``."""
        return _mean_cross_entropy(in_full_precision(logits), target, image_weights)


class ClassBalancedCrossEntropy(nn.Module):
    """Cross-entropy weighted by the inverse effective number of images of a class.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.

    Parameters
    ----------
    class_counts : sequence of K int
        Training images by class.
    beta : float, in [0, 1)
        0 gives plain cross-entropy, towards 1 the weights become the inverse counts.

    Notes
    -----
    ``w_k = (1 - beta) / (1 - beta^n_k)``, scaled so that the weights of the classes seen have mean 1; the loss is
    ``(1/B) sum_i w_{y_i} CE_i``. A class without images has no effective number: its weight is 0. Where no class
    has any, all weights are 1.
    """

    weight: Tensor

    def __init__(self, class_counts: Sequence[int], beta: float = 0.999) -> None:
        super().__init__()
        _check_range("beta", beta, below=1.0)
        counts = _check_counts(class_counts)
        seen = counts > 0
        weight = torch.where(seen, (1 - beta) / (1 - beta ** counts.clamp(min=1)), 0.0)
        weight = weight * (seen.sum() / weight.sum()) if seen.any() else torch.ones_like(weight)
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, image_weights: Tensor | None = None) -> Tensor:
        """Return the weighted mean over the batch."""
        losses = cross_entropy(in_full_precision(logits), target, reduction="none")
        return _mean(self.weight[target] * losses, image_weights)


class FocalLoss(nn.Module):
    """Cross-entropy with less weight for images that are already right.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017: the mean of ``-(1 - p_y)^gamma log p_y``.

    Parameters
    ----------
    gamma : float
        From 0, which gives plain cross-entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        _check_range("gamma", gamma)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor, image_weights: Tensor | None = None) -> Tensor:
        """Return the mean over the batch."""
        log_p_B = -cross_entropy(in_full_precision(logits), target, reduction="none")
        # The slope of x^gamma at 0 is infinite for gamma below 1; the smallest number keeps 0 times it from being NaN.
        missing_B = (-torch.expm1(log_p_B)).clamp(min=torch.finfo(log_p_B.dtype).tiny)
        return -_mean(missing_B**self.gamma * log_p_B, image_weights)


class LogitAdjustment(nn.Module):
    """Cross-entropy of logits shifted by the log-prior of their class.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021: ``CE(z + tau log pi, y)`` with ``pi`` the shares
    of the classes in training. With ``tau = 1`` it is the balanced softmax of Ren et al., "Balanced Meta-Softmax for
    Long-Tailed Visual Recognition", NeurIPS 2020, ``p_k ~ n_k exp z_k``. The model is used without the shift.

    Parameters
    ----------
    class_counts : sequence of K int
        Training images by class; a class without any is given half an image.
    tau : float
        From 0, which gives plain cross-entropy.
    """

    shift: Tensor

    def __init__(self, class_counts: Sequence[int], tau: float = 1.0) -> None:
        super().__init__()
        _check_range("tau", tau)
        counts = _check_counts(class_counts).clamp(min=UNSEEN_COUNT)
        self.register_buffer("shift", (tau * (counts / counts.sum()).log()).float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, image_weights: Tensor | None = None) -> Tensor:
        """Return the mean over the batch."""
        return _mean_cross_entropy(in_full_precision(logits) + self.shift, target, image_weights)


def _mean(losses_B: Tensor, image_weights: Tensor | None) -> Tensor:
    return losses_B.mean() if image_weights is None else (image_weights * losses_B).mean()


def _mean_cross_entropy(logits: Tensor, target: Tensor, image_weights: Tensor | None) -> Tensor:
    if image_weights is None:  # torch's own mean, in one step
        return cross_entropy(logits, target)
    return _mean(cross_entropy(logits, target, reduction="none"), image_weights)


def _check_counts(class_counts: Sequence[int]) -> Tensor:
    counts = torch.tensor([int(count) for count in class_counts], dtype=torch.float64)
    if len(counts) == 0 or (counts < 0).any():
        raise ValueError(f"The class counts are {list(class_counts)}. Needed: a number from 0 for each class.")
    return counts


def _check_range(name: str, value: float, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        limit = f" to below {below:g}" if below < math.inf else ""
        raise ValueError(f"'{name}' is {value!r}. Allowed: a finite number from 0{limit}.")

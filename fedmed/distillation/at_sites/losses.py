"""Losses of Effective Knowledge Distillation (EKD), and what weighs them.

Elbatel, Martí and Li as in :mod:`fedmed.distillation.prompt.fourier_prompt`, and the same authors' released Fed-MAS
code (arXiv 2307.14959), which has EKD in full. Temperature: Hinton et al., "Distilling the Knowledge in a Neural
Network", 2015.

Letters: B batch, D features of the teacher, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.losses.balanced import ClassBalancedCrossEntropy
from fedmed.losses.class_statistics import in_full_precision

LATE_BETA = 0.9999
LATE_SHARE = 0.8


def ekd_terms(projected_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return (B,): ``2 - 2 cos(projected, teacher)`` for each image, in [0, 4]."""
    student = functional.normalize(in_full_precision(projected_BD), dim=1)
    teacher = functional.normalize(in_full_precision(teacher_BD), dim=1)
    return 2 - 2 * (student * teacher).sum(dim=1)


def ekd_loss(projected_BD: Tensor, teacher_BD: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Return the mean over the batch of :func:`ekd_terms`, each times its weight."""
    return average_terms(ekd_terms(projected_BD, teacher_BD), weight_B)


def average_terms(terms_B: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Return the mean over the batch of each term times its weight; None is 1 for all."""
    return (terms_B if weight_B is None else terms_B * weight_B).mean()


def class_weights(class_counts: Sequence[int], beta: float) -> Tensor:
    """Return (K,): ``(1 - beta) / (1 - beta^n_c)``, scaled to mean 1 over the classes present, 0 for the others."""
    return ClassBalancedCrossEntropy(class_counts, beta).weight.clone()


def choose_beta(round_number: int, rounds: int) -> float:
    """Return beta of the class-balanced variant: 0 (all weights 1) until 80 % of the rounds, 0.9999 after them."""
    return LATE_BETA if round_number > LATE_SHARE * rounds else 0.0


def ramp_weight(weight: float, round_number: int, rounds: int, ramp_from: int | None) -> float:
    """Return lambda of a round: constant, or falling linearly from the round ``ramp_from`` to 0 in the last.

    Parameters
    ----------
    weight : float
        Lambda before the fall.
    round_number, rounds : int
        From 1.
    ramp_from : int, optional
        Last round with the full weight.
    """
    if ramp_from is None or round_number <= ramp_from:
        return weight
    return weight * max(rounds - round_number, 0) / (rounds - ramp_from)


class ClassMeans:
    """Means of a value by class, added up batch by batch in float64.

    Parameters
    ----------
    num_classes : int
        K.
    """

    def __init__(self, num_classes: int) -> None:
        self._sums_K = torch.zeros(num_classes, dtype=torch.float64)
        self._counts_K = torch.zeros(num_classes, dtype=torch.float64)

    def add(self, values_B: Tensor, target_B: Tensor) -> None:
        """Add the values of a batch of images, of these classes."""
        # A product and no scatter, whose order of additions differs from run to run on a GPU.
        chosen_KB = functional.one_hot(target_B, len(self._sums_K)).double().T
        self._sums_K = self._sums_K.to(target_B.device) + chosen_KB @ values_B.detach().double()
        self._counts_K = self._counts_K.to(target_B.device) + chosen_KB.sum(dim=1)

    def to_list(self) -> list[float | None]:
        """Return K means, None for a class without images."""
        pairs = zip(self._sums_K.tolist(), self._counts_K.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]


class MaskedBalancedSoftmax(nn.Module):
    """Cross-entropy of ``logits + log prior`` over the classes that a site has; the others' logits do not count.

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020, for the auxiliary head, which
    is used in training alone.

    Parameters
    ----------
    class_counts : sequence of K int
        The site's own training images; they are in no state dict.
    """

    shift: Tensor

    def __init__(self, class_counts: Sequence[int]) -> None:
        super().__init__()
        counts = torch.tensor([int(count) for count in class_counts], dtype=torch.float64)
        if not (counts > 0).any():
            raise ValueError(f"The class counts are {list(class_counts)}. Needed: an image of one class at least.")
        self.register_buffer("shift", (counts / counts.sum()).log().float(), persistent=False)

    def forward(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """Return the mean over the batch; every target must be a class that the site has."""
        return functional.cross_entropy(in_full_precision(logits_BK) + self.shift, target_B)


def temperature_terms(logits_BK: Tensor, teacher_logits_BK: Tensor, temperature: float) -> Tensor:
    """Return (B,): ``tau^2 KL(softmax(teacher / tau) || softmax(student / tau))`` for each image."""
    log_p = functional.log_softmax(in_full_precision(logits_BK) / temperature, dim=1)
    log_q = functional.log_softmax(in_full_precision(teacher_logits_BK) / temperature, dim=1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim=1)

"""What a compact student learns from each image: the large network's softened answer and its fused feature.

Our own design (option S of the specification), a reconstruction in the spirit of FoPro-KD, with the ensemble of Lin et
al., "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF), NeurIPS 2020, as the baseline.

Letters: N images, B batch, D features of the large network, K classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmed.distillation.at_sites.losses import ekd_terms, temperature_terms

MOST_WEIGHT = 10.0


class Targets(NamedTuple):
    """The large network's answers.

    Attributes
    ----------
    logits : Tensor
        (N,K).
    features : Tensor, optional
        (N,D); None of an ensemble whose members have different numbers of features.
    """

    logits: Tensor
    features: Tensor | None


class Ensemble:
    """Several networks that answer together: FedDF's target, from the models of a round's sites.

    Parameters
    ----------
    members : sequence of callable
        At least one; each gives a network from images to logits (B,K), and is called when its turn comes, so that one
        network at a time is in memory.

    Notes
    -----
    Logits are the mean of the members', every member counting alike as in the publication. So are features where all
    members have as many, as networks that come from one global model do.
    """

    def __init__(self, members: Sequence[Callable[[], nn.Module]]) -> None:
        assert members, "an ensemble has a member"
        self.members = tuple(members)

    def average(self, answer: Callable[[nn.Module], Targets]) -> Targets:
        """Return the mean of what ``answer`` gives for each member, in float32; features None if widths differ."""
        total: Targets | None = None
        for load in self.members:
            found = answer(load())
            total = found if total is None else Targets(total.logits + found.logits, _add(total, found))
        assert total is not None, "an ensemble has a member"
        number = len(self.members)
        return Targets(total.logits / number, None if total.features is None else total.features / number)


def _add(first: Targets, second: Targets) -> Tensor | None:
    if first.features is None or second.features is None or first.features.shape != second.features.shape:
        return None
    return first.features + second.features


def balance_predictions(logits_NK: Tensor, most: float = MOST_WEIGHT) -> Tensor:
    """Return a weight (N,) for each image: inverse to how often its predicted class is predicted, mean 1, at most 10.

    Images of a strange domain fall into two or three classes; unweighted, rare ones would never be distilled. A
    reconstruction's choice.
    """
    predicted_N = logits_NK.argmax(dim=1)
    counts_K = torch.bincount(predicted_N, minlength=logits_NK.shape[1]).double()
    weight_N = (1 / counts_K)[predicted_N]
    capped_N = torch.zeros(len(weight_N), dtype=torch.bool)
    for _ in range(logits_NK.shape[1]):  # every pass caps another class, or ends
        free = ~capped_N
        left = len(weight_N) - most * float(capped_N.sum())
        scaled_N = torch.where(free, weight_N * (left / weight_N[free].sum()), most)
        above_N = free & (scaled_N > most)
        if not above_N.any():
            break
        capped_N |= above_N
    return scaled_N.float()


def compact_loss(
    logits_BK: Tensor,
    projected_BD: Tensor | None,
    targets: Targets,
    *,
    weight_B: Tensor | None = None,
    temperature: float = 2.0,
    feature_weight: float = 1.0,
    confidence: float = 0.3,
) -> Tensor:
    """Return the distillation loss of a batch, a scalar. A reconstruction; also for co-distillation at the sites.

    Parameters
    ----------
    logits_BK, projected_BD : Tensor
        The student's; the second may be None.
    targets : Targets
        The large network's, of the same images.
    weight_B : Tensor, optional
        Of :func:`balance_predictions`.
    temperature, feature_weight : float
        tau and lambda_f.
    confidence : float
        Images whose softened answer has no probability above it have no answer to learn from, only a feature.

    Notes
    -----
    Mean over the batch of ``w (tau^2 KL(q || softmax(s / tau)) + lambda_f (2 - 2 cos(P(z_s), z_T)))`` with
    ``q = softmax(T / tau)``; the first term only where ``max q >= confidence``.
    """
    largest_B = (targets.logits.float() / temperature).softmax(dim=1).amax(dim=1)
    terms_B = temperature_terms(logits_BK, targets.logits, temperature) * (largest_B >= confidence)
    if projected_BD is not None and targets.features is not None and feature_weight > 0:
        terms_B = terms_B + feature_weight * ekd_terms(projected_BD, targets.features)
    return (terms_B if weight_B is None else terms_B * weight_B).mean()

"""Distil the aggregated network into a small one at the sites, on their own images: where there is no proxy set.

Our own design (option C2 of the specification), a reconstruction. No prompt: the images are the hospitals' own.

Letters: B batch, H W space, K classes.
"""

import torch
from torch import Tensor, nn

from fedmed.distillation.at_sites.ekd import DistillationStudent, LossParts
from fedmed.distillation.small_network.losses import Targets, compact_loss
from fedmed.distillation.teachers.classifier import run_with_features


class CoDistiller:
    """The loss of a compact student's batch at a site. A reconstruction's fallback.

    Parameters
    ----------
    student : DistillationStudent
        The compact network, whose ``teacher_features`` are the large network's; trained by the caller.
    large : nn.Module
        The aggregated network; put in eval mode and frozen.
    main_loss : nn.Module
        From logits and targets to a scalar.
    temperature, feature_weight, confidence : float
        Of :func:`compact_loss`.

    Notes
    -----
    ``L = L_main(s(x), y) + L_S(x)``; a batch of one has no feature term, which BatchNorm in the projector forbids.
    """

    def __init__(
        self,
        student: DistillationStudent,
        large: nn.Module,
        main_loss: nn.Module,
        *,
        temperature: float = 2.0,
        feature_weight: float = 1.0,
        confidence: float = 0.3,
    ) -> None:
        self.student, self.main_loss = student, main_loss
        self.large = large.requires_grad_(False).eval()
        self.temperature, self.feature_weight, self.confidence = temperature, feature_weight, confidence

    def __call__(self, x_B3HW: Tensor, target_B: Tensor) -> LossParts:
        """Return the loss of normalised images, (B,3,H,W); ``ekd`` holds L_S. Call ``backward`` on its total."""
        with torch.no_grad():
            features, logits = run_with_features(self.large, x_B3HW)
        outputs = self.student.run(x_B3HW)
        main: Tensor = self.main_loss(outputs.logits, target_B)
        distilled = compact_loss(
            outputs.logits,
            outputs.projected,
            Targets(logits, features),
            temperature=self.temperature,
            feature_weight=self.feature_weight,
            confidence=self.confidence,
        )
        return LossParts(main + distilled, main, None, distilled)

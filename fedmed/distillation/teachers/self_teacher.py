"""The global model as the teacher of its own training: ``teacher: self``. It is not FoPro-KD.

A site's features are held near to those of the model with which the round began, by the same loss as a public
teacher's. It needs no weights from elsewhere, and brings nothing that the sites do not have.

Letters: B batch, H W space, d features of the student.
"""

import copy

from torch import Tensor, nn

from fedmed.distillation.pixels import Statistics, normalize
from fedmed.distillation.teachers.classifier import find_classifier, run_with_features


class SelfTeacher(nn.Module):
    """A frozen copy of a network, from images to its own features; always in eval mode, as :class:`Teacher` is.

    Parameters
    ----------
    model : nn.Module
        Ends in a linear layer. What becomes of it afterwards does not matter.
    statistics : (mean, std)
        Its normalisation.

    Raises
    ------
    ConfigError
        If it has no linear layer.
    """

    def __init__(self, model: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.network, self.statistics = copy.deepcopy(model), statistics
        self.num_features = find_classifier(model)[1].in_features
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)
        self.eval()

    def train(self, mode: bool = True) -> "SelfTeacher":
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the input of the last layer, (B,d), for images (B,3,H,W) in [0, 1]."""
        return run_with_features(self.network, normalize(images_B3HW, self.statistics))[0]

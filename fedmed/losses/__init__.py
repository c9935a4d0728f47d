"""Training losses, by name.

>>> from fedmed.losses import build_loss
>>> loss = build_loss({"ce": 1.0, "cws": {"weight": 0.5, "absent": "present"}}, class_counts=[120, 30, 0])
"""

from fedmed.losses.class_statistics import ClassStatistics, CWSLoss, class_statistics, cws_loss
from fedmed.losses.combined import CombinedLoss, LossTerm, build_loss, list_losses

__all__ = [
    "CWSLoss",
    "ClassStatistics",
    "CombinedLoss",
    "LossTerm",
    "build_loss",
    "class_statistics",
    "cws_loss",
    "list_losses",
]

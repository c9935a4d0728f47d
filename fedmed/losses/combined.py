"""The training loss: a weighted sum of terms, as the config names them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fedmed.errors import ConfigError
from fedmed.extensions import build_extension, is_path
from fedmed.losses.balanced import ClassBalancedCrossEntropy, CrossEntropy, FocalLoss, LogitAdjustment
from fedmed.losses.class_statistics import Absent, CWSLoss, Form
from fedmed.registry import Registry

LossTerm = Callable[[Tensor, Tensor], Tensor]

LOSSES: Registry[nn.Module] = Registry("loss")


class CombinedLoss(nn.Module):
    """``sum_t w_t L_t`` over the terms of positive weight, in the order given.

    Parameters
    ----------
    terms : sequence of (weight, module)
        Each module maps logits (B,K) and targets (B,) to a scalar.

    Notes
    -----
    It has no parameters, and an empty state dict.

    Weights of images enter every term that is a mean over images: ``sum_i v_i l_i / B``. The class-wise statistics are
    statistics of a batch, not a mean over images, and are left as they are: where they are part of the loss, weights
    of patient groups act through the other terms alone.
    """

    def __init__(self, terms: Sequence[tuple[float, nn.Module]]) -> None:
        super().__init__()
        assert terms, "a loss has at least one term"
        self.weights = tuple(float(weight) for weight, _ in terms)
        self.terms = nn.ModuleList(module for _, module in terms)

    def forward(self, logits: Tensor, target: Tensor, image_weights: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a scalar; ``image_weights`` (B,) weigh what is a mean over images."""
        arguments = (logits, target) if image_weights is None else (logits, target, image_weights)
        losses = [weight * term(*arguments) for weight, term in zip(self.weights, self.terms, strict=True)]
        total: Tensor = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total


def build_loss(terms: Mapping[str, float | Mapping[str, Any]], class_counts: Sequence[int]) -> CombinedLoss:
    """Build the loss that a config describes.

    Parameters
    ----------
    terms : mapping
        From the name of a term to its weight, or to a mapping of ``weight`` (1 if left out) and the term's options:
        ``{"ce": 1.0, "cws": {"weight": 0.5, "absent": "present"}}``. A term of weight 0 is not computed. A name may be
        the import path of a builder from outside fedmed, ``package.module:function``: it gets ``class_counts`` and, as
        keyword-only parameters, the options, and returns a module without parameters that maps logits (B,K), targets
        (B,) and, where images have weights, those (B,) to a scalar.
    class_counts : sequence of K int
        The site's own training images by class; zeros are allowed.

    Returns
    -------
    CombinedLoss

    Raises
    ------
    ConfigError
        If a name or an option is unknown, a value is not allowed, a weight is not a finite number from 0, or no weight
        is above 0.
    ExtensionError, ExtensionFailedError
        If what an import path names is not installed, not allowed here, or builds no module.
    """
    if not isinstance(terms, Mapping):
        raise ConfigError(f"'loss' is {terms!r}. Needed: a weight for each term, for example {{ce: 1.0, cws: 1.0}}.")
    built = [_build_term(name, setting, class_counts) for name, setting in terms.items()]
    used = [(weight, module) for weight, module in built if weight > 0]
    if not used:
        raise ConfigError(
            f"'loss' is {dict(terms)!r}: no term has a weight above 0. Give one, for example {{ce: 1.0}}."
        )
    return CombinedLoss(used)


def list_losses() -> list[str]:
    """Return the names of all terms, sorted."""
    return LOSSES.names()


def _build_term(name: str, setting: Any, class_counts: Sequence[int]) -> tuple[float, nn.Module]:
    options = (
        {str(key): value for key, value in setting.items()} if isinstance(setting, Mapping) else {"weight": setting}
    )
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ConfigError(f"The weight of 'loss.{name}' is {weight!r}. Allowed: a finite number from 0.")
    if is_path(str(name)):
        return float(weight), build_extension("loss", str(name), nn.Module, class_counts, **options)
    try:
        return float(weight), LOSSES.build(str(name), class_counts, **options)
    except ValueError as error:
        raise ConfigError(f"'loss.{name}' cannot be built. {error}") from None


@LOSSES.register("ce")
def _build_cross_entropy(class_counts: Sequence[int]) -> nn.Module:
    return CrossEntropy()


@LOSSES.register("class_balanced_ce")
def _build_class_balanced(class_counts: Sequence[int], *, beta: float = 0.999) -> nn.Module:
    return ClassBalancedCrossEntropy(class_counts, beta)


@LOSSES.register("focal")
def _build_focal(class_counts: Sequence[int], *, gamma: float = 2.0) -> nn.Module:
    return FocalLoss(gamma)


@LOSSES.register("balanced_softmax")
def _build_balanced_softmax(class_counts: Sequence[int]) -> nn.Module:
    return LogitAdjustment(class_counts, tau=1.0)


@LOSSES.register("logit_adjustment")
def _build_logit_adjustment(class_counts: Sequence[int], *, tau: float = 1.0) -> nn.Module:
    return LogitAdjustment(class_counts, tau)


@LOSSES.register("cws")
def _build_cws(
    class_counts: Sequence[int], *, absent: Absent = "all", form: Form = "official", eps: float = 1e-7
) -> nn.Module:
    return CWSLoss(absent, form, eps)

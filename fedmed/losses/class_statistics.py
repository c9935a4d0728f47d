"""Class-wise statistics (CWS) loss, a companion of cross-entropy for rare classes.

Zhang et al., "Adaptive Dual-Axis Style-Based Recalibration Network With Class-Wise Statistics Loss for Imbalanced
Medical Image Classification", IEEE Transactions on Image Processing 34, 2025, doi 10.1109/TIP.2025.3551128; the formula
is that of the authors' published code.

Letters: B batch, K classes.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Absent = Literal["all", "present"]
Form = Literal["official", "lse"]
Reduction = Literal["mean", "sum", "none"]


class ClassStatistics(NamedTuple):
    """What to watch while training with CWS.

    Attributes
    ----------
    num_present : int
        r, the number of classes in the batch.
    smallest_mean : float or None
        The smallest class-wise mean probability of the true class, min over the classes present; ``None`` if the batch
        holds none.
    """

    num_present: int
    smallest_mean: float | None


def cws_loss(
    logits: Tensor,
    target: Tensor,
    absent: Absent = "all",
    form: Form = "official",
    *,
    eps: float = 1e-7,
    class_mask: Tensor | None = None,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the class-wise statistics loss of a batch.

    Parameters
    ----------
    logits : Tensor, shape (B,K)
        Half-precision logits are computed with in float32. B may be 0.
    target : Tensor of int64, shape (B,)
        True classes.
    absent : {"all", "present"}
        What the sum is divided by: all K classes, so that a class has the same weight in every batch and at every site;
        or the r classes in the batch.
    form : {"official", "lse"}
        ``official``: ``log(mean + eps)``, whose gradient vanishes where all images of a class have a probability far
        below ``eps``. ``lse``: the logarithm of the mean from log-probabilities, without ``eps`` and that floor.
    eps : float
        Floor of the official form, above 0.
    class_mask : Tensor of bool, shape (K,), optional
        Classes that count; the others add nothing and are not divided by. For sites that never see a class.
    ignore_index : int, optional
        Target of images to leave out.
    weight : Tensor, shape (K,), optional
        Weight of each class, not negative; the sum is divided by the sum of weights, so that equal weights change
        nothing.
    reduction : {"mean", "sum", "none"}
        ``none`` gives the K weighted terms, ``sum`` their sum, ``mean`` that divided as ``absent`` says.

    Returns
    -------
    Tensor
        A scalar, or shape (K,) for ``none``; 0 with its graph kept if no image counts.

    Raises
    ------
    ValueError
        If a shape or an option is not allowed, or a target is outside [0, K). On a GPU the last is left to the
        device's own assertion, since looking at the targets would wait for the device in every step.

    Notes
    -----
    With S_k the images of class k, n_k > 0 of them, and p the softmax,

        m_k = (1 / n_k) sum_{i in S_k} p_{i,k},    L = -(1/K) sum_{k: n_k > 0} log(m_k + eps).

    Every class present has the total weight 1/K in the gradient, and inside a class confident images weigh more than
    hard ones: the opposite of the focal loss, and the reason to keep cross-entropy beside it. The loss couples the
    images of a batch: it is not the mean of its parts' losses, and gradients by image are not defined for it.
    """
    _check_options(absent, form, eps, reduction)
    num_classes = logits.shape[-1]
    own_B1, member_BK = _true_class_log_probabilities(logits, target, ignore_index)
    share_K = own_B1.new_ones(num_classes) if weight is None else _check_per_class(weight, num_classes).to(own_B1)
    if class_mask is not None:
        share_K = share_K * _check_per_class(class_mask, num_classes).to(own_B1)
    present_K = member_BK.any(dim=0)
    log_mean_K = _log_mean(own_B1, member_BK, present_K) if form == "lse" else (_mean(own_B1, member_BK) + eps).log()
    # The branch not taken must be finite, or its gradient of 0 times infinity would be NaN.
    terms_K = torch.where(present_K, -log_mean_K, 0.0) * share_K
    if reduction == "none":
        return terms_K
    if reduction == "sum":
        return terms_K.sum()
    divisor = share_K.sum() if absent == "all" else share_K.masked_fill(~present_K, 0.0).sum()
    return terms_K.sum() / torch.where(divisor > 0, divisor, 1.0)


class CWSLoss(nn.Module):
    """:func:`cws_loss` with its options fixed."""

    def __init__(self, absent: Absent = "all", form: Form = "official", eps: float = 1e-7) -> None:
        super().__init__()
        _check_options(absent, form, eps, "mean")
        self.absent: Absent = absent
        self.form: Form = form
        self.eps = eps

    def forward(self, logits: Tensor, target: Tensor, image_weights: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a scalar; weights of images do not enter a statistic of the batch."""
        return cws_loss(logits, target, absent=self.absent, form=self.form, eps=self.eps)


@torch.no_grad()
def class_statistics(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> ClassStatistics:
    """Return what the loss looks at, for monitoring; waits for the device.

    Parameters
    ----------
    logits : Tensor, shape (B,K)
        The model's output.
    target : Tensor of int64, shape (B,)
        True classes.
    ignore_index : int, optional
        Target of images to leave out.

    Raises
    ------
    ValueError
        As :func:`cws_loss`.
    """
    own_B1, member_BK = _true_class_log_probabilities(logits, target, ignore_index)
    means = _mean(own_B1, member_BK)[member_BK.any(dim=0)]
    return ClassStatistics(len(means), float(means.min()) if len(means) else None)


def in_full_precision(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, and others as they are: softmax and logarithm need the digits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _true_class_log_probabilities(logits: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Return each image's log-probability of its true class, (B,1), and which class it is counted in, (B,K)."""
    if logits.ndim != 2 or logits.shape[1] == 0 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)} and the target {tuple(target.shape)}. "
            "Needed: (images, classes) and (images,)."
        )
    num_classes = logits.shape[1]
    counted_B = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    class_B = target.where(counted_B, 0)
    if target.device.type == "cpu" and ((class_B < 0) | (class_B >= num_classes)).any():
        raise ValueError(
            f"Targets from {class_B.min()} to {class_B.max()} were found. Allowed: 0 to {num_classes - 1}."
        )
    log_p_BK = torch.log_softmax(in_full_precision(logits), dim=1)
    # Masked sums over this give the same bits in every run; adding by index does not on a GPU.
    member_BK = counted_B[:, None] & (class_B[:, None] == torch.arange(num_classes, device=target.device))
    return log_p_BK.gather(1, class_B[:, None]), member_BK


def _mean(own_B1: Tensor, member_BK: Tensor) -> Tensor:
    return (own_B1.exp() * member_BK).sum(dim=0) / member_BK.sum(dim=0).clamp(min=1)


def _log_mean(own_B1: Tensor, member_BK: Tensor, present_K: Tensor) -> Tensor:
    # An absent class keeps every image, to have a finite value that is then not used.
    kept_BK = torch.where(member_BK | ~present_K, own_B1, -torch.inf)
    return kept_BK.logsumexp(dim=0) - member_BK.sum(dim=0).clamp(min=1).to(own_B1.dtype).log()


def _check_per_class(values: Tensor, num_classes: int) -> Tensor:
    if values.shape != (num_classes,):
        raise ValueError(f"A value for each class has shape {tuple(values.shape)}. Needed: ({num_classes},).")
    return values


def _check_options(absent: str, form: str, eps: float, reduction: str) -> None:
    for name, value, allowed in (
        ("absent", absent, get_args(Absent)),
        ("form", form, get_args(Form)),
        ("reduction", reduction, get_args(Reduction)),
    ):
        if value not in allowed:
            raise ValueError(f"'{name}' of the CWS loss is {value!r}. Allowed: {', '.join(allowed)}.")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise ValueError(f"'eps' of the CWS loss is {eps!r}. Allowed: a number between 0 and 1.")

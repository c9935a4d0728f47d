"""Figures of merit of a classifier, from evaluation tables.

The functions on arrays take any number of leading axes D, so that a thousand bootstrap draws cost one call. Inside them
NaN stands for "cannot be computed"; a :class:`Figure` has ``None`` and a reason instead, never 0.

Letters: K classes, D leading axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedmed.metrics.calibration import brier_moments, expected_error_by_class, expected_error, largest_error
from fedmed.metrics.tables import EvaluationTables

Array = npt.NDArray[Any]

LOWER_IS_BETTER = frozenset({"ece", "mce", "brier", "classwise_ece"})
NO_IMAGES = "no images"


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    Attributes
    ----------
    key : str
        Its name in reports.
    value : float or None
        ``None`` if it cannot be computed.
    n : int
        Number of images behind it.
    better : {"up", "down"}
        Which direction is an improvement.
    interval : (float, float), optional
        Lower and upper end.
    by_class : tuple of K (float or None), optional
        The figure of each class, where there is one.
    by_class_interval : tuple of K intervals or None, optional
        Likewise.
    reason : str, optional
        Why ``value`` is ``None``.
    """

    key: str
    value: float | None
    n: int
    better: Literal["up", "down"]
    interval: tuple[float, float] | None = None
    by_class: tuple[float | None, ...] | None = None
    by_class_interval: tuple[tuple[float, float] | None, ...] | None = None
    reason: str | None = None


class Values(NamedTuple):
    """A figure of many tables at once: shape (D,), and (D,K) by class where defined; NaN where not computable."""

    value: Array
    by_class: Array | None = None


def compute_figures(tables: EvaluationTables) -> dict[str, Figure]:
    """Compute all figures of the images in ``tables``, pooled over its groups.

    Parameters
    ----------
    tables : EvaluationTables
        Any number of groups.

    Returns
    -------
    dict from str to Figure
        By key, without intervals: ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``macro_precision``,
        ``macro_recall``, ``kappa``, ``mcc``, ``sensitivity``, ``specificity``, ``auc``, ``ece``, ``mce``, ``brier`` and
        ``classwise_ece``. See :func:`count_figures`, :func:`auc_by_class` and :mod:`fedmed.metrics.calibration`.
    """
    pooled = tables.pool()
    counts, scores, calibration = pooled.counts[0], pooled.scores[0], pooled.calibration[0]
    mean_brier, _, num_brier = brier_moments(pooled.brier[0])
    values = count_figures(counts) | calibration_values(calibration)
    values |= {"auc": auc_values(scores), "brier": Values(np.array(mean_brier))}
    sizes = {"auc": int(scores[:, 0].sum()), "brier": int(num_brier)}
    sizes |= dict.fromkeys(("ece", "mce", "classwise_ece"), int(calibration[..., 0].sum()))
    return {key: _make_figure(key, values[key], sizes.get(key, int(counts.sum()))) for key in values}


def count_figures(counts: Array) -> dict[str, Values]:
    """Compute the figures that follow from tables of true against predicted class.

    Parameters
    ----------
    counts : ndarray, shape (D,K,K)
        True class in rows.

    Returns
    -------
    dict from str to Values
        With tp, fp, fn, tn of each class against the rest and n images:

        * ``accuracy`` = sum of tp / n
        * ``sensitivity`` by class = tp / (tp + fn); value: mean over the classes present; ``balanced_accuracy`` is that
          mean
        * ``specificity`` by class = tn / (tn + fp); value: mean over the classes that have negatives
        * ``macro_precision``, ``macro_recall``, ``macro_f1``: mean over **all** K classes of tp / (tp + fp),
          tp / (tp + fn) and 2 tp / (2 tp + fp + fn), where a class without a denominator counts as 0 in the mean, as in
          scikit-learn with ``labels=range(K), zero_division=0``; by class it is NaN
        * ``kappa`` = (p_o - p_e) / (1 - p_e), unweighted (Cohen, 1960)
        * ``mcc``: the multi-class correlation R_K (Gorodkin, 2004). NaN where it is 0 / 0, for example if all answers
          are one class (scikit-learn says 0)
    """
    counts = counts.astype(np.float64)
    tp = np.diagonal(counts, axis1=-2, axis2=-1)
    positives, predicted, n = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    recall, precision = _divide(tp, positives), _divide(tp, predicted)
    negatives = n[..., None] - positives
    specificity = _divide(negatives - predicted + tp, negatives)
    f1 = _divide(2 * tp, positives + predicted)
    hits, chance = tp.sum(axis=-1), (positives * predicted).sum(axis=-1)
    spread = (n**2 - np.square(predicted).sum(axis=-1)) * (n**2 - np.square(positives).sum(axis=-1))
    mean_recall = mean_defined(recall)
    return {
        "accuracy": Values(_divide(hits, n)),
        "balanced_accuracy": Values(mean_recall),
        "macro_f1": Values(_macro(f1, n), f1),
        "macro_precision": Values(_macro(precision, n), precision),
        "macro_recall": Values(_macro(recall, n), recall),
        "kappa": Values(_divide(hits * n - chance, n**2 - chance)),
        "mcc": Values(_divide(hits * n - chance, np.sqrt(spread))),
        "sensitivity": Values(mean_recall, recall),
        "specificity": Values(mean_defined(specificity), specificity),
    }


def calibration_values(calibration: Array) -> dict[str, Values]:
    """Compute ``ece``, ``mce`` and ``classwise_ece`` of calibration tables, shape (D,K,15,3).

    ``ece`` and ``mce`` are over all images; ``classwise_ece`` is the ECE of the images of each true class, its value the
    mean over the classes present.
    """
    pooled = calibration.sum(axis=-3)
    by_class = expected_error(calibration)
    return {
        "ece": Values(expected_error(pooled)),
        "mce": Values(largest_error(pooled)),
        "classwise_ece": Values(mean_defined(by_class), by_class),
    }


def auc_values(scores: Array) -> Values:
    """Compute one-vs-rest areas under the ROC curve of score tables, shape (D,K,K,64).

    The value is the mean over the classes that have both positives and negatives. Two scores in one bin count as a tie,
    that is half.
    """
    above, below = split_scores(scores)
    beaten = np.cumsum(below, axis=-1) - 0.5 * below
    pairs = above.sum(axis=-1) * below.sum(axis=-1)
    by_class = _divide((above * beaten).sum(axis=-1), pairs)
    return Values(mean_defined(by_class), by_class)


def split_scores(scores: Array) -> tuple[Array, Array]:
    """Return the histograms, each (D,K,64), of every class's score over its own images and over all others."""
    own = np.moveaxis(np.diagonal(scores, axis1=-4 + 1, axis2=-3 + 1), -1, -2).astype(np.float64)
    return own, scores.sum(axis=-3) - own


def roc_points(tables: EvaluationTables, class_index: int) -> tuple[Array, Array]:
    """Return the points of a class's ROC curve, one-vs-rest, pooled over the groups.

    Parameters
    ----------
    tables : EvaluationTables
        With scores.
    class_index : int
        The class, in [0, K).

    Returns
    -------
    fpr, tpr : ndarray, shape (65,)
        Rates of false and true positives, from (0, 0) to (1, 1); the trapezoids below them add up to the figure
        ``auc``. Both empty if the class has no positives or no negatives.

    Raises
    ------
    ValueError
        If there is no such class.
    """
    if not 0 <= class_index < tables.num_classes:
        raise ValueError(f"There is no class {class_index}. Allowed: 0 to {tables.num_classes - 1}.")
    own, others = (side[class_index] for side in split_scores(tables.pool().scores[0]))
    if own.sum() == 0 or others.sum() == 0:
        return np.empty(0), np.empty(0)
    # Lowering the threshold bin by bin from the top lets one bin after the other through.
    tpr, fpr = (np.concatenate([[0.0], np.cumsum(side[::-1]) / side.sum()]) for side in (own, others))
    return fpr, tpr


def mean_defined(by_class: Array) -> Array:
    """Return the mean over the last axis of what is not NaN, or NaN where nothing is."""
    defined = ~np.isnan(by_class)
    return _divide(np.where(defined, by_class, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _macro(by_class: Array, n: Array) -> Array:
    mean: Array = np.nan_to_num(by_class, nan=0.0).mean(axis=-1)
    return np.where(n > 0, mean, np.nan)


def _divide(numerator: Array, denominator: Array) -> Array:
    result = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result

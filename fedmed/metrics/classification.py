"""Figures of merit of a classifier, from evaluation tables.

Letters: K classes, D leading axes (none, or the draws of a bootstrap).
"""

import numpy as np

from fedmed.metrics.calibration import brier_values, calibration_values
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array, Figure, Values, divide_defined, mean_defined, optional_float

__all__ = [
    "Figure",
    "area_values",
    "compute_figures",
    "count_values",
    "roc_points",
    "score_values",
    "split_scores",
]

LOWER_IS_BETTER = frozenset({"ece", "mce", "brier", "classwise_ece"})


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
        ``macro_recall``, ``kappa``, ``mcc``, ``sensitivity``, ``specificity``, ``auc``, ``ece``, ``mce``,
        ``classwise_ece`` and ``brier``. Definitions: :func:`count_values`, :func:`score_values`,
        :func:`fedmed.metrics.calibration.calibration_values` and :func:`fedmed.metrics.calibration.brier_values`.
    """
    pooled = tables.pool()
    counts, scores, calibration, brier = (array[0] for array in pooled.to_arrays().values())
    parts = (
        (count_values(counts), int(counts.sum())),
        (score_values(scores), int(scores[:, 0].sum())),
        (calibration_values(calibration), round(calibration[..., 0].sum())),
        (brier_values(brier), round(brier[0])),
    )
    return {key: _make_figure(key, values, n, pooled) for part, n in parts for key, values in part.items()}


def count_values(counts: Array) -> dict[str, Values]:
    """Compute the figures that follow from tables of true against predicted class.

    Parameters
    ----------
    counts : ndarray, shape (D,K,K)
        True class in rows.

    Returns
    -------
    dict from str to Values
        With tp, fp, fn, tn of each class against the rest, and n images:

        * ``accuracy`` = sum of tp / n
        * ``sensitivity`` by class = tp / (tp + fn); value: mean over the classes present, which is also
          ``balanced_accuracy``
        * ``specificity`` by class = tn / (tn + fp); value: mean over the classes that have negatives
        * ``macro_precision``, ``macro_recall``, ``macro_f1``: mean over **all** K classes of tp / (tp + fp),
          tp / (tp + fn) and 2 tp / (2 tp + fp + fn). A class without a denominator counts as 0 in the mean, as in
          scikit-learn with ``labels=range(K), zero_division=0``; by class it is NaN.
        * ``kappa`` = (p_o - p_e) / (1 - p_e), unweighted (Cohen, 1960)
        * ``mcc``: the multi-class correlation R_K (Gorodkin, 2004); NaN where it is 0 / 0, for example if all answers
          are of one class (scikit-learn gives 0)
    """
    counts = counts.astype(np.float64)
    n = counts.sum(axis=(-2, -1))
    tp, positives, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)
    negatives = n[..., None] - positives
    recall, precision = divide_defined(tp, positives), divide_defined(tp, predicted)
    specificity = divide_defined(negatives - predicted + tp, negatives)
    f1 = divide_defined(2 * tp, positives + predicted)
    hits, chance = tp.sum(axis=-1), (positives * predicted).sum(axis=-1)
    spread = (n**2 - np.square(predicted).sum(axis=-1)) * (n**2 - np.square(positives).sum(axis=-1))
    return {
        "accuracy": Values(divide_defined(hits, n)),
        "balanced_accuracy": Values(mean_defined(recall)),
        "macro_f1": Values(_mean_of_all(f1, n), f1),
        "macro_precision": Values(_mean_of_all(precision, n), precision),
        "macro_recall": Values(_mean_of_all(recall, n), recall),
        "kappa": Values(divide_defined(hits * n - chance, n**2 - chance)),
        "mcc": Values(divide_defined(hits * n - chance, np.sqrt(spread))),
        "sensitivity": Values(mean_defined(recall), recall),
        "specificity": Values(mean_defined(specificity), specificity),
    }


def score_values(scores: Array) -> dict[str, Values]:
    """Compute ``auc``, the area under the one-vs-rest ROC curves, of score tables of shape (D,K,K,64).

    By class it is the probability that an image of the class has a higher score than another image, two scores in one
    bin being a tie that counts half. The value is the mean over the classes that have both positives and negatives.
    """
    return {"auc": area_values(*split_scores(scores))}


def area_values(own: Array, others: Array) -> Values:
    """Compute the areas under the ROC curves of histograms as :func:`split_scores` gives them."""
    beaten = np.cumsum(others, axis=-1) - 0.5 * others
    by_class = divide_defined((own * beaten).sum(axis=-1), own.sum(axis=-1) * others.sum(axis=-1))
    return Values(mean_defined(by_class), by_class)


def split_scores(scores: Array) -> tuple[Array, Array]:
    """Return histograms, each (D,K,64), of every class's score: over the class's own images, and over all others."""
    own = np.moveaxis(np.diagonal(scores, axis1=-3, axis2=-2), -1, -2).astype(np.float64)
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
        Rates of false and true positives, from (0, 0) to (1, 1); the trapezoids below add up to the figure ``auc``.
        Both of length 0 if the class has no positives or no negatives.

    Raises
    ------
    ValueError
        If there is no such class.
    """
    if not 0 <= class_index < tables.num_classes:
        raise ValueError(f"There is no class {class_index}. Allowed: 0 to {tables.num_classes - 1}.")
    own, others = (side[class_index] for side in split_scores(tables.pool().scores[0]))
    if not own.any() or not others.any():
        return np.empty(0), np.empty(0)
    return _share_above(others), _share_above(own)


def _share_above(histogram: Array) -> Array:
    # Lowering the threshold bin by bin from the top lets one bin after the other through.
    return np.concatenate([[0.0], np.cumsum(histogram[::-1]) / histogram.sum()])


def _mean_of_all(by_class: Array, n: Array) -> Array:
    return np.where(n > 0, np.nan_to_num(by_class, nan=0.0).mean(axis=-1), np.nan)


def _make_figure(key: str, values: Values, n: int, tables: EvaluationTables) -> Figure:
    value = optional_float(values.value)
    return Figure(
        key,
        value,
        n,
        "down" if key in LOWER_IS_BETTER else "up",
        by_class=None if values.by_class is None else tuple(optional_float(item) for item in values.by_class),
        reason=None if value is not None else _explain(key, n, tables),
    )


def _explain(key: str, n: int, tables: EvaluationTables) -> str:
    if n == 0:
        return "the tables hold no scores" if key == "auc" and tables.num_images else "no images"
    return {
        "auc": "the images are all of one class",
        "kappa": "all images and all answers are of one class",
        "mcc": "all images or all answers are of one class",
    }[key]

"""Figures of merit of a classifier, from evaluation tables.

Letters: K classes, D leading axes (none, or the draws of a bootstrap).
"""

import numpy as np

from fedmed.metrics.calibration import brier_values, calibration_values
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import (
    Array,
    Figure,
    Values,
    divide_defined,
    gap_defined,
    mean_defined,
    min_defined,
    optional_float,
    std_defined,
)

__all__ = [
    "Figure",
    "area_figures",
    "area_values",
    "compute_figures",
    "count_values",
    "lacking_classes",
    "roc_points",
    "score_values",
    "split_scores",
]

LOWER_IS_BETTER = frozenset({"ece", "mce", "brier", "classwise_ece", "class_recall_gap", "class_auc_std"})
MACRO_FIGURES = frozenset(
    {
        "balanced_accuracy",
        "macro_f1",
        "macro_precision",
        "macro_recall",
        "sensitivity",
        "specificity",
        "auc",
        "classwise_ece",
        "worst_class_recall",
        "class_recall_gap",
        "class_auc_std",
    }
)
"""Figures that speak of all classes; without one of them they would be about something else."""


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
        ``macro_recall``, ``kappa``, ``mcc``, ``sensitivity``, ``specificity``, ``worst_class_recall``,
        ``class_recall_gap``, ``auc``, ``class_auc_std``, ``ece``, ``mce``, ``classwise_ece`` and ``brier``.
        Definitions: :func:`count_values`, :func:`score_values`,
        :func:`fedmed.metrics.calibration.calibration_values` and :func:`fedmed.metrics.calibration.brier_values`.

    Notes
    -----
    Images of rare classes, whose class is not told, count in ``accuracy``, ``ece`` and ``mce``. A figure about all
    classes (:data:`MACRO_FIGURES`) has no value if all images of a class are withheld, nor has that class in
    ``by_class``. Every figure carries the number of withheld rows in ``n_withheld``.
    """
    pooled = tables.pool()
    counts, scores, calibration, brier, rare = (
        getattr(pooled, name)[0] for name in ("counts", "scores", "calibration", "brier", "rare")
    )
    values = count_values(counts, rare.sum(axis=0)), score_values(scores), calibration_values(calibration, rare)
    num_counted, num_rare = int(counts.sum()), round(rare[..., 0].sum())
    num_scored, num_binned = int(scores[:, 0].sum()), round(calibration[..., 0].sum())
    num_images = {
        "accuracy": num_counted + num_rare,
        "auc": num_scored,
        "class_auc_std": num_scored,
        "ece": num_binned + num_rare,
        "mce": num_binned + num_rare,
        "classwise_ece": num_binned,
        "brier": round(brier[0]),
    }
    found = values[0] | values[1] | values[2] | brier_values(brier)
    return {key: _make_figure(key, item, num_images.get(key, num_counted), pooled) for key, item in found.items()}


def lacking_classes(tables: EvaluationTables) -> Array:
    """Return which classes are withheld wholly in each group, shape (G,K) of bool: none of their images is counted."""
    lacking: Array = (tables.withheld > 0) & (tables.counts.sum(axis=-1) == 0)
    return lacking


def count_values(counts: Array, rare: Array | None = None) -> dict[str, Values]:
    """Compute the figures that follow from tables of true against predicted class.

    Parameters
    ----------
    counts : ndarray, shape (D,K,K)
        True class in rows.
    rare : ndarray, shape (D,3), optional
        Number of images whose class is not told, sum of their confidence, number right; for ``accuracy``.

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
        * ``worst_class_recall``, ``class_recall_gap``: lowest, and highest - lowest, recall of the classes present
    """
    counts = counts.astype(np.float64)
    n = counts.sum(axis=(-2, -1))
    tp, positives, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)
    negatives = n[..., None] - positives
    recall, precision = divide_defined(tp, positives), divide_defined(tp, predicted)
    specificity = divide_defined(negatives - predicted + tp, negatives)
    f1 = divide_defined(2 * tp, positives + predicted)
    rare_n, rare_hits = (0.0, 0.0) if rare is None else (rare[..., 0], rare[..., 2])
    hits, chance = tp.sum(axis=-1), (positives * predicted).sum(axis=-1)
    spread = (n**2 - np.square(predicted).sum(axis=-1)) * (n**2 - np.square(positives).sum(axis=-1))
    return {
        "accuracy": Values(divide_defined(hits + rare_hits, n + rare_n)),
        "balanced_accuracy": Values(mean_defined(recall)),
        "macro_f1": Values(_mean_of_all(f1, n), f1),
        "macro_precision": Values(_mean_of_all(precision, n), precision),
        "macro_recall": Values(_mean_of_all(recall, n), recall),
        "kappa": Values(divide_defined(hits * n - chance, n**2 - chance)),
        "mcc": Values(divide_defined(hits * n - chance, np.sqrt(spread))),
        "sensitivity": Values(mean_defined(recall), recall),
        "specificity": Values(mean_defined(specificity), specificity),
        "worst_class_recall": Values(min_defined(recall)),
        "class_recall_gap": Values(gap_defined(recall)),
    }


def score_values(scores: Array) -> dict[str, Values]:
    """Compute ``auc``, the area under the one-vs-rest ROC curves, and ``class_auc_std`` of tables (D,K,K,64) of scores.

    By class the AUC is the probability that an image of the class has a higher score than another image, two scores in
    one bin being a tie that counts half. The value is the mean over the classes that have both positives and negatives;
    ``class_auc_std`` is the standard deviation (ddof 0) over the same classes, of which there must be two.
    """
    return area_figures(area_values(*split_scores(scores)))


def area_figures(areas: Values) -> dict[str, Values]:
    """Return ``auc`` and ``class_auc_std`` of areas as :func:`area_values` gives them."""
    assert areas.by_class is not None
    return {"auc": areas, "class_auc_std": Values(std_defined(areas.by_class))}


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
    lacking_K = lacking_classes(tables)[0]
    withheld = tables.withheld.any() and (n == 0 or (key in MACRO_FIGURES and bool(lacking_K.any())))
    value = None if withheld else optional_float(values.value)
    by_class = None if values.by_class is None else np.where(lacking_K, np.nan, values.by_class)
    return Figure(
        key,
        value,
        n,
        "down" if key in LOWER_IS_BETTER else "up",
        by_class=None if by_class is None else tuple(optional_float(item) for item in by_class),
        reason=None if value is not None else _explain(key, n, tables),
        n_withheld=int(tables.withheld.sum()),
    )


def _explain(key: str, n: int, tables: EvaluationTables) -> str:
    lacking = np.flatnonzero(lacking_classes(tables)[0])
    of_scores = key in ("auc", "class_auc_std")
    if n == 0 and of_scores and tables.counts.any():
        return "the tables hold no scores"
    if n == 0:
        return "all images are withheld" if tables.withheld.any() else "no images"
    if len(lacking) and key in MACRO_FIGURES:
        named = ", ".join(map(str, lacking))
        return f"class {named} is withheld" if len(lacking) == 1 else f"classes {named} are withheld"
    return {
        "auc": "the images are all of one class",
        "class_auc_std": "the images are all of one class",
        "class_recall_gap": "the images are all of one class",
        "kappa": "all images and all answers are of one class",
        "mcc": "all images or all answers are of one class",
    }[key]

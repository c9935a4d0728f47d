"""Figures of merit of a classifier, from evaluation tables.

Letters: K classes, D leading axes (none, or the draws of a bootstrap).
"""

from dataclasses import replace

import numpy as np

from fedmed.metrics.answer_ranges import RANGED, Range, find_ranges, settle_other
from fedmed.metrics.calibration import brier_values, calibration_values, classwise_values
from fedmed.metrics.evaluation import EvaluationTables
from fedmed.metrics.roc import (
    Areas,
    are_too_coarse,
    area_bounds,
    area_figures,
    area_values,
    find_areas,
    roc_points,
    score_values,
    split_scores,
)
from fedmed.metrics.values import (
    Array,
    Figure,
    Values,
    divide_defined,
    gap_defined,
    mean_defined,
    min_defined,
    optional_float,
)

__all__ = [
    "Areas",
    "Figure",
    "area_bounds",
    "area_figures",
    "area_values",
    "compute_figures",
    "count_values",
    "find_areas",
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
COUNT_KEYS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "kappa",
    "mcc",
    "sensitivity",
    "specificity",
    "worst_class_recall",
    "class_recall_gap",
)
"""Figures of :func:`count_values`."""
FURTHER_KEYS = ("auc", "class_auc_std", "ece", "mce", "classwise_ece", "brier")


def compute_figures(tables: EvaluationTables, classes: Array | None = None) -> dict[str, Figure]:
    """Compute all figures of the images in ``tables``, pooled over its groups.

    Parameters
    ----------
    tables : EvaluationTables
        Any number of groups.
    classes : ndarray of bool, shape (K,), optional
        Only images of these true classes count.

    Returns
    -------
    dict from str to Figure
        By key, without intervals: ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``macro_precision``,
        ``macro_recall``, ``kappa``, ``mcc``, ``sensitivity``, ``specificity``, ``worst_class_recall``,
        ``class_recall_gap``, ``auc``, ``class_auc_std``, ``ece``, ``mce``, ``classwise_ece`` and ``brier``.
        Definitions: :func:`count_values`, :func:`score_values`,
        :func:`fedmed.metrics.calibration.calibration_values`, :func:`fedmed.metrics.calibration.classwise_values` and
        :func:`fedmed.metrics.calibration.brier_values`.

    Notes
    -----
    Images of rare classes, whose class is not told, count in ``accuracy``, ``ece`` and ``mce``. A figure about all
    classes (:data:`MACRO_FIGURES`) is one over the classes that are told (:attr:`Figure.classes`), if there are two; a
    class all of whose images are withheld has no value in ``by_class``. Every figure carries the number of withheld
    rows in ``n_withheld``.

    ``auc`` is that of the images themselves where they are of one site that tells it. Of several sites it is that of
    the histograms where all sites tell them and no class's can be more than
    :data:`fedmed.metrics.answer_ranges.MOST_OFF` off by the width of the bins (half of its ties). Else it is made of
    the sites' own areas, so that images are compared within sites only; see :mod:`fedmed.metrics.areas`.
    """
    pooled = tables.pool() if classes is None else tables.pool().keep_classes(classes)
    counts, other, mixed, brier, rare = (
        getattr(pooled, name)[0] for name in ("counts", "other_wrong", "mixed", "brier", "rare")
    )
    calibration, told_K = pooled.calibration[0], ~lacking_classes(pooled)[0]
    if classes is not None:
        told_K &= classes
    found = count_values(counts, rare, other, told_K) | calibration_values(calibration, mixed) | brier_values(brier)
    area = find_areas(pooled)
    found |= area_figures(area.values) | classwise_values(pooled.scores[0])
    num_counted, num_rare = int(pooled.row_images.sum()), int(rare[0])
    num_told = round(calibration[..., 0].sum() + mixed[..., 0].sum())
    num_images = {
        "accuracy": num_counted + num_rare,
        "auc": area.n,
        "class_auc_std": area.n,
        "ece": num_told,
        "mce": num_told,
        "classwise_ece": int(pooled.scores[0, :, 0].sum()),
        "brier": round(brier[0]),
    }
    figures = {
        key: _make_figure(key, found[key], num_images.get(key, num_counted), pooled, told_K)
        for key in (*COUNT_KEYS, *FURTHER_KEYS)
    }
    for key in ("auc", "class_auc_std"):
        figures[key] = replace(figures[key], bound=area.bound, within_sites=area.within_sites)
    return figures


def lacking_classes(tables: EvaluationTables) -> Array:
    """Return which classes are withheld wholly in each group, shape (G,K) of bool: none of their images is counted."""
    lacking: Array = (tables.withheld > 0) & (tables.row_images == 0)
    return lacking


def count_values(
    counts: Array, rare: Array | None = None, other_wrong: Array | None = None, classes: Array | None = None
) -> dict[str, Values]:
    """Compute the figures that follow from tables of true against predicted class.

    Parameters
    ----------
    counts : ndarray, shape (D,K,K)
        True class in rows.
    rare : ndarray, shape (D,2), optional
        Number of images whose class is not told, and number right; for ``accuracy``.
    other_wrong : ndarray, shape (D,K), optional
        Number of wrong answers by true class whose predicted class is not told. The figures that need it
        (:data:`fedmed.metrics.answer_ranges.RANGED`) are then in the middle of the range in which they may lie, and NaN
        where that is more than :data:`fedmed.metrics.answer_ranges.MOST_OFF` from its ends.
    classes : ndarray of bool, shape (K,), optional
        Classes over which means are taken, where images of the others are not told; their rows must be zeros. Of fewer
        than two there is no mean.

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
    if other_wrong is not None and other_wrong.any():
        counts, other_wrong = settle_other(counts, other_wrong)
    counts = counts.astype(np.float64)
    told = counts.sum(axis=(-2, -1))
    tp, positives, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)
    n = told
    if other_wrong is not None:
        positives, n = positives + other_wrong, told + other_wrong.sum(axis=-1)
    recall = divide_defined(tp, positives)
    rare_n, rare_hits = (0.0, 0.0) if rare is None else (rare[..., 0], rare[..., 1])
    hits = tp.sum(axis=-1)
    found = {
        "accuracy": Values(divide_defined(hits + rare_hits, n + rare_n)),
        "balanced_accuracy": Values(mean_defined(recall)),
        **_predicted_values(counts, tp, positives, predicted),
        "macro_recall": Values(_mean_of_all(recall, n), recall),
        "sensitivity": Values(mean_defined(recall), recall),
        "worst_class_recall": Values(min_defined(recall)),
        "class_recall_gap": Values(gap_defined(recall)),
    }
    if other_wrong is not None and other_wrong.any():
        ranges = {key: _keep_range(key, one, classes) for key, one in find_ranges(counts, other_wrong).items()}
        return {
            key: ranges[key].to_values() if key in ranges else _keep(key, found[key], classes) for key in COUNT_KEYS
        }
    return {key: _keep(key, found[key], classes) for key in COUNT_KEYS}


def _keep_range(key: str, found: Range, classes: Array | None) -> Range:
    return Range(_keep(key, found.low, classes), _keep(key, found.high, classes))


def _keep(key: str, values: Values, classes: Array | None) -> Values:
    """Return the mean over some classes only; a class without images adds nothing to a mean over all of them."""
    if classes is None or classes.all() or key not in MACRO_FIGURES:
        return values
    by_class = None if values.by_class is None else np.where(classes, values.by_class, np.nan)
    value = values.value
    if key in ("macro_f1", "macro_precision", "macro_recall"):
        value = value * (len(classes) / max(int(classes.sum()), 1))
    elif key == "specificity" and by_class is not None:
        value = mean_defined(by_class)
    return Values(np.where(classes.sum() > 1, value, np.nan), by_class)


def _predicted_values(counts: Array, tp: Array, positives: Array, predicted: Array) -> dict[str, Values]:
    """Return the figures that need the predicted class of every image, of counts without any others."""
    n = counts.sum(axis=(-2, -1))
    negatives = n[..., None] - positives
    precision, specificity = divide_defined(tp, predicted), divide_defined(negatives - predicted + tp, negatives)
    f1 = divide_defined(2 * tp, positives + predicted)
    hits, chance = tp.sum(axis=-1), (positives * predicted).sum(axis=-1)
    spread = _pairs_of_unlike(predicted) * _pairs_of_unlike(positives)
    return {
        "macro_f1": Values(_mean_of_all(f1, n), f1),
        "macro_precision": Values(_mean_of_all(precision, n), precision),
        "kappa": Values(divide_defined(hits * n - chance, n**2 - chance)),
        "mcc": Values(divide_defined(hits * n - chance, np.sqrt(spread))),
        "specificity": Values(mean_defined(specificity), specificity),
    }


def _pairs_of_unlike(images: Array) -> Array:
    """Return n**2 - sum of n_k**2 from the images of each class, as the sum of n_k (n - n_k).

    Drawn counts are no whole numbers, and where all are of one class the difference of the squares can come out below
    zero; a sum of products cannot.
    """
    others = images @ (1.0 - np.eye(images.shape[-1]))
    pairs: Array = (images * others).sum(axis=-1)
    return pairs


def _mean_of_all(by_class: Array, n: Array) -> Array:
    return np.where(n > 0, np.nan_to_num(by_class, nan=0.0).mean(axis=-1), np.nan)


def _make_figure(key: str, values: Values, n: int, tables: EvaluationTables, told_K: Array) -> Figure:
    is_partial = key in MACRO_FIGURES and not told_K.all()
    is_known = n > 0 and (not is_partial or told_K.sum() > 1)
    value = optional_float(values.value) if is_known or not tables.withheld.any() else None
    by_class = None if values.by_class is None else np.where(told_K, values.by_class, np.nan)
    return Figure(
        key,
        value,
        n,
        "down" if key in LOWER_IS_BETTER else "up",
        by_class=None if by_class is None else tuple(optional_float(item) for item in by_class),
        reason=None if value is not None else _explain(key, n, tables, told_K),
        n_withheld=int(tables.withheld.sum()),
        classes=tuple(np.flatnonzero(told_K).tolist()) if is_partial and value is not None else None,
    )


def _explain(key: str, n: int, tables: EvaluationTables, told_K: Array) -> str:
    lacking = np.flatnonzero(~told_K)
    if n == 0:
        return _explain_absence(key, tables)
    if len(lacking) and key in MACRO_FIGURES and told_K.sum() < 2:
        named = ", ".join(map(str, lacking))
        return f"class {named} is withheld" if len(lacking) == 1 else f"classes {named} are withheld"
    if key in RANGED and tables.other_wrong.any():
        return "too many wrong answers are not told by class"
    if key in ("auc", "class_auc_std") and are_too_coarse(tables.scores[0]):
        return "the histograms of the scores are too coarse for this model"
    return {
        "auc": "the images are all of one class",
        "class_auc_std": "the images are all of one class",
        "class_recall_gap": "the images are all of one class",
        "kappa": "all images and all answers are of one class",
        "mcc": "all images or all answers are of one class",
    }[key]


def _explain_absence(key: str, tables: EvaluationTables) -> str:
    """Return why a figure rests on no image."""
    if key in ("auc", "class_auc_std") and tables.row_images.any():
        return "the tables hold no scores"
    if key in ("ece", "mce", "classwise_ece", "brier") and tables.num_images:
        return "it is not told class by class" if key == "classwise_ece" else "it is told for whole sites only"
    return "all images are withheld" if tables.withheld.any() else "no images"

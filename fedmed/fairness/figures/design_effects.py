"""Design effects: how much less images say where a patient has several.

Of a row (group, true class) let p be its share of right answers, n its images, m its patients, and Q and D the sums of
:mod:`fedmed.metrics.clusters`. The variance of p is ``m / (m - 1) Q / n^2`` (Rao and Scott, Biometrics 48, 1992). With
the correlation rho of two answers to one patient it is, on average, ``p (1 - p) / n`` times the design effect

    deff = 1 + rho (D / n - 1).

One row alone tells little of its correlation, and none where all answers are right. So rho is one number for all rows,

    rho = sum_rows (m / (m - 1) Q - n / (n - 1) n p (1 - p)) / sum_rows n / (n - 1) (D - n) p (1 - p),

held between 0 and 1; where no row with several images a patient has both right and wrong answers, it is taken to be 1,
as if a patient's images all told the same. Of few patients it is known badly, for which the design effect is larger
(:func:`allow_for_few`), up to D / n, that of a correlation of 1. Every count of such a row then speaks for ``1 / deff``
images: intervals and draws are those of ``n / deff`` images. With one image a patient the design effect is 1 exactly.

That a patient has images in several rows, of several classes, is left out: the tables do not tell it. Where that is so
the design effect is too small: with five images each, all of any class, 95 % intervals hold the truth in 88 % of cases,
and 11 % of comparisons of equal models end in a verdict (``simulations/benchmarks/coverage.py --only mixed``).

Letters: G groups, K classes.
"""

import numpy as np
from scipy.stats import t as student

from fedmed.metrics.clusters import PATIENTS, SIZES, SQUARES
from fedmed.metrics.evaluation import EvaluationTables
from fedmed.metrics.values import Array, divide_defined


def find_correlation(right: Array, images: Array, patients: Array) -> float:
    """Return the correlation of two answers to one patient, between 0 and 1.

    Parameters
    ----------
    right, images : ndarray of int, shape (...)
        Right answers and images of each row.
    patients : ndarray, shape (..., 4)
        m, Q, C and D of each row; zeros where nothing is known.
    """
    m, squares, sizes = (patients[..., place] for place in (PATIENTS, SQUARES, SIZES))
    usable = (m > 1) & (sizes > images) & (images > 1)
    if not ((sizes > images) & (m > 0)).any():
        return 0.0
    p = np.nan_to_num(divide_defined(right, images))
    unrelated = np.where(usable, images * p * (1 - p) * divide_defined(images, images - 1), 0.0)
    found = np.where(usable, squares * divide_defined(m, m - 1), 0.0)
    shared = (np.where(usable, divide_defined(sizes, images), 1.0) - 1) * unrelated
    if shared.sum() <= 0:
        return 1.0
    return float(np.clip((found - unrelated).sum() / shared.sum(), 0.0, 1.0))


def find_design_effects(tables: EvaluationTables) -> Array:
    """Return the design effect of each row, float64 (G,K), at least 1; 1 where patients are not known.

    Parameters
    ----------
    tables : EvaluationTables
        Of any number of groups. The correlation is that of all of them.
    """
    return design_effects(np.diagonal(tables.counts, axis1=-2, axis2=-1), tables.row_images, tables.patients)


def design_effects(right: Array, images: Array, patients: Array) -> Array:
    """Return the design effects of rows, as :func:`find_design_effects` does.

    Parameters
    ----------
    right, images, patients : ndarray
        As for :func:`find_correlation`.
    """
    return _make_effects(find_correlation(right, images, patients), images, patients)


def _make_effects(rho: float, images: Array, patients: Array) -> Array:
    m = patients[..., PATIENTS]
    sizes = np.where(m > 0, patients[..., SIZES], images)
    largest = 1 + np.maximum(np.nan_to_num(divide_defined(sizes, images), nan=1.0) - 1, 0.0)
    usable = (m > 1) & (sizes > images)
    effects: Array = np.minimum((1 + rho * (largest - 1)) * allow_for_few((m[usable] - 1).sum()), largest)
    return effects


def allow_for_few(degrees: float) -> float:
    """Return by how much a variance counts as larger since it is found from so many degrees of freedom only.

    The square of Student's quantile over the normal one, at 95 % (Korn and Graubard, Survey Methodology 24, 1998).
    """
    return float((student.ppf(0.975, max(degrees, 1.0)) / student.ppf(0.975, np.inf)) ** 2)


def find_score_effect(tables: EvaluationTables) -> float:
    """Return the design effect of a sum of scores, such as Brier's, of all images; at least that of right answers.

    What a patient's images have in common is seen less well in right and wrong than in scores. Of normal variables the
    correlation is ``sin(pi rho / 2)`` where that of their signs is rho (Sheppard, 1899).
    """
    right, images = np.diagonal(tables.counts, axis1=-2, axis2=-1), tables.row_images
    rho = np.sin(np.pi / 2 * find_correlation(right, images, tables.patients))
    return pooled_effect(_make_effects(float(rho), images, tables.patients), images)


def find_pooled_effect(tables: EvaluationTables, chosen: Array | None = None) -> float:
    """Return the design effect of all right answers together, at least 1.

    Parameters
    ----------
    tables : EvaluationTables
        Of any number of groups.
    chosen : ndarray of bool, shape (K,), optional
        Classes whose images are meant; without, all. The correlation is that of all of them in any case.
    """
    effects, images = find_design_effects(tables), tables.row_images
    if chosen is not None:
        effects, images = effects[:, chosen], images[:, chosen]
    return pooled_effect(effects, images)


def pooled_effect(effects: Array, images: Array) -> float:
    """Return the design effect of a sum over rows: their mean, weighted by images."""
    return float(np.nan_to_num(divide_defined((effects * images).sum(), images.sum()), nan=1.0))


def count_effective(images: Array, effects: Array) -> Array:
    """Return how many images that are each a patient's only one say as much, int64, at least 1 of a row with images."""
    numbers: Array = np.where(images > 0, np.maximum(np.rint(images / effects), 1), 0).astype(np.int64)
    return numbers

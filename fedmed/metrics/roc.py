"""Areas under ROC curves, from histograms of scores or from the sites' own areas; see :mod:`fedmed.metrics.areas`.

Letters: K classes, D leading axes (none, or the draws of a bootstrap).
"""

from dataclasses import dataclass
from typing import cast

import numpy as np

from fedmed.metrics.answer_ranges import MOST_OFF
from fedmed.metrics.areas import PAIRS, pooled_areas
from fedmed.metrics.evaluation import EvaluationTables
from fedmed.metrics.values import Array, Values, divide_defined, max_defined, mean_defined, optional_float, std_defined

_ROUNDED = 0.005


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


@dataclass(frozen=True)
class Areas:
    """Areas under the ROC curves of all classes, and what they rest on."""

    values: Values
    n: int
    """Images."""
    bound: float | None = None
    """How far the value may be off by the width of the bins."""
    within_sites: bool = False
    of_images: bool = False
    """Whether the images themselves were compared: all of them, or those of the same site (``within_sites``)."""


def find_areas(pooled: EvaluationTables) -> Areas:
    """Return the areas of tables with one group.

    They are of the images themselves where these are of one site, else of the histograms where these are good enough,
    else of images of the same site.
    """
    own, others = split_scores(pooled.scores[0])
    scored, counted = int(own.sum()), int(pooled.row_images.sum())
    binned, bound_K = area_values(own, others), area_bounds(own, others)
    largest = max_defined(bound_K)
    is_fine = scored > 0 and (np.isnan(largest) or largest <= MOST_OFF)
    is_whole = bool(compare_all_pairs(pooled)[0])
    if pooled.areas.any() and (is_whole or not (is_fine and scored == counted)):
        lacking = pooled.areas[0, :, PAIRS] == 0
        n = int(pooled.row_images[0, ~lacking].sum())
        return Areas(pooled_areas(pooled.areas[0]), n, within_sites=not is_whole, of_images=True)
    bound = mean_defined(bound_K)
    by_class = np.where(bound_K <= MOST_OFF, cast(Array, binned.by_class), np.nan)
    return Areas(Values(np.where(is_fine, binned.value, np.nan), by_class), scored, bound=optional_float(bound))


def compare_all_pairs(tables: EvaluationTables) -> Array:
    """Return whether the told areas of a group compare all pairs of its images, shape (G,) of bool.

    So it is where they are images of one site: of several, the pairs of images of different sites are missing. The
    numbers of pairs may be rounded to three significant digits.
    """
    own = tables.row_images.astype(np.float64)
    pairs = own * (own.sum(axis=1, keepdims=True) - own)
    whole: Array = np.abs(tables.areas[..., PAIRS] - pairs) <= _ROUNDED * pairs
    is_whole: Array = whole.all(axis=1) & (pairs > 0).any(axis=1)
    return is_whole


def area_bounds(own: Array, others: Array) -> Array:
    """Return how far areas of histograms may be off, shape (D,K): half of the share of pairs that are ties."""
    ties = (own * others).sum(axis=-1)
    bounds: Array = 0.5 * divide_defined(ties, own.sum(axis=-1) * others.sum(axis=-1))
    return bounds


def are_too_coarse(scores: Array) -> bool:
    """Return whether the area of some class may be more than :data:`MOST_OFF` off, of histograms (K,K,64)."""
    return bool(max_defined(area_bounds(*split_scores(scores))) > MOST_OFF)


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

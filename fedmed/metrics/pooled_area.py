"""The exact area under the ROC curve over all images of all sites, where one person holds their scores."""

import numpy as np

from fedmed.metrics.areas import PAIRS, WON, measure_area
from fedmed.metrics.tables import log_odds
from fedmed.metrics.values import Array


def pooled_auc(logits_NK: Array, labels_N: Array) -> list[float | None]:
    """Return each class's area against all others, every image compared with every one of all sites.

    Parameters
    ----------
    logits_NK : ndarray of float64, shape (N,K)
        A model's outputs for N images, after its temperature.
    labels_N : ndarray of int, shape (N,)
        True classes.

    Returns
    -------
    list of float or None
        K areas; None where the class or the rest has no image.

    Notes
    -----
    The score of a class is its log-odds, as of the tables' areas, which orders images as its probability does. An
    area is the share of pairs (image of the class, other image) in which the class's own image has the higher score,
    a tie counted half.
    """
    odds_NK = log_odds(np.asarray(logits_NK, dtype=np.float64))
    found: list[float | None] = []
    for label in range(odds_NK.shape[1]):
        is_own_N = labels_N == label
        own, other = odds_NK[is_own_N, label], odds_NK[~is_own_N, label]
        numbers = measure_area(own, other, np.arange(len(own)), len(own) + np.arange(len(other)))
        found.append(float(numbers[WON] / numbers[PAIRS]) if numbers[PAIRS] else None)
    return found

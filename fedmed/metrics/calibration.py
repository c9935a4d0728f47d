"""Calibration figures from evaluation tables: whether a stated confidence of 80 % means 80 % right.

Definitions follow Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, on 15 equal bins, (lo, hi], of the
top-1 softmax confidence; the Brier score is Brier's own (1950), from 0 to 2, not divided by the number of classes. The
class-wise error is that of Kull et al., "Beyond temperature scaling", NeurIPS 2019: of each class, whether images that
get a probability of 20 % for it are of it in 20 % of the cases, over all images.
"""

import numpy as np

from fedmed.metrics.tables import CALIBRATION_BINS, SCORE_BINS, SCORE_RANGE, EvaluationTables
from fedmed.metrics.values import Array, Values, divide_defined, mean_defined


def calibration_values(calibration: Array, mixed: Array | float = 0.0) -> dict[str, Values]:
    """Compute ``ece`` and ``mce`` over all images.

    Parameters
    ----------
    calibration : ndarray, shape (D,K,15,3)
        Calibration tables by true class.
    mixed : ndarray, shape (D,15,3), optional
        The same of images whose class is not told.

    Notes
    -----
    ECE = sum_b (n_b / N) |accuracy_b - confidence_b|; MCE = the largest such gap of a bin that is not empty.
    """
    pooled = calibration.sum(axis=-3) + mixed
    gaps = divide_defined(_surplus(pooled), pooled[..., 0])
    largest = np.nan_to_num(gaps, nan=0.0).max(axis=-1)
    return {
        "ece": Values(expected_error(pooled)),
        "mce": Values(np.where(pooled[..., 0].any(axis=-1), largest, np.nan)),
    }


def classwise_values(scores: Array) -> dict[str, Values]:
    """Compute ``classwise_ece`` of histograms of scores (D,K,K,64).

    Returns
    -------
    dict from str to Values
        By class ``sum_b (n_b / N) |share of the class in b - mean probability of the class in b|`` over 15 equal bins b
        of the class's probability, all images taken; the value is the mean over all classes. NaN without scores.

    Notes
    -----
    The histograms are over log-odds. Each of their bins counts with the probability in its middle, and for the bin of
    the probability where that lies.
    """
    own = np.moveaxis(np.diagonal(scores, axis1=-3, axis2=-2), -1, -2)
    by_class = classwise_error(own, scores.sum(axis=-3) - own)
    return {"classwise_ece": Values(mean_defined(by_class), by_class)}


def classwise_error(own: Array, others: Array) -> Array:
    """Return the class-wise error of histograms (D,K,64) of each class's score, over own and over all other images."""
    middle = middle_probabilities()
    n = own + others
    surplus = np.stack([(own - n * middle)[..., place].sum(axis=-1) for place in _list_bins(middle)], axis=-1)
    return divide_defined(np.abs(surplus).sum(axis=-1), n.sum(axis=-1))


def middle_probabilities() -> Array:
    """Return the probability in the middle of each bin of scores, shape (64,)."""
    odds = (np.arange(SCORE_BINS) + 0.5) * (2 * SCORE_RANGE / SCORE_BINS) - SCORE_RANGE
    probabilities: Array = 1 / (1 + np.exp(-odds))
    return probabilities


def _list_bins(probability: Array) -> list[Array]:
    """Return the places of probabilities in each of the equal bins, those that are empty left out."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return [np.flatnonzero(bins == number) for number in np.unique(bins)]


def brier_values(brier: Array) -> dict[str, Values]:
    """Compute ``brier``, the mean of ``sum_k (p_k - 1[y = k])^2``, of tables of shape (D,3)."""
    return {"brier": Values(divide_defined(brier[..., 1], brier[..., 0]))}


def reliability(tables: EvaluationTables) -> dict[str, Array]:
    """Return the points of a reliability diagram, pooled over groups and classes.

    Returns
    -------
    dict from str to ndarray, shape (15,)
        ``n``: images in each bin of confidence; ``confidence`` and ``accuracy``: their means, NaN for an empty bin.
    """
    n, confidence, correct = np.moveaxis(tables.calibration.sum(axis=(0, 1)) + tables.mixed.sum(axis=0), -1, 0)
    return {"n": n, "confidence": divide_defined(confidence, n), "accuracy": divide_defined(correct, n)}


def expected_error(table: Array) -> Array:
    """Return the expected calibration error of tables of shape (D,15,3), NaN for a table without images."""
    return divide_defined(_surplus(table).sum(axis=-1), table[..., 0].sum(axis=-1))


def _surplus(table: Array) -> Array:
    surplus: Array = np.abs(table[..., 2] - table[..., 1])
    return surplus

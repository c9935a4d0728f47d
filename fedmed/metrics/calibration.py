"""Calibration figures from evaluation tables: whether a stated confidence of 80 % means 80 % right.

Definitions follow Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, on 15 equal bins, (lo, hi], of the
top-1 softmax confidence; the Brier score is Brier's own (1950), from 0 to 2, not divided by the number of classes.
"""

import numpy as np

from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array, Values, divide_defined, mean_defined


def calibration_values(calibration: Array, mixed: Array | float = 0.0) -> dict[str, Values]:
    """Compute ``ece``, ``mce`` and ``classwise_ece``.

    Parameters
    ----------
    calibration : ndarray, shape (D,K,15,3)
        Calibration tables by true class.
    mixed : ndarray, shape (D,15,3), optional
        The same of images whose class is not told; in ``ece`` and ``mce`` only.

    Returns
    -------
    dict from str to Values
        ``ece`` and ``mce`` over all images. ``classwise_ece`` is the ECE of the images of each true class; its value is
        the mean over the classes present.

    Notes
    -----
    ECE = sum_b (n_b / N) |accuracy_b - confidence_b|; MCE = the largest such gap of a bin that is not empty.
    """
    pooled = calibration.sum(axis=-3) + mixed
    by_class = expected_error(calibration)
    gaps = divide_defined(_surplus(pooled), pooled[..., 0])
    largest = np.nan_to_num(gaps, nan=0.0).max(axis=-1)
    return {
        "ece": Values(expected_error(pooled)),
        "mce": Values(np.where(pooled[..., 0].any(axis=-1), largest, np.nan)),
        "classwise_ece": Values(mean_defined(by_class), by_class),
    }


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

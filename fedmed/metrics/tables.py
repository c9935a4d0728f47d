"""Evaluation tables: all that a site tells about how well a model does on its images.

The tables add: summed over sites they are the tables of all sites' images taken together, and every figure and interval
of a report is computed from them. No image, score list or patient's identifier is in them.

Letters: N images, G groups, K classes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from fedmed.metrics.areas import measure_area
from fedmed.metrics.clusters import count_clusters, number_patients
from fedmed.metrics.evaluation import (
    CALIBRATION_BINS,
    POOLED_GROUP,
    SCORE_BINS,
    EvaluationTables,
    combine_tables,
    find_group,
)
from fedmed.metrics.values import Array

__all__ = [
    "CALIBRATION_BINS",
    "POOLED_GROUP",
    "SCORE_BINS",
    "Array",
    "EvaluationTables",
    "calibration_bins",
    "combine_tables",
    "find_answers",
    "find_group",
    "log_odds",
    "score_bins",
    "softmax",
    "tables_from_logits",
]

SCORE_RANGE = 12.0


def tables_from_logits(
    logits: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[str],
    patients: Sequence[str] | None = None,
    alerts: Array | None = None,
) -> EvaluationTables:
    """Count a model's answers.

    Parameters
    ----------
    logits : Tensor, shape (N,K)
        The model's output, K >= 2; computed with in float64. N may be 0: then there are no groups.
    labels : Tensor of integers, shape (N,)
        True classes.
    groups : sequence of str, length N
        Group of each image.
    patients : sequence of str, length N, optional
        Whose image each is. Without, every image is taken for a patient's only one.
    alerts : ndarray of bool, shape (N,), optional
        Whether each image raises an alert; without, that is not asked for.

    Returns
    -------
    EvaluationTables
        With nothing held back, and with the groups that occur, sorted. The predicted class is the first one with the
        largest logit.

    Raises
    ------
    ValueError
        If the lengths differ, a label is not in [0, K), a logit is not finite, or K < 2.

    Notes
    -----
    The log-odds are ``z_c - logsumexp(z without c)``, which loses no digits where p_c is near 0 or 1. Equal bins of the
    probability itself would put nearly all scores of a rare class into one bin and spoil its AUC.
    """
    z_NK, y_N = _check_predictions(logits, labels, groups)
    names = tuple(sorted(set(groups)))
    position = {name: index for index, name in enumerate(names)}
    g_N = np.array([position[group] for group in groups], dtype=np.int64)
    num_groups, num_classes = len(names), z_NK.shape[1]
    patient_N = number_patients(patients, len(y_N))
    predicted_N = z_NK.argmax(axis=1)
    p_NK, odds_NK = softmax(z_NK), log_odds(z_NK)
    brier_N = np.square(p_NK - np.eye(num_classes)[y_N]).sum(axis=1)
    row_N = g_N * num_classes + y_N
    clusters = count_clusters(row_N, patient_N, predicted_N == y_N, num_groups * num_classes)
    return EvaluationTables.make(
        names,
        num_classes,
        counts=_count((num_groups, num_classes, num_classes), g_N, y_N, predicted_N),
        patients=clusters.reshape(num_groups, num_classes, 4),
        scores=_count(
            (num_groups, num_classes, num_classes, SCORE_BINS),
            *np.broadcast_arrays(g_N[:, None], y_N[:, None], np.arange(num_classes), score_bins(odds_NK)),
        ),
        calibration=_sum_up(
            (num_groups, num_classes, CALIBRATION_BINS),
            (g_N, y_N, calibration_bins(p_NK.max(axis=1))),
            (np.ones_like(brier_N), p_NK.max(axis=1), predicted_N == y_N),
        ),
        brier=_sum_up((num_groups,), (g_N,), (np.ones_like(brier_N), brier_N, brier_N**2)),
        areas=_measure_areas(odds_NK, y_N, g_N, patient_N, num_groups),
        alerts=count_alerts((num_groups, num_classes), g_N, y_N, alerts),
    )


def find_answers(logits: torch.Tensor) -> tuple[Array, Array]:
    """Return the answers to images and how sure they are, as :func:`tables_from_logits` counts them.

    Parameters
    ----------
    logits : Tensor, shape (N,K)
        A model's output.

    Returns
    -------
    predicted_N, confidence_N : ndarray, shape (N,)
        The first class with the largest logit, and its probability, computed in float64.
    """
    z_NK = logits.detach().to(device="cpu", dtype=torch.float64).numpy()
    return z_NK.argmax(axis=1), softmax(z_NK).max(axis=1)


def log_odds(z_NK: Array) -> Array:
    """Return ``log p_c - log(1 - p_c)`` of the softmax of every class, shape (N,K), without cancellation."""
    odds_NK = np.empty_like(z_NK)
    for c in range(z_NK.shape[1]):
        others = np.delete(z_NK, c, axis=1)
        largest = others.max(axis=1, keepdims=True)
        odds_NK[:, c] = z_NK[:, c] - largest[:, 0] - np.log(np.exp(others - largest).sum(axis=1))
    return odds_NK


def score_bins(odds: Array) -> Array:
    """Return the histogram bin, 0 to 63, of log-odds."""
    scaled = np.floor((odds + SCORE_RANGE) * (SCORE_BINS / (2 * SCORE_RANGE)))
    return np.clip(scaled, 0, SCORE_BINS - 1).astype(np.int64)


def calibration_bins(confidence: Array) -> Array:
    """Return the bin, 0 to 14, of confidences in (0, 1]; a confidence on an edge belongs to the lower bin."""
    # Comparing with the correctly rounded edges is exact where multiplying by 15 and rounding up is not.
    edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    return np.searchsorted(edges, confidence, side="left")


def count_alerts(shape: tuple[int, int], g_N: Array, y_N: Array, alerts: Array | None) -> Array:
    """Return the numbers of images and of alerts by group and true class, int64 (G,K,2); zeros where none is asked for.

    Parameters
    ----------
    shape : tuple of int
        G and K.
    g_N, y_N : ndarray of int64, shape (N,)
        Group and true class of each image.
    alerts : ndarray of bool, shape (N,), optional
        Whether it raises an alert.
    """
    if alerts is None:
        return np.zeros((*shape, 2), np.int64)
    return np.stack([_count(shape, g_N, y_N), _count(shape, g_N[alerts], y_N[alerts])], axis=-1)


def _measure_areas(odds_NK: Array, y_N: Array, g_N: Array, patient_N: Array, num_groups: int) -> Array:
    num_classes = odds_NK.shape[1]
    areas = np.zeros((num_groups, num_classes, 7))
    for g in range(num_groups):
        inside = np.flatnonzero(g_N == g)
        patient = np.unique(patient_N[inside], return_inverse=True)[1].reshape(-1)
        for k in np.unique(y_N[inside]).tolist():
            own = y_N[inside] == k
            scores = odds_NK[inside, k]
            areas[g, k] = measure_area(scores[own], scores[~own], patient[own], patient[~own])
    return areas


def _count(shape: tuple[int, ...], *indices: Array) -> Array:
    """Return how often each cell of an array of ``shape`` is indexed."""
    cells = np.ravel_multi_index(indices, shape) if indices[0].size else np.empty(0, np.int64)
    return np.bincount(cells.ravel(), minlength=math.prod(shape)).reshape(shape)


def _sum_up(shape: tuple[int, ...], indices: tuple[Array, ...], values: tuple[Array, ...]) -> Array:
    """Return the sums of each of the values in the cells of an array, shape (*shape, number of values)."""
    total = np.zeros((*shape, len(values)))
    for column, value in enumerate(values):
        np.add.at(total[..., column], indices, value)
    return total


def softmax(z_NK: Array) -> Array:
    """Return the probabilities of outputs, float64 (N,K)."""
    exponentials = np.exp(z_NK - z_NK.max(axis=1, keepdims=True))
    result: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def _check_predictions(logits: torch.Tensor, labels: torch.Tensor, groups: Sequence[str]) -> tuple[Array, Array]:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"Logits of shape {tuple(logits.shape)} were found. Needed: (images, classes), >= 2 classes.")
    num_images, num_classes = logits.shape
    if labels.shape != (num_images,) or len(groups) != num_images:
        raise ValueError(
            f"There are logits of {num_images} images, labels of shape {tuple(labels.shape)} and {len(groups)} "
            "groups. Needed: one label and one group for each image."
        )
    z_NK = logits.detach().to(device="cpu", dtype=torch.float64).numpy()
    y_N = labels.detach().to(device="cpu", dtype=torch.int64).numpy()
    if not np.isfinite(z_NK).all():
        bad = int((~np.isfinite(z_NK)).any(axis=1).sum())
        raise ValueError(f"The model's output is not finite for {bad} of {num_images} images; it has diverged.")
    if num_images and (y_N.min() < 0 or y_N.max() >= num_classes):
        raise ValueError(f"Labels from {y_N.min()} to {y_N.max()} were found. Allowed: 0 to {num_classes - 1}.")
    return z_NK, y_N

"""The alert score of an image, and what a site tells of its scores so that one threshold can be chosen for all.

The score is the log-odds of the probability of the alert classes together, ``log(P / (1 - P))`` after the temperature.
A site counts its scores in bins with the same fixed edges everywhere, apart for images with an alert class and for the
others. A simulation counts them as they are. A hospital merges neighbouring bins until each holds ``k_bin`` patients,
and tells the sum of the scores in each with three digits beside it: of images in a bin with the mean ``m`` and the
upper edge ``e``, at most the share ``(e - m) / (e - t)`` lies below ``t`` (Markov's inequality for ``e - score``), so
that a threshold within a merged bin can be used as well.

Letters: N images, K classes, J bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedmed.metrics.clusters import number_patients
from fedmed.metrics.evaluation import ALERT_BINS
from fedmed.metrics.rounding import round_digits
from fedmed.metrics.values import Array

LOWEST, HIGHEST = -12.0, 12.0
NUM_BINS = ALERT_BINS
STEP = (HIGHEST - LOWEST) / NUM_BINS
EDGES = np.round(LOWEST + STEP * np.arange(NUM_BINS), 1)
"""Lower edges of the bins, float64 (J,). The first and the last bin are open: scores are cut to the range."""
WITH, WITHOUT = 0, 1
"""Rows: images of an alert class, and the others."""
NUMBER, SUM = 0, 1
"""Places in the last axis."""


def alert_scores(logits: torch.Tensor, alert_classes: Sequence[int], temperature: float | None = None) -> Array:
    """Return the alert score of images.

    Parameters
    ----------
    logits : Tensor, shape (N,K)
        A model's output.
    alert_classes : sequence of int
        Places of the classes that need a person; neither none nor all.
    temperature : float, optional
        By what the output is divided; 1 where none was fitted.

    Returns
    -------
    ndarray of float64, shape (N,)
        ``logsumexp`` of the outputs of the alert classes minus that of the others, which loses no digits where the
        probability is near 0 or 1.
    """
    z_NK = logits.detach().to(device="cpu", dtype=torch.float64) / (temperature or 1.0)
    is_alert_K = torch.zeros(z_NK.shape[1], dtype=torch.bool)
    is_alert_K[list(alert_classes)] = True
    scores: Array = (z_NK[:, is_alert_K].logsumexp(dim=1) - z_NK[:, ~is_alert_K].logsumexp(dim=1)).numpy()
    return scores


@dataclass(frozen=True, eq=False)
class AlertScores:
    """Alert scores of the images of a test."""

    scores: Array
    """float64 (N,)."""
    threshold: float
    """From which on an alert is raised."""
    classes: tuple[int, ...]
    """Places of the alert classes."""

    @property
    def raised(self) -> Array:
        """Whether each image raises an alert, bool (N,)."""
        raised: Array = self.scores >= self.threshold
        return raised


def count_scores(
    scores_N: Array, is_alert_N: Array, patients: Sequence[str] | None = None, *, k_bin: int = 1, k_row: int = 1
) -> Array:
    """Count alert scores.

    Parameters
    ----------
    scores_N : ndarray of float64, shape (N,)
        Of :func:`alert_scores`.
    is_alert_N : ndarray of bool, shape (N,)
        Whether the true class is an alert class.
    patients : sequence of str, optional
        Whose image each is; without, every image is taken for a patient's only one.
    k_bin : int
        Fewest patients of a bin; with 1, bins stay as they are and sums exact.
    k_row : int
        Fewest patients of a row; of a smaller one nothing is told.

    Returns
    -------
    ndarray of float64, shape (2,J,2)
        For images with and without an alert class, by bin: number of images, and sum of their scores. A merged bin
        takes the place of its first one, and what is left at the end belongs to the last merged bin.
    """
    cut_N, patient_N = np.clip(scores_N, LOWEST, HIGHEST), number_patients(patients, len(scores_N))
    bin_N = np.searchsorted(EDGES, cut_N, side="right") - 1
    told = np.zeros((2, NUM_BINS, 2))
    for row, inside_N in ((WITH, is_alert_N), (WITHOUT, ~is_alert_N)):
        if len(np.unique(patient_N[inside_N])) < max(k_bin, k_row):
            continue
        starts = np.arange(NUM_BINS)
        if max(k_bin, k_row) > 1:
            starts = _merge(bin_N[inside_N], patient_N[inside_N], k_bin)
        place_N = starts[bin_N[inside_N]]
        np.add.at(told[row, :, NUMBER], place_N, 1)
        np.add.at(told[row, :, SUM], place_N, cut_N[inside_N])
    if max(k_bin, k_row) > 1:
        told[..., SUM] = round_digits(told[..., SUM])
    return told


def _merge(bin_N: Array, patient_N: Array, k_bin: int) -> Array:
    """Return for each bin the first one of those with which it is merged, int64 (J,)."""
    starts = [0]
    people: set[int] = set()
    for place in range(NUM_BINS):
        people |= set(patient_N[bin_N == place].tolist())
        if len(people) >= k_bin:
            starts.append(place + 1)
            people = set()
    starts = starts[:-1]  # what follows the last full bin belongs to it
    result: Array = np.array(starts)[np.searchsorted(starts, np.arange(NUM_BINS), side="right") - 1]
    return result


def find_score_problem(sums_2J2: Array, most_images: int) -> str | None:
    """Return why counts of a site's alert scores cannot be true, as a sentence, or None.

    Parameters
    ----------
    sums_2J2 : ndarray
        As it has arrived.
    most_images : int
        Images that the site has declared.
    """
    if sums_2J2.shape != (2, NUM_BINS, 2) or not np.isfinite(sums_2J2).all():
        return "The counts of alert scores have another form than the agreed one, or hold a number that is not finite."
    n, total = np.moveaxis(sums_2J2, -1, 0)
    if (n < 0).any() or (np.rint(n) != n).any() or n.sum() > most_images:
        return f"The counts of alert scores are no numbers of at most {most_images} images."
    tolerance = 0.01 * np.abs(total) + 1e-9
    if (total < n * EDGES - tolerance).any() or (total > n * HIGHEST + tolerance).any():
        return "A sum of alert scores does not fit the bin in which it stands."
    return None

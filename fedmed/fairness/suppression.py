"""Small numbers: which images are counted in the tables that leave a site.

A table can still identify somebody: the score histogram of a (group, true class) row with a single image *is* that
patient's vector of probabilities. So the unit of release is the row. A row with fewer than ``k_row`` images is left out
of every table, and a group that then has fewer than ``k`` images is left out as a whole. What is left out is left out
before anything is counted, since sums such as the Brier score cannot be taken apart afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedmed.metrics.tables import EvaluationTables, tables_from_logits


@dataclass(frozen=True)
class Release:
    """What of an evaluation may leave a site. The default holds nothing back, as in a simulation."""

    k: int = 1
    """Fewest images of a group."""
    k_row: int = 1
    """Fewest images of a true class within a group."""
    scores: bool = True
    """Whether histograms of scores may leave."""


def find_released(labels: torch.Tensor, groups: Sequence[str], release: Release) -> npt.NDArray[np.bool_]:
    """Return which images may be counted.

    Parameters
    ----------
    labels : Tensor of integers, shape (N,)
        True classes.
    groups : sequence of str, length N
        Group of each image.
    release : Release
        The thresholds.

    Returns
    -------
    ndarray of bool, shape (N,)
    """
    y_N = labels.numpy()
    names, g_N = np.unique(np.array(groups, dtype=str), return_inverse=True)
    released_N = np.zeros(len(y_N), dtype=np.bool_)
    for group in range(len(names)):
        in_group_N = g_N == group
        classes, counts = np.unique(y_N[in_group_N], return_counts=True)
        kept_N = in_group_N & np.isin(y_N, classes[counts >= release.k_row])
        if kept_N.sum() >= release.k:
            released_N |= kept_N
    return released_N


def release_tables(
    logits: torch.Tensor, labels: torch.Tensor, groups: Sequence[str], release: Release
) -> EvaluationTables:
    """Count a model's answers on the images that may be counted.

    Parameters
    ----------
    logits, labels, groups
        As for :func:`fedmed.metrics.tables.tables_from_logits`.
    release : Release
        What may leave.

    Returns
    -------
    EvaluationTables
        Only with the groups of which something is left. Where scores may not leave, their histograms are empty.
    """
    index = torch.from_numpy(np.flatnonzero(find_released(labels, groups, release)))
    tables = tables_from_logits(logits[index], labels[index], [groups[i] for i in index.tolist()])
    if release.scores:
        return tables
    arrays = tables.to_arrays()
    return EvaluationTables(tables.groups, **(arrays | {"scores": np.zeros_like(arrays["scores"])}))


def count_released(counts: Sequence[int], release: Release) -> int:
    """Return how many images of one group may be counted, of which there are ``counts`` by class."""
    kept = sum(count for count in counts if count >= release.k_row)
    return kept if kept >= release.k else 0


def counts_may_leave(counts: Sequence[int], release: Release) -> bool:
    """Return whether images of one group may be told class by class: none of the numbers is a small one."""
    total = sum(counts)
    return all(count == 0 or count >= release.k_row for count in counts) and (total == 0 or total >= release.k)


def find_breach(tables: EvaluationTables, release: Release) -> str | None:
    """Return what in tables must not leave, or None; the last look before they do.

    Parameters
    ----------
    tables : EvaluationTables
        About to leave.
    release : Release
        What may leave.
    """
    rows_GK = tables.counts.sum(axis=-1)
    scored_GK = tables.scores.sum(axis=-1)[..., 0]
    if ((rows_GK > 0) & (rows_GK < release.k_row)).any():
        return f"a class has fewer than k_row = {release.k_row} images"
    if (rows_GK.sum(axis=-1) < release.k).any():
        return f"a group has fewer than k = {release.k} images"
    if not release.scores and tables.scores.any():
        return "they hold scores"
    other_brier = (tables.brier[:, 0] != rows_GK.sum(axis=-1)).any()
    other_calibration = (tables.calibration[..., 0].sum(axis=-1) != rows_GK).any()
    if other_brier or other_calibration or (release.scores and (scored_GK != rows_GK).any()):
        return "the tables are about different images"
    return None

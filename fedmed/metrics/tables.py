"""Evaluation tables: all that a site tells about how well a model does on its images.

The tables add: summed over sites they are the tables of all sites' images taken together, and every figure and interval
of a report is computed from them. No image, score list or patient's identifier is in them.

Letters: N images, G groups, K classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SCORE_BINS = 64
SCORE_RANGE = 12.0
CALIBRATION_BINS = 15
POOLED_GROUP = "all"

_TABLES = {
    "counts": np.int64,
    "scores": np.int64,
    "calibration": np.float64,
    "brier": np.float64,
    "rare": np.float64,
    "withheld": np.int64,
}
_LARGEST_BRIER = 2.0
_TOLERANCE = 1e-9  # relative; the float tables are sums of many rounded terms

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class EvaluationTables:
    """Additive tables of one model on one part of the data, for one attribute.

    Attributes
    ----------
    groups : tuple of str
        Names of the G groups; where the attribute is the site, the sites' names.
    counts : ndarray of int64, shape (G,K,K)
        Number of images by group, true class and predicted class.
    scores : ndarray of int64, shape (G,K,K,64)
        For each group and true class: histogram of the log-odds ``log p_c - log(1 - p_c)`` of every class c, in equal
        bins over [-12, 12] whose two ends are open. A (group, true class) row may be empty if its scores are not
        shared.
    calibration : ndarray of float64, shape (G,K,15,3)
        For each group and true class, by bin of the top-1 confidence, (lo, hi]: number of images, sum of the
        confidence, number predicted correctly.
    brier : ndarray of float64, shape (G,3)
        Number of images, sum and sum of squares of ``sum_k (p_k - 1[y = k])^2``, which lies in [0, 2].
    rare : ndarray of float64, shape (G,15,3)
        As ``calibration``, of the images of classes that are too small in their group to be told class by class.
    withheld : ndarray of int64, shape (G,K)
        Number of sites that hold back a row (group, true class) in which they have images. A group that is held back as
        a whole counts in every class.
    """

    groups: tuple[str, ...]
    counts: Array
    scores: Array
    calibration: Array
    brier: Array
    rare: Array
    withheld: Array

    def __post_init__(self) -> None:
        _check_shapes(self.groups, self.to_arrays())

    @property
    def num_images(self) -> int:
        """Number of images counted, those of rare classes included."""
        return int(self.counts.sum()) + round(float(self.rare[..., 0].sum()))

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.counts.shape[-1])

    def __add__(self, other: "EvaluationTables") -> "EvaluationTables":
        """Return the tables of both sets of images; the groups are united, in sorted order.

        Raises
        ------
        ValueError
            If the numbers of classes differ.
        """
        return combine_tables([self, other])

    def pool(self) -> "EvaluationTables":
        """Return the sum over all groups, as one group named ``all``."""
        pooled = {name: array.sum(axis=0, keepdims=True) for name, array in self.to_arrays().items()}
        return EvaluationTables((POOLED_GROUP,), **pooled)

    def select(self, group: str) -> "EvaluationTables":
        """Return the tables of one group.

        Raises
        ------
        ValueError
            If there is no such group.
        """
        index = find_group(self.groups, group)
        chosen = {name: array[index : index + 1] for name, array in self.to_arrays().items()}
        return EvaluationTables((group,), **chosen)

    def to_arrays(self) -> dict[str, Array]:
        """Return the arrays by name, without copies; with ``groups`` they are the whole content."""
        return {name: getattr(self, name) for name in _TABLES}

    @classmethod
    def from_arrays(cls, groups: Sequence[str], arrays: Mapping[str, Array]) -> "EvaluationTables":
        """Build tables from arrays that come from elsewhere, after checking that they can be true.

        Parameters
        ----------
        groups : sequence of str
            Names of the groups, each once.
        arrays : mapping from str to ndarray
            As :meth:`to_arrays` gives them.

        Raises
        ------
        ValueError
            If an array is missing, has another shape or type than stated for the class, holds a negative or non-finite
            number, or contradicts itself or the others.
        """
        if set(arrays) != set(_TABLES):
            raise ValueError(f"Tables named {sorted(arrays)} were found. Needed: {sorted(_TABLES)}.")
        _check_shapes(tuple(groups), arrays)
        _check_values(arrays)
        return cls(tuple(groups), **{name: arrays[name] for name in _TABLES})


def find_group(groups: Sequence[str], group: str) -> int:
    """Return the place of a group; a ``ValueError`` if there is none."""
    if group not in groups:
        raise ValueError(f"The tables have no group '{group}'. Groups: {', '.join(groups) or 'none'}.")
    return groups.index(group)


def tables_from_logits(logits: torch.Tensor, labels: torch.Tensor, groups: Sequence[str]) -> EvaluationTables:
    """Count a model's answers.

    Parameters
    ----------
    logits : Tensor, shape (N,K)
        The model's output, K >= 2; computed with in float64. N may be 0: then there are no groups.
    labels : Tensor of integers, shape (N,)
        True classes.
    groups : sequence of str, length N
        Group of each image.

    Returns
    -------
    EvaluationTables
        With the groups that occur, sorted. The predicted class is the first one with the largest logit.

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
    predicted_N = z_NK.argmax(axis=1)
    p_NK = _softmax(z_NK)
    brier_N = np.square(p_NK - np.eye(num_classes)[y_N]).sum(axis=1)
    return EvaluationTables(
        names,
        counts=_count((num_groups, num_classes, num_classes), g_N, y_N, predicted_N),
        scores=_count(
            (num_groups, num_classes, num_classes, SCORE_BINS),
            *np.broadcast_arrays(g_N[:, None], y_N[:, None], np.arange(num_classes), score_bins(log_odds(z_NK))),
        ),
        calibration=_sum_up(
            (num_groups, num_classes, CALIBRATION_BINS),
            (g_N, y_N, calibration_bins(p_NK.max(axis=1))),
            (np.ones_like(brier_N), p_NK.max(axis=1), predicted_N == y_N),
        ),
        brier=_sum_up((num_groups,), (g_N,), (np.ones_like(brier_N), brier_N, brier_N**2)),
        rare=np.zeros((num_groups, CALIBRATION_BINS, 3)),
        withheld=np.zeros((num_groups, num_classes), np.int64),
    )


def combine_tables(tables: Iterable[EvaluationTables]) -> EvaluationTables:
    """Add tables in the order given; groups are united, in sorted order, and same-named groups are summed.

    Raises
    ------
    ValueError
        If there are none, or their numbers of classes differ.
    """
    parts = list(tables)
    if not parts:
        raise ValueError("There are no tables to add up. Give at least one.")
    sizes = sorted({part.num_classes for part in parts})
    if len(sizes) > 1:
        raise ValueError(f"Tables of {sizes} classes cannot be added. All sites must use the same classes.")
    groups = tuple(sorted({group for part in parts for group in part.groups}))
    position = {group: index for index, group in enumerate(groups)}
    total = {name: np.zeros((len(groups), *array.shape[1:]), array.dtype) for name, array in _items(parts[0])}
    for part in parts:
        rows = [position[group] for group in part.groups]
        for name, array in _items(part):
            total[name][rows] += array
    return EvaluationTables(groups, **total)


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


def _items(tables: EvaluationTables) -> Iterable[tuple[str, Array]]:
    return tables.to_arrays().items()


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


def _softmax(z_NK: Array) -> Array:
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


def _check_shapes(groups: tuple[str, ...], arrays: Mapping[str, Array]) -> None:
    if len(set(groups)) != len(groups):
        raise ValueError(f"The groups {list(groups)} are not all different.")
    num_groups, num_classes = len(groups), arrays["counts"].shape[-1] if arrays["counts"].ndim else 0
    if num_classes < 2:
        raise ValueError(f"Table 'counts' has shape {arrays['counts'].shape}. Needed: at least two classes.")
    shapes = {
        "counts": (num_groups, num_classes, num_classes),
        "scores": (num_groups, num_classes, num_classes, SCORE_BINS),
        "calibration": (num_groups, num_classes, CALIBRATION_BINS, 3),
        "brier": (num_groups, 3),
        "rare": (num_groups, CALIBRATION_BINS, 3),
        "withheld": (num_groups, num_classes),
    }
    for name, shape in shapes.items():
        found = arrays[name]
        if found.shape != shape or found.dtype != _TABLES[name]:
            needed = f"{shape} of {np.dtype(_TABLES[name])}"
            raise ValueError(f"Table '{name}' has shape {found.shape} of {found.dtype}. Needed: {needed}.")


def _check_values(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all() or (array < 0).any():
            raise ValueError(f"Table '{name}' holds a negative or non-finite number.")
    images_GK = arrays["counts"].sum(axis=-1)
    scored_GKK = arrays["scores"].sum(axis=-1)
    if (scored_GKK != scored_GKK[..., :1]).any() or (scored_GKK[..., 0] > images_GK).any():
        raise ValueError("Table 'scores' does not fit table 'counts': its rows hold other numbers of images.")
    for name in ("calibration", "rare"):
        n, confidence, correct = np.moveaxis(arrays[name], -1, 0)
        limit = n * (1 + _TOLERANCE)
        if (confidence > limit).any() or (correct > limit).any():
            raise ValueError(f"Table '{name}' has a mean confidence or an accuracy above 1.")
    n, total, squares = np.moveaxis(arrays["brier"], -1, 0)
    limit = n * _LARGEST_BRIER * (1 + _TOLERANCE)
    if (total > limit).any() or (squares > _LARGEST_BRIER * limit).any():
        raise ValueError("Table 'brier' has a mean above 2.")

"""Evaluation tables as data: their arrays, how they add, and what cannot be true of them.

Letters: G groups, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmed.metrics.areas import PAIRS, SHARED_PART, WON
from fedmed.metrics.clusters import PATIENTS, PRODUCTS, move_share
from fedmed.metrics.rounding import ROUNDING, is_whole
from fedmed.metrics.values import Array, divide_defined

SCORE_BINS = 64
CALIBRATION_BINS = 15
ALERT_BINS = 240
"""Of the alert score, see :mod:`fedmed.clinical.scores`."""
POOLED_GROUP = "all"

_TYPES = {
    "counts": np.int64,
    "other_wrong": np.int64,
    "patients": np.float64,
    "scores": np.int64,
    "calibration": np.float64,
    "mixed": np.float64,
    "brier": np.float64,
    "rare": np.int64,
    "areas": np.float64,
    "alerts": np.int64,
    "decision": np.int64,
    "withheld": np.int64,
}
_BY_CLASS = ("counts", "other_wrong", "patients", "scores", "calibration", "areas", "alerts")
_SIGNED = {"patients": PRODUCTS, "areas": SHARED_PART}
"""Tables with a number that may be negative, and its place in the last axis."""
_WHOLE = {"calibration": (0, 2), "mixed": (0, 2), "brier": (0,), "patients": (0,), "areas": (0, 5, 6)}
"""Places in the last axis of numbers of images, of pairs or of patients."""
_LARGEST_BRIER = 2.0
_TOLERANCE = 2 * ROUNDING  # relative; hospitals round their sums


@dataclass(frozen=True, eq=False)
class EvaluationTables:
    """Additive tables of one model on one part of the data, for one attribute.

    Where a site holds nothing back, as in a simulation, all arrays but ``mixed`` and ``rare`` are complete. What a
    hospital tells of them is in :mod:`fedmed.fairness.disclosure.coarse`; there, sums have three significant digits.

    Attributes
    ----------
    groups : tuple of str
        Names of the G groups; where the attribute is the site, the sites' names.
    counts : ndarray of int64, shape (G,K,K)
        Number of images by group, true class and predicted class. The right answers are on the diagonal; wrong answers
        are here only as far as they are told class by class.
    other_wrong : ndarray of int64, shape (G,K)
        Number of the other wrong answers by group and true class.
    patients : ndarray of float64, shape (G,K,4)
        For each group and true class m, Q, C and D of :mod:`fedmed.metrics.clusters`: number of patients, and how right
        answers vary between them about the row's share of right answers. Zeros where that is not known.
    scores : ndarray of int64, shape (G,K,K,64)
        For each group and true class: histogram of the log-odds ``log p_c - log(1 - p_c)`` of every class c, in equal
        bins over [-12, 12] whose two ends are open. A (group, true class) row may be empty if its scores are not
        shared.
    calibration : ndarray of float64, shape (G,K,15,3)
        For each group and true class, by bin of the top-1 confidence, (lo, hi]: number of images, sum of the
        confidence, number predicted correctly.
    mixed : ndarray of float64, shape (G,15,3)
        The same of images whose class is not told with it. A bin may hold the images of the bins after it, too.
    brier : ndarray of float64, shape (G,3)
        Number of images, sum and sum of squares of ``sum_k (p_k - 1[y = k])^2``, which lies in [0, 2].
    rare : ndarray of int64, shape (G,2)
        Number of images, and number of right answers, of the classes that are too small in their group to be told class
        by class.
    areas : ndarray of float64, shape (G,K,7)
        Area under each class's ROC curve within the site, in the additive numbers of :mod:`fedmed.metrics.areas`.
    alerts : ndarray of int64, shape (G,K,2)
        For each group and true class, number of images of which it is told whether they raise an alert, and of those
        that do. Zeros where none is asked for, and in rows that do not tell it.
    decision : ndarray of int64, shape (G,2,240)
        Where the attribute is the site: numbers of images with and without an alert class by bins of the alert score,
        of the classes that are told. A bin may hold the images of the bins after it, too.
    withheld : ndarray of int64, shape (G,K)
        Number of sites that do not tell a row (group, true class): they have too few images of it, or none. A site that
        holds nothing back has no such row.
    """

    groups: tuple[str, ...]
    counts: Array
    other_wrong: Array
    patients: Array
    scores: Array
    calibration: Array
    mixed: Array
    brier: Array
    rare: Array
    areas: Array
    alerts: Array
    decision: Array
    withheld: Array

    def __post_init__(self) -> None:
        _check_shapes(self.groups, self.to_arrays())

    @classmethod
    def make(cls, groups: Sequence[str], num_classes: int, **arrays: Array) -> "EvaluationTables":
        """Build tables of which some arrays are given; the others are zeros.

        Raises
        ------
        ValueError
            If an array is of an unknown name, or has another shape or type than stated for the class.
        """
        shapes = _list_shapes(len(groups), num_classes)
        if not set(arrays) <= set(shapes):
            raise ValueError(f"Tables named {sorted(arrays)} were found. Allowed: {sorted(shapes)}.")
        zeros = {name: np.zeros(shape, _TYPES[name]) for name, shape in shapes.items() if name not in arrays}
        return cls(tuple(groups), **arrays, **zeros)

    @property
    def row_images(self) -> Array:
        """Number of images of each row (group, true class) that is told, int64 (G,K)."""
        images: Array = self.counts.sum(axis=-1) + self.other_wrong
        return images

    @property
    def num_images(self) -> int:
        """Number of images counted, those of rare classes included."""
        return int(self.row_images.sum()) + int(self.rare[:, 0].sum())

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
        moved = _move_patients(self, pooled["counts"], pooled["other_wrong"])
        return EvaluationTables((POOLED_GROUP,), **(pooled | {"patients": moved.sum(axis=0, keepdims=True)}))

    def select(self, group: str) -> "EvaluationTables":
        """Return the tables of one group.

        Raises
        ------
        ValueError
            If there is no such group.
        """
        return self.take([find_group(self.groups, group)])

    def take(self, places: Sequence[int] | Array) -> "EvaluationTables":
        """Return the tables of the groups at some places, in that order."""
        chosen = np.array(places, dtype=np.int64)
        arrays = {name: array[chosen] for name, array in self.to_arrays().items()}
        return EvaluationTables(tuple(self.groups[place] for place in chosen.tolist()), **arrays)

    def keep_classes(self, classes: Array) -> "EvaluationTables":
        """Return the tables of the images of some true classes, bool (K,); of the others the rows are zeros.

        Images whose class is not told with a number (``mixed``, ``rare``, ``brier``, ``decision``) stay.
        """
        rows = {name: array for name, array in self.to_arrays().items() if name in _BY_CLASS}
        kept = {name: np.where(_widen(classes, array.ndim), array, 0) for name, array in rows.items()}
        return EvaluationTables(self.groups, **(self.to_arrays() | kept))

    def to_arrays(self) -> dict[str, Array]:
        """Return the arrays by name, without copies; with ``groups`` they are the whole content."""
        return {name: getattr(self, name) for name in _TYPES}

    @classmethod
    def from_arrays(cls, groups: Sequence[str], arrays: Mapping[str, Array]) -> "EvaluationTables":
        """Build tables from arrays that come from elsewhere, after checking that they can be true.

        Parameters
        ----------
        groups : sequence of str
            Names of the groups, each once.
        arrays : mapping from str to ndarray
            As :meth:`to_arrays` gives them. Those of zeros may be missing, but for ``counts``.

        Raises
        ------
        ValueError
            If an array has an unknown name, another shape or type than stated for the class, holds a negative or
            non-finite number, or contradicts itself or the others.
        """
        if "counts" not in arrays or not set(arrays) <= set(_TYPES):
            raise ValueError(f"Tables named {sorted(arrays)} were found. Needed: 'counts'. Allowed: {sorted(_TYPES)}.")
        if arrays["counts"].ndim != 3 or arrays["counts"].shape[-1] < 2:
            raise ValueError(f"Table 'counts' has shape {arrays['counts'].shape}. Needed: at least two classes.")
        tables = cls.make(groups, int(arrays["counts"].shape[-1]), **arrays)
        _check_values(tables, arrays)
        return tables


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
    rows = [np.array([position[group] for group in part.groups], np.int64) for part in parts]
    total = {name: np.zeros((len(groups), *array.shape[1:]), array.dtype) for name, array in _items(parts[0])}
    for part, own in zip(parts, rows, strict=True):
        for name, array in _items(part):
            if name != "patients":
                total[name][own] += array
    for part, own in zip(parts, rows, strict=True):
        total["patients"][own] += _move_patients(part, total["counts"][own], total["other_wrong"][own])
    return EvaluationTables(groups, **total)


def find_group(groups: Sequence[str], group: str) -> int:
    """Return the place of a group; a ``ValueError`` if there is none."""
    if group not in groups:
        raise ValueError(f"The tables have no group '{group}'. Groups: {', '.join(groups) or 'none'}.")
    return groups.index(group)


def _widen(classes: Array, num_axes: int) -> Array:
    """Return (K,) as an array that broadcasts with one of which K is the second axis."""
    widened: Array = classes.reshape(-1, *[1] * (num_axes - 2))
    return widened


def _items(tables: EvaluationTables) -> Iterable[tuple[str, Array]]:
    return tables.to_arrays().items()


def _find_shares(counts: Array, other_wrong: Array) -> Array:
    """Return each row's share of right answers, 0 for a row without images."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    shares: Array = np.nan_to_num(divide_defined(right, counts.sum(axis=-1) + other_wrong))
    return shares


def _move_patients(tables: EvaluationTables, counts: Array, other_wrong: Array) -> Array:
    """Return m, Q, C and D of tables about the shares of right answers of others, which broadcast with them."""
    distance = _find_shares(counts, other_wrong) - _find_shares(tables.counts, tables.other_wrong)
    return move_share(tables.patients, distance)


def _list_shapes(num_groups: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    row = (num_groups, num_classes)
    return {
        "counts": (*row, num_classes),
        "other_wrong": row,
        "patients": (*row, 4),
        "scores": (*row, num_classes, SCORE_BINS),
        "calibration": (*row, CALIBRATION_BINS, 3),
        "mixed": (num_groups, CALIBRATION_BINS, 3),
        "brier": (num_groups, 3),
        "rare": (num_groups, 2),
        "areas": (*row, 7),
        "alerts": (*row, 2),
        "decision": (num_groups, 2, ALERT_BINS),
        "withheld": row,
    }


def _check_shapes(groups: tuple[str, ...], arrays: Mapping[str, Array]) -> None:
    if len(set(groups)) != len(groups):
        raise ValueError(f"The groups {list(groups)} are not all different.")
    num_classes = arrays["counts"].shape[-1] if arrays["counts"].ndim else 0
    if num_classes < 2:
        raise ValueError(f"Table 'counts' has shape {arrays['counts'].shape}. Needed: at least two classes.")
    for name, shape in _list_shapes(len(groups), num_classes).items():
        found = arrays[name]
        if found.shape != shape or found.dtype != _TYPES[name]:
            needed = f"{shape} of {np.dtype(_TYPES[name])}"
            raise ValueError(f"Table '{name}' has shape {found.shape} of {found.dtype}. Needed: {needed}.")


def _check_values(tables: EvaluationTables, arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        unsigned = np.delete(array, _SIGNED[name], axis=-1) if name in _SIGNED else array
        if not np.isfinite(array).all() or (unsigned < 0).any():
            raise ValueError(f"Table '{name}' holds a negative or non-finite number.")
        if name in _WHOLE and not is_whole(array[..., _WHOLE[name]]):
            raise ValueError(f"Table '{name}' holds a number of images, pairs or patients that is not whole.")
    scored_GKK = tables.scores.sum(axis=-1)
    if (scored_GKK != scored_GKK[..., :1]).any() or (scored_GKK[..., 0] > tables.row_images).any():
        raise ValueError("Table 'scores' does not fit table 'counts': its rows hold other numbers of images.")
    for name in ("calibration", "mixed"):
        n, confidence, correct = np.moveaxis(getattr(tables, name), -1, 0)
        if (confidence > n * (1 + _TOLERANCE)).any() or (correct > n).any():
            raise ValueError(f"Table '{name}' has a mean confidence or an accuracy above 1.")
    if (tables.rare[:, 1] > tables.rare[:, 0]).any():
        raise ValueError("Table 'rare' has an accuracy above 1.")
    if (tables.alerts[..., 0] > tables.row_images).any() or (tables.alerts[..., 1] > tables.alerts[..., 0]).any():
        raise ValueError("Table 'alerts' counts more images than table 'counts', or more alerts than images.")
    if (tables.decision.sum(axis=(1, 2)) > tables.row_images.sum(axis=1)).any():
        raise ValueError("Table 'decision' counts more images than table 'counts'.")
    n, total, squares = np.moveaxis(tables.brier, -1, 0)
    limit = n * _LARGEST_BRIER * (1 + _TOLERANCE)
    if (total > limit).any() or (squares > _LARGEST_BRIER * limit).any():
        raise ValueError("Table 'brier' has a mean above 2.")
    if (tables.patients[..., PATIENTS] > tables.row_images).any():
        raise ValueError("Table 'patients' has more patients than images.")
    if (tables.areas[..., WON] > tables.areas[..., PAIRS] * (1 + _TOLERANCE)).any():
        raise ValueError("Table 'areas' has an area above 1.")

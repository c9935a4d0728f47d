"""What one site answers to the request to score models: tables by model and attribute, and paired tables.

Letters: G groups, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.metrics.clusters import number_patients, spread_of_differences
from fedmed.metrics.limits import UNKNOWN
from fedmed.metrics.tables import POOLED_GROUP, EvaluationTables, combine_tables, find_group
from fedmed.metrics.values import Array

__all__ = [
    "BATCH_NORM",
    "COMPARED_MODELS",
    "FEDERATED",
    "FINE_TUNED",
    "LOCAL",
    "MODELS",
    "OTHER_MODELS",
    "PAIRED_MODELS",
    "SITE_ATTRIBUTE",
    "STUDENT",
    "TEACHER",
    "UNCALIBRATED",
    "UNKNOWN",
    "ComparedModel",
    "PairedTables",
    "SiteTables",
    "combine_attribute",
    "combine_paired",
    "make_paired",
]

FEDERATED = "federated"
"""The model as it is released, with its temperature."""
UNCALIBRATED = "uncalibrated"
"""The same without the temperature."""
BATCH_NORM: Final = "batch_norm"
"""The federated model with BatchNorm's statistics of the site's training images."""
FINE_TUNED: Final = "fine_tuned"
"""The federated model, trained on for one round at the site."""
LOCAL: Final = "local"
"""A model that was trained on the site's images alone."""
ComparedModel = Literal["batch_norm", "fine_tuned", "local"]
COMPARED_MODELS: tuple[ComparedModel, ...] = (BATCH_NORM, FINE_TUNED, LOCAL)
"""Models with which the federated one is compared, image by image."""
STUDENT: Final = "student"
"""A compact network that was distilled from the federated model, which is asked whether it may take its place."""
TEACHER: Final = "teacher"
"""The network from which the federated model was distilled, where a compact one took its place."""
OTHER_MODELS = (STUDENT, TEACHER)
"""Models that travel beside the federated one, to be compared with it image by image."""
PAIRED_MODELS = (*COMPARED_MODELS, *OTHER_MODELS)
MODELS = (FEDERATED, UNCALIBRATED, *PAIRED_MODELS)


@dataclass(frozen=True, eq=False)
class PairedTables:
    """How often two models are right on the same images.

    Attributes
    ----------
    groups : tuple of str
        Names of the G groups.
    cells : ndarray of int64, shape (G,K,2,2)
        ``cells[g, k, a, b]``: images of group g and true class k for which the federated model is right (a = 1) or
        wrong (a = 0), and the other model likewise (b).
    spread : ndarray of float64, shape (G,K)
        ``sum_i (d_i - d n_i)^2`` over the patients i, see
        :func:`fedmed.metrics.clusters.spread_of_differences`: how the difference of right answers varies between them,
        at each site about its own mean. Zeros where nobody knows. From hospitals with three significant digits.
    """

    groups: tuple[str, ...]
    cells: Array
    spread: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if not self.spread.size:  # not given
            object.__setattr__(self, "spread", np.zeros(self.cells.shape[:2]))
        shape_ok = self.cells.ndim == 4 and self.cells.shape[0] == len(self.groups) and self.cells.shape[2:] == (2, 2)
        if not shape_ok or self.cells.dtype != np.int64 or len(set(self.groups)) != len(self.groups):
            raise ValueError(
                f"Paired tables of shape {self.cells.shape} of {self.cells.dtype} for {len(self.groups)} groups were "
                "found. Needed: (groups, classes, 2, 2) of int64, and groups that differ."
            )
        if (self.cells < 0).any():
            raise ValueError("Paired tables hold a negative number.")
        if self.spread.shape != self.cells.shape[:2] or self.spread.dtype != np.float64:
            raise ValueError(f"The spread of paired tables has shape {self.spread.shape} of {self.spread.dtype}.")
        if not np.isfinite(self.spread).all() or (self.spread < 0).any():
            raise ValueError("The spread of paired tables holds a negative or non-finite number.")

    def pool(self) -> "PairedTables":
        """Return the sum over all groups, as one group named ``all``."""
        return PairedTables((POOLED_GROUP,), *(a.sum(axis=0, keepdims=True) for a in (self.cells, self.spread)))

    def select(self, group: str) -> "PairedTables":
        """Return the tables of one group.

        Raises
        ------
        ValueError
            If there is no such group.
        """
        index = find_group(self.groups, group)
        return PairedTables((group,), self.cells[index : index + 1], self.spread[index : index + 1])


@dataclass(frozen=True, eq=False)
class SiteTables:
    """All tables of one site for one request.

    Attributes
    ----------
    models : mapping of str to mapping of str to EvaluationTables
        Name of a model, :data:`FEDERATED` at least, to attribute to tables. The attribute ``site`` is always there.
    paired : mapping of str to mapping of str to PairedTables
        Name of another model to attribute to its comparison with the federated one.
    """

    models: Mapping[str, Mapping[str, EvaluationTables]]
    paired: Mapping[str, Mapping[str, PairedTables]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if FEDERATED not in self.models or any(SITE_ATTRIBUTE not in tables for tables in self.models.values()):
            raise ValueError(
                f"Tables of the models {', '.join(sorted(self.models)) or 'none'} were found. Needed: '{FEDERATED}', "
                f"and the attribute '{SITE_ATTRIBUTE}' of every model."
            )

    @property
    def site(self) -> EvaluationTables:
        """The federated model's tables, undivided."""
        return self.models[FEDERATED][SITE_ATTRIBUTE]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attributes by which the federated model's images are told apart."""
        return tuple(self.models[FEDERATED])


def make_paired(  # noqa: PLR0917
    right_N: Array,
    other_right_N: Array,
    labels_N: Array,
    groups: Sequence[str],
    num_classes: int,
    patients: Sequence[str] | None = None,
) -> PairedTables:
    """Count on which images two models are right.

    Parameters
    ----------
    right_N, other_right_N : ndarray of bool, shape (N,)
        Whether the federated model and the other one are right.
    labels_N : ndarray of int, shape (N,)
        True classes.
    groups : sequence of str, length N
        Group of each image.
    num_classes : int
        K.
    patients : sequence of str, length N, optional
        Whose image each is. Without, every image is taken for a patient's only one.
    """
    names = tuple(sorted(set(groups)))
    position = {name: index for index, name in enumerate(names)}
    cells = np.zeros((len(names), num_classes, 2, 2), np.int64)
    g_N = np.array([position[group] for group in groups], dtype=np.int64)
    right, other = right_N.astype(np.int64), other_right_N.astype(np.int64)
    np.add.at(cells, (g_N, labels_N, right, other), 1)
    patient_N = number_patients(patients, len(labels_N))
    spread = spread_of_differences(g_N * num_classes + labels_N, patient_N, right - other, len(names) * num_classes)
    return PairedTables(names, cells, spread.reshape(len(names), num_classes))


def combine_paired(tables: Iterable[PairedTables]) -> PairedTables:
    """Add paired tables; groups are united, in sorted order, and same-named groups are summed.

    Raises
    ------
    ValueError
        If there are none.
    """
    parts = list(tables)
    if not parts:
        raise ValueError("There are no paired tables to add up. Give at least one.")
    groups = tuple(sorted({group for part in parts for group in part.groups}))
    position = {group: index for index, group in enumerate(groups)}
    cells = np.zeros((len(groups), *parts[0].cells.shape[1:]), np.int64)
    spread = np.zeros(cells.shape[:2])
    for part in parts:
        rows = [position[group] for group in part.groups]
        cells[rows] += part.cells
        spread[rows] += part.spread
    return PairedTables(groups, cells, spread)


def combine_attribute(
    sites: Mapping[str, SiteTables], attribute: str, model: str = FEDERATED
) -> EvaluationTables | None:
    """Return the tables of all sites for one attribute and model together; None where no site has them."""
    parts = [
        sites[name].models[model][attribute] for name in sorted(sites) if attribute in sites[name].models.get(model, {})
    ]
    return combine_tables(parts) if parts else None

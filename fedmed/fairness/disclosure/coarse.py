"""What a hospital tells of one model and one attribute: numbers that hold nobody, sums that are no fingerprint.

A simulation's tables are exact, since one person holds all images. A hospital tells less, under thresholds above 1:

* wrong answers class by class only from ``k_row`` patients on, the others of a row as one number;
* none class by class of a row in which they would give hidden ones away (``folded``), and no comparison of two models
  image by image where that would (``unpaired``), see :mod:`fedmed.fairness.reconstruction.hold`;
* sums over images with three significant digits, whole numbers exactly;
* no histogram by class. Calibration is told of all images of the site together, in bins that are merged until each
  holds ``k_bin`` patients; the Brier score and the areas under the ROC curves likewise for the site as a whole. Of
  groups these three are told only where the site's policy has ``group_histograms``;
* of rows that would give hidden ones away all wrong answers as one number, no comparison of two models image by image,
  and no alerts, see :mod:`fedmed.fairness.reconstruction.hold`;
* of a row without images as much as of one that is withheld, and nothing of a group of which no image is told.

A patient stands for an image where the data has no ids. Letters: N images, G groups, K classes, B bins.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedmed.clinical.scores import NUMBER, AlertScores, count_scores
from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Mask
from fedmed.fairness.disclosure.rows import AttributePlan, Disclosure
from fedmed.metrics.clusters import number_patients, sum_by_patient
from fedmed.metrics.rounding import round_digits
from fedmed.metrics.site_tables import PairedTables, make_paired
from fedmed.metrics.tables import (
    CALIBRATION_BINS,
    Array,
    EvaluationTables,
    calibration_bins,
    find_answers,
    tables_from_logits,
)

WHOLE = {"patients": (0,), "brier": (0,), "areas": (0, 5, 6), "mixed": (0, 2)}
"""Tables of sums, and the places in their last axis that hold whole numbers."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """The images of one part by one attribute."""

    attribute: str
    labels: torch.Tensor
    """True classes (N,)."""
    groups: Sequence[str]
    """Group of each image."""
    patients: Sequence[str] | None
    """Whose image each is, where there are ids."""
    plan: AttributePlan
    """Which of them are counted."""
    alerts: AlertScores | None = None
    """Of all of them; None where they are not asked for."""

    @property
    def told(self) -> Mask:
        """Images of which anything is told, shape (N,)."""
        told: Mask = self.plan.counted | self.plan.rare
        return told

    @property
    def names(self) -> tuple[str, ...]:
        """Groups of which anything is told, sorted."""
        return tuple(sorted({self.groups[place] for place in np.flatnonzero(self.told).tolist()}))

    def find_rows(self, rows: Collection[tuple[str, int]]) -> list[tuple[int, int]]:
        """Return rows (group, class) with the places of their groups, of groups of which anything is told."""
        place = {name: g for g, name in enumerate(self.names)}
        return [(place[group], label) for group, label in sorted(rows) if group in place]

    def count(self, z_NK: torch.Tensor, inside_N: Mask) -> EvaluationTables:
        """Return the complete tables of some of the images."""
        chosen = np.flatnonzero(inside_N)
        index, places = torch.from_numpy(chosen), chosen.tolist()
        patients = None if self.patients is None else [self.patients[place] for place in places]
        groups = [self.groups[place] for place in places]
        alerts = None if self.alerts is None else self.alerts.raised[chosen]
        return tables_from_logits(z_NK[index], self.labels[index], groups, patients, alerts)

    def count_decisions(self, inside_N: Mask, k_bin: int, k_row: int) -> Array:
        """Return numbers of images with and without an alert class by bins of the alert score, int64 (2,240)."""
        assert self.alerts is not None, "asked for where there are scores only"
        chosen = np.flatnonzero(inside_N)
        patients = None if self.patients is None else [self.patients[place] for place in chosen.tolist()]
        is_alert_N = np.isin(self.labels.numpy()[chosen], self.alerts.classes)
        counts = count_scores(self.alerts.scores[chosen], is_alert_N, patients, k_bin=k_bin, k_row=k_row)
        return counts[..., NUMBER].astype(np.int64)

    def pair(self, right_N: Mask, other_N: Mask, inside_N: Mask, num_classes: int) -> PairedTables:
        """Return the complete paired tables of some of the images."""
        chosen = np.flatnonzero(inside_N)
        places = chosen.tolist()
        patients = None if self.patients is None else [self.patients[place] for place in places]
        groups = [self.groups[place] for place in places]
        return make_paired(right_N[chosen], other_N[chosen], self.labels.numpy()[chosen], groups, num_classes, patients)


def tell_coarsely(z_NK: torch.Tensor, images: Grouped, disclosure: Disclosure) -> EvaluationTables:
    """Return the tables of one model that may leave a hospital.

    Parameters
    ----------
    z_NK : Tensor, shape (N,K)
        Output of the model.
    images : Grouped
        What is known of the images.
    disclosure : Disclosure
        The thresholds.
    """
    exact, names = images.count(z_NK, images.plan.counted), images.names
    rows = [names.index(name) for name in exact.groups]
    told = EvaluationTables.make(names, z_NK.shape[1]).to_arrays()
    answers = _Answers.read(z_NK, images)
    counts = answers.count_told(images.plan.counted, len(names), z_NK.shape[1], disclosure.k_row)
    for g, label in images.find_rows(images.plan.folded):
        counts[g, label, np.arange(counts.shape[-1]) != label] = 0
    told["counts"] = counts
    told["other_wrong"][rows] = exact.row_images
    told["other_wrong"] -= counts.sum(axis=-1)
    told["patients"][rows] = exact.patients
    told["alerts"][rows] = exact.alerts
    for g, label in images.find_rows(images.plan.silent):
        told["alerts"][g, label] = 0
    for g in range(len(names)):
        inside_N = images.plan.rare & (answers.group == g)
        told["rare"][g] = inside_N.sum(), answers.right[inside_N].sum()
    if images.attribute == SITE_ATTRIBUTE or disclosure.group_histograms:
        told["brier"][rows] = exact.brier
        if disclosure.scores:
            told["areas"][rows] = exact.areas
        if images.alerts is not None and images.attribute == SITE_ATTRIBUTE and names:
            told["decision"][0] = images.count_decisions(images.plan.counted, disclosure.k_bin, disclosure.k_row)
        for g in range(len(names)):
            told["mixed"][g] = answers.merge(images.told & (answers.group == g), disclosure.k_bin)
    for name, places in WHOLE.items():
        told[name] = _round_but(told[name], places)
    told["withheld"] = (counts.sum(axis=-1) + told["other_wrong"] == 0).astype(np.int64)
    return EvaluationTables(names, **told)


def pair_coarsely(right_N: Mask, other_N: Mask, images: Grouped, num_classes: int) -> PairedTables:
    """Return the comparison of two models that may leave a hospital.

    Parameters
    ----------
    right_N, other_N : ndarray of bool, shape (N,)
        Whether either model is right.
    images : Grouped
        What is known of the images.
    num_classes : int
        K.
    """
    exact, names = images.pair(right_N, other_N, images.plan.counted, num_classes), images.names
    rows = [names.index(name) for name in exact.groups]
    cells, spread = np.zeros((len(names), num_classes, 2, 2), np.int64), np.zeros((len(names), num_classes))
    cells[rows], spread[rows] = exact.cells, round_digits(exact.spread)
    for g, label in images.find_rows(images.plan.unpaired):
        cells[g, label], spread[g, label] = 0, 0
    return PairedTables(names, cells, spread)


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a model says of each image; all of shape (N,)."""

    group: Array
    """Place among the groups that are told, -1 for none."""
    label: Array
    predicted: Array
    confidence: Array
    patient: Array

    @property
    def right(self) -> Mask:
        right: Mask = self.predicted == self.label
        return right

    @classmethod
    def read(cls, z_NK: torch.Tensor, images: Grouped) -> "_Answers":
        place = {name: index for index, name in enumerate(images.names)}
        group_N = np.array([place.get(group, -1) for group in images.groups], dtype=np.int64)
        patient_N = number_patients(images.patients, len(group_N))
        return cls(group_N, images.labels.numpy(), *find_answers(z_NK), patient_N)

    def count_told(self, inside_N: Mask, num_groups: int, num_classes: int, k_row: int) -> Array:
        """Return counts (G,K,K): right answers, and wrong ones of enough patients."""
        shape = (num_groups, num_classes, num_classes)
        labels_N, answers_N = self.label[inside_N], self.predicted[inside_N]
        cell_N = np.ravel_multi_index((self.group[inside_N], labels_N, answers_N), shape)
        cell_P, (images_P,) = sum_by_patient(cell_N, self.patient[inside_N], [np.ones(len(cell_N))])
        size = num_groups * num_classes * num_classes
        people = np.bincount(cell_P, minlength=size).reshape(shape)
        counts = np.bincount(cell_P, weights=images_P, minlength=size).astype(np.int64).reshape(shape)
        kept: Array = np.where((people >= k_row) | np.eye(num_classes, dtype=np.bool_), counts, 0)
        return kept

    def merge(self, inside_N: Mask, k_bin: int) -> Array:
        """Return calibration (15,3) in bins merged until each holds enough patients; zeros where all are too few.

        A merged bin takes the place of its first one. What is left at the end belongs to the last merged bin.
        """
        bin_N, merged = calibration_bins(self.confidence), np.zeros((CALIBRATION_BINS, 3))
        starts, people = [0], set[int]()
        for b in range(CALIBRATION_BINS):
            people |= set(self.patient[inside_N & (bin_N == b)].tolist())
            if len(people) >= k_bin:
                starts, people = [*starts, b + 1], set()
        ends = [*starts[1:-1], CALIBRATION_BINS]
        if len(starts) == 1:
            return merged
        for start, end in zip(starts[:-1], ends, strict=True):
            own_N = inside_N & (bin_N >= start) & (bin_N < end)
            merged[start] = own_N.sum(), self.confidence[own_N].sum(), self.right[own_N].sum()
        return merged


def _round_but(values: Array, places: tuple[int, ...]) -> Array:
    """Return sums with three digits and whole numbers, at some places of the last axis, as they are."""
    rounded = round_digits(values)
    rounded[..., places] = values[..., places]
    return rounded

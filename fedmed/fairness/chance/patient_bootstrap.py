"""Intervals where the images themselves are at hand: patients are drawn anew, with all their images.

A hospital has its own model outputs, and so need not go by what tables tell of its patients. Nothing of this leaves it.

Patients are drawn with replacement, as many as there are (Efron, 1979; of clusters: Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8). A figure that no draw changes, such as the sensitivity of a class all
of whose few images are recognised, would get an interval of width zero. So draws are made twice, the second time with
one more patient of every class that occurs, who has as many images as the class's patients have on average, half of
them answered rightly and half wrongly; at each end the wider of both is taken.

Letters: N images, P patients, K classes, D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from fedmed.fairness.figures.draws import check_draws, correct_bias
from fedmed.fairness.figures.ordinal import ordinal_ranges
from fedmed.metrics.areas import area_intervals, pooled_areas
from fedmed.metrics.calibration import brier_values, calibration_values
from fedmed.metrics.classification import count_values
from fedmed.metrics.clusters import number_patients
from fedmed.metrics.tables import CALIBRATION_BINS, EvaluationTables, calibration_bins, softmax, tables_from_logits
from fedmed.metrics.values import Array, optional_float
from fedmed.seeding import make_rng

Interval = tuple[float, float]
EXTREMES = ("worst_class_recall", "class_recall_gap")
WITHOUT = ("mce", "classwise_ece", "class_auc_std")
"""Figures that are biased by chance in a way that no draw undoes; they get no interval."""
_FEWEST = 2
_AT_ONCE = 100


@dataclass(frozen=True)
class PatientFigure:
    """A figure's interval over patients; None where there is none.

    Attributes
    ----------
    value : float or None
        The figure itself where it is another than that of the tables: an AUC of all pairs of images, not of
        histograms. None: that of the tables stands.
    interval : (float, float) or None
        Lower and upper end.
    by_class : tuple of K (float or None), optional
        Likewise, by class.
    by_class_interval : tuple of K ((float, float) or None), optional
        Likewise.
    """

    interval: Interval | None
    by_class_interval: tuple[Interval | None, ...] | None = None
    value: float | None = None
    by_class: tuple[float | None, ...] | None = None


def bootstrap_groups(  # noqa: PLR0917
    logits: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[str],
    patients: Sequence[str],
    seed: int,
    num_draws: int = 1000,
) -> dict[str, dict[str, PatientFigure]]:
    """Return the intervals of :func:`bootstrap_patients` of each group, by its name; of one attribute.

    Parameters
    ----------
    logits, labels, patients, seed, num_draws
        See there.
    groups : sequence of str, length N
        Group of each image.
    """
    names = np.array(groups, dtype=str)
    found = {}
    for group in sorted(set(groups)):
        places = np.flatnonzero(names == group)
        own = [patients[place] for place in places.tolist()]
        found[group] = bootstrap_patients(logits[places], labels[places], own, seed, num_draws)
    return found


def bootstrap_patients(  # noqa: PLR0917
    logits: torch.Tensor,
    labels: torch.Tensor,
    patients: Sequence[str],
    seed: int,
    num_draws: int = 1000,
    level: float = 0.95,
) -> dict[str, PatientFigure]:
    """Return intervals of the figures of a model's answers, with patients drawn anew.

    Parameters
    ----------
    logits : Tensor, shape (N,K)
        The model's output.
    labels : Tensor of integers, shape (N,)
        True classes.
    patients : sequence of str, length N
        Whose image each is.
    seed : int
        The same seed gives the same intervals.
    num_draws : int
        D.
    level : float
        Between 0 and 1.

    Returns
    -------
    dict of str to PatientFigure
        By the keys of :func:`fedmed.metrics.classification.compute_figures` and
        :data:`fedmed.fairness.figures.ordinal.ORDINAL_FIGURES`.

    Raises
    ------
    ValueError
        If lengths differ, or ``num_draws`` or ``level`` is not allowed.

    Notes
    -----
    * Percentiles of the draws for figures of true against predicted class, and for the Brier score; the extremes over
      the classes with :func:`fedmed.fairness.figures.draws.correct_bias`.
    * ``ece`` can only grow by chance, and grows once more in every draw: its ends are reflected at the figure,
      ``2 v - q`` (the "basic" bootstrap), from 0 on. None where that has no width.
    * ``auc``: of all pairs of images, with DeLong's variance of patients on the scale of the log-odds
      (:func:`fedmed.metrics.areas.area_intervals`).
    * With one patient there are no intervals.
    """
    check_draws(num_draws, level)
    patient_N = number_patients(patients, len(labels))
    num_patients = int(patient_N.max(initial=-1)) + 1
    tables = tables_from_logits(logits, labels, ["all"] * len(labels), patients)
    if num_patients < _FEWEST:
        return {}
    rng = make_rng(seed, "intervals", "patients")
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    cells = _Cells(logits, labels, patient_N, num_patients)
    plain, more = (cells.draw(rng, num_draws, one_more=one_more) for one_more in (False, True))
    found = _count_intervals(tables, plain.counts, more.counts, tails)
    found["ece"] = PatientFigure(_reflect(tables, plain.calibration, tails))
    brier = brier_values(plain.brier)["brier"].value
    found["brier"] = PatientFigure(_pair(np.quantile(brier, tails)))
    found["auc"] = _find_area(tables, level)
    return found | {key: PatientFigure(None) for key in WITHOUT}


@dataclass(frozen=True)
class _Drawn:
    """Sums of drawn images: counts (D,K,K), calibration (D,1,15,3) and brier (D,3)."""

    counts: Array
    calibration: Array
    brier: Array


class _Cells:
    """What each patient adds to the tables, as sparse matrices with a row for each patient."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor, patient_N: Array, num_patients: int) -> None:
        z_NK = logits.detach().to(device="cpu", dtype=torch.float64).numpy()
        y_N, (num_images, self._num_classes) = labels.numpy(), z_NK.shape
        p_NK = softmax(z_NK)
        answer_N, confidence_N = z_NK.argmax(axis=1), p_NK.max(axis=1)
        brier_N = np.square(p_NK - np.eye(self._num_classes)[y_N]).sum(axis=1)
        ones = np.ones(num_images)
        bin_N = calibration_bins(confidence_N)

        def gather(columns: Sequence[tuple[Array, Array]], width: int) -> sparse.csr_array:
            rows = np.tile(patient_N, len(columns))
            places = np.concatenate([column for column, _ in columns])
            values = np.concatenate([value for _, value in columns])
            return sparse.csr_array((values, (rows, places)), shape=(num_patients, width))

        self._num_patients = num_patients
        self._counts = gather([(y_N * self._num_classes + answer_N, ones)], self._num_classes**2)
        right_N = (answer_N == y_N).astype(np.float64)
        sums = (ones, confidence_N, right_N)
        self._bins = gather([(3 * bin_N + place, value) for place, value in enumerate(sums)], 3 * CALIBRATION_BINS)
        self._brier = gather([(0 * y_N + place, v) for place, v in enumerate((ones, brier_N, brier_N**2))], 3)
        self._further = self._imagine(y_N, patient_N)

    def _imagine(self, y_N: Array, patient_N: Array) -> Array:
        """Return what further patients add to the counts, shape (2 K, K^2): of each class one right and one wrong."""
        width = self._num_classes
        rows = np.zeros((width, 2, width, width))
        for k in np.unique(y_N).tolist():
            own = patient_N[y_N == k]
            size = len(own) / len(np.unique(own))
            rows[k, 0, k, k] = size
            rows[k, 1, k] = size / (width - 1)
            rows[k, 1, k, k] = 0.0
        further: Array = rows.reshape(2 * width, width**2)
        return further

    def draw(self, rng: np.random.Generator, num_draws: int, *, one_more: bool) -> _Drawn:
        """Draw patients anew."""
        further = self._further[self._further.any(axis=1)] if one_more else self._further[:0]
        shares = np.concatenate([np.ones(self._num_patients), np.full(len(further), 0.5)])
        counts: list[Array] = []
        bins: list[Array] = []
        brier: list[Array] = []
        for start in range(0, num_draws, _AT_ONCE):
            number = min(_AT_ONCE, num_draws - start)
            weights = rng.multinomial(self._num_patients, shares / shares.sum(), size=number).astype(np.float64)
            real = weights[:, : self._num_patients]
            counts.append((self._counts.T @ real.T).T + weights[:, self._num_patients :] @ further)
            bins.append((self._bins.T @ real.T).T)
            brier.append((self._brier.T @ real.T).T)
        return _Drawn(
            np.concatenate(counts).reshape(num_draws, self._num_classes, self._num_classes),
            np.concatenate(bins).reshape(num_draws, 1, CALIBRATION_BINS, 3),
            np.concatenate(brier),
        )


def _count_intervals(tables: EvaluationTables, plain: Array, more: Array, tails: Array) -> dict[str, PatientFigure]:
    observed = count_values(tables.counts[0])
    draws = [count_values(drawn) for drawn in (plain, more)]
    found = {}
    for key, values in observed.items():
        if key in EXTREMES:
            ends = np.clip(correct_bias(values.value, draws[0][key].value, tails), 0, 1)
            found[key] = PatientFigure(_pair(ends))
            continue
        whole = _find_ends(values.value, [drawn[key].value for drawn in draws], tails)
        by_class = None
        if values.by_class is not None:
            columns = [[drawn[key].by_class[:, k] for drawn in draws] for k in range(tables.num_classes)]  # type: ignore[index]
            by_class = tuple(
                _find_ends(value, column, tails) for value, column in zip(values.by_class, columns, strict=True)
            )
        found[key] = PatientFigure(whole, by_class)
    ordered = [ordinal_ranges(drawn) for drawn in (plain, more)]
    for key, (value, _) in ordinal_ranges(tables.counts[0]).items():
        found[key] = PatientFigure(_find_ends(value, [drawn[key][0] for drawn in ordered], tails))
    return found


def _find_ends(value: Array, draws: Sequence[Array], tails: Array) -> Interval | None:
    """Return the wider of the percentiles at each end, and the value in any case."""
    defined = [drawn[~np.isnan(drawn)] for drawn in draws]
    if np.isnan(value) or not all(len(drawn) for drawn in defined):
        return None
    ends = [np.quantile(drawn, tails) for drawn in defined]
    return _pair(np.array([min(value, *(low for low, _ in ends)), max(value, *(high for _, high in ends))]))


def _reflect(tables: EvaluationTables, drawn: Array, tails: Array) -> Interval | None:
    value = float(calibration_values(tables.calibration[0])["ece"].value)
    low, high = np.quantile(calibration_values(drawn)["ece"].value, tails)
    return _pair(np.array([max(min(2 * value - high, value), 0.0), max(2 * value - low, value)]))


def _find_area(tables: EvaluationTables, level: float) -> PatientFigure:
    areas = tables.areas[0]
    values, (whole, by_class) = pooled_areas(areas), area_intervals(areas, level)
    assert values.by_class is not None, "areas are always by class"
    return PatientFigure(
        _pair(whole),
        tuple(_pair(ends) for ends in by_class.T),
        optional_float(values.value),
        tuple(optional_float(value) for value in values.by_class),
    )


def _pair(ends: Array) -> Interval | None:
    """Return the ends; None where one is not known or both are the same."""
    low, high = (float(end) for end in ends)
    return (low, high) if high > low else None

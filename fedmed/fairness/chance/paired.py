"""Whether one model is better than another on the same images.

Two models that answer the same images are compared by the images on which only one of them is right. What both get
right or both get wrong says nothing about the difference, so that two tables of counts, which do not tell these apart,
cannot give its interval. Where patients have several images, the variance of the difference is that between patients,
and all counts stand for fewer images (the design effect, Rao and Scott, 1992; of pairs, Obuchowski, 1998).

Letters: D draws, K classes, S sites.
"""

import sys
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedmed.fairness.chance.paired_effects import find_paired_effects
from fedmed.fairness.figures.design_effects import count_effective
from fedmed.fairness.figures.draws import draw_rows
from fedmed.metrics.values import Array, divide_defined
from fedmed.seeding import make_rng

Verdict = Literal["better", "worse", "undecided"]

LEVEL = 0.05
_PRIOR = 0.5
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """A figure of the federated model minus that of another model.

    Attributes
    ----------
    key : str
        Of the figure.
    value : float or None
        In [-1, 1]; ``None`` without images.
    interval : (float, float), optional
        Of 95 %.
    p_value : float, optional
        Two-sided, under "where the models differ, either is as likely to be right as the other".
    n : int
        Number of images.
    verdict : {"better", "worse", "undecided"}
        Of the federated model: better or worse only if the interval leaves out 0 and the p-value is below 0.05.
    reason : str, optional
        Why ``value`` is ``None``.
    family_p : float, optional
        The p-value, adjusted for the other figures of the same comparison (Westfall and Young, 1993), with which a
        verdict that may rest on either has an error of 5 %.
    """

    key: str
    value: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    n: int
    verdict: Verdict
    reason: str | None = None
    family_p: float | None = None


def compare_paired(
    cells: Array,
    seed: int,
    num_draws: int = 1000,
    spread: Array | None = None,
    patients: Array | None = None,
) -> dict[str, Difference]:
    """Compare the federated model with another one on the same images.

    Parameters
    ----------
    cells : ndarray of int64, shape (K,2,2) or, of several sites, (S,K,2,2)
        ``cells[k, a, b]``: images of true class k for which the federated model is right (a = 1) or wrong (a = 0), and
        the other model likewise (b); see :class:`fedmed.metrics.site_tables.PairedTables`.
    seed : int
        Seed of the run. The same seed gives the same result.
    num_draws : int
        D, at least 1.
    spread : ndarray, shape (K,) or (S,K), optional
        How the difference varies between patients, see :class:`fedmed.metrics.site_tables.PairedTables`; without it, or
        where it is zeros, each image is taken for a patient's only one.
    patients : ndarray, shape (K,4) or (S,K,4), optional
        The four numbers of :mod:`fedmed.metrics.clusters` of the federated model's right answers; or numbers of
        patients alone, without the last axis.

    Returns
    -------
    dict from str to Difference
        ``accuracy`` and ``balanced_accuracy`` (over the classes present).

    Raises
    ------
    ValueError
        If ``cells`` has another shape, a negative number, or ``num_draws`` is below 1.

    Notes
    -----
    With ``d_k = (only federated right - only the other right) / n_k`` the difference is ``sum_k w_k d_k``;
    ``w_k = 1 / classes present`` for the balanced accuracy and ``n_k / n`` for the accuracy.

    * Interval: percentiles of D draws of each class's four cells, with 1/2 added to each cell and the draws moved to
      the observed difference (after Agresti and Min, 2005). Without the addition a class in which the models never
      differ would have no uncertainty, and the interval at a small hospital would be far too narrow.
    * p-value of the accuracy: exact sign test (McNemar, 1947). Of the balanced accuracy: the same, stratified by class;
      D draws in which every image on which the models differ goes either way with probability 1/2, ``p = (1 + draws
      with a difference at least as large) / (1 + D)``. With a design effect above 1
      (:mod:`fedmed.fairness.chance.paired_effects`) both are of draws, of as many images as these are worth. Where m
      patients have several images, no p-value is below ``2^(1 - m)``, the smallest one of a test that flips the sign of
      whole patients: of fewer than 6 patients there is no verdict.
    * ``family_p``: the share of the same draws in which the smaller one of both p-values, each over its figure's
      weight, is at most the own one over its weight. A figure's weight is one over its variance under the hypothesis,
      which the signs do not change: where balanced accuracy rests on a few images of rare classes, nearly all of the
      5 % is left to accuracy, and of classes of equal size both are the same figure.
    """
    if cells.ndim not in {3, 4} or cells.shape[-2:] != (2, 2) or (cells < 0).any() or num_draws < 1:
        raise ValueError(
            f"Cells of shape {cells.shape} and num_draws {num_draws} were found. Needed: numbers of images of shape "
            "(classes, 2, 2), and at least one draw."
        )
    if cells.ndim == 3:
        cells, spread, patients = cells[None], *(None if one is None else one[None] for one in (spread, patients))
    cells_K = cells.sum(axis=0)
    n = cells_K.sum(axis=(1, 2))
    if not n.any():
        return {key: _make_absent(key) for key in ("accuracy", "balanced_accuracy")}
    effects = find_paired_effects(cells, spread, patients)
    present = n > 0
    cells_K, n, effect = cells_K[present], n[present], effects.by_class[present]
    weights = {"accuracy": n / n.sum(), "balanced_accuracy": np.full(len(n), 1 / len(n))}
    won, lost = cells_K[:, 1, 0], cells_K[:, 0, 1]
    own, adjusted = _flip_signs(won, lost, n, np.stack([*weights.values()]), effect, seed, num_draws)
    p_values = dict(zip(weights, own, strict=True))
    if (effect == 1).all():
        p_values["accuracy"] = sign_test(int(won.sum()), int(lost.sum()))
    drawn = _draw_differences(cells_K, effect, make_rng(seed, "benefit", "cells"), num_draws)
    found = {}
    for (key, weight), family_p in zip(weights.items(), adjusted, strict=True):
        value = float(weight @ ((won - lost) / n))
        p_value = max(p_values[key], effects.lowest_p)
        judged = _judge(key, value, _find_interval(value, drawn @ weight), p_value, int(n.sum()))
        found[key] = replace(judged, family_p=max(family_p, effects.lowest_p))
    return found


def sign_test(won: int, lost: int) -> float:
    """Return the exact two-sided p-value of a fair coin that falls ``won`` and ``lost`` times on its sides."""
    flips, fewer = won + lost, min(won, lost)
    term = tail = 1
    for i in range(fewer):
        term = term * (flips - i) // (i + 1)
        tail += term
    # A p-value is never 0, even where it is too small for a float.
    return min(1.0, max(2 * (tail / (1 << flips)), sys.float_info.min))


def _flip_signs(  # noqa: PLR0917
    won: Array, lost: Array, n: Array, weights: Array, effect: Array, seed: int, num_draws: int
) -> tuple[list[float], list[float]]:
    """Return p-values of figures with some weights of the classes, shape (figures,K), and the adjusted ones."""
    rng, differing = make_rng(seed, "benefit", "signs"), won + lost
    effective = count_effective(differing, effect)
    signs = (2 * rng.binomial(effective, 0.5, size=(num_draws, len(n))) - effective) * np.nan_to_num(
        divide_defined(differing, effective)
    )
    observed = np.abs(weights @ ((won - lost) / n))
    drawn = np.abs((signs / n) @ weights.T)
    sample = np.round(np.vstack([observed, drawn]), 9)  # the observed one first
    ordered = np.sort(sample, axis=0)
    ranks = [np.searchsorted(ordered[:, one], sample[:, one], "left") for one in range(len(weights))]
    p_values = 1 - np.column_stack(ranks) / len(sample)
    weighted = p_values * _compare_variances(differing * effect, n, weights)
    smallest = weighted.min(axis=1)
    return p_values[0].tolist(), [float((smallest <= own * (1 + _ROUNDING)).mean()) for own in weighted[0]]


def _compare_variances(differing: Array, n: Array, weights: Array) -> Array:
    """Return the variances of figures if either model is as likely to be right, over that of the smallest one."""
    variances: Array = np.square(weights / n) @ differing
    return variances / variances.min() if variances.min() > 0 else np.ones(len(weights))


def _draw_differences(cells: Array, effect: Array, rng: np.random.Generator, num_draws: int) -> Array:
    """Return differences of every class, shape (D,K), around their own mean."""
    flat = cells.reshape(len(cells), 4)
    weights, n = flat / effect[:, None] + _PRIOR, count_effective(flat.sum(axis=1), effect)
    drawn = draw_rows(rng, n, weights, num_draws)
    differences = (drawn[..., 2] - drawn[..., 1]) / n
    expected = (weights[:, 2] - weights[:, 1]) / weights.sum(axis=1)
    centred: Array = differences - expected
    return centred


def _find_interval(value: float, centred: Array) -> tuple[float, float]:
    lower, upper = np.clip(value + np.quantile(centred, [LEVEL / 2, 1 - LEVEL / 2]), -1.0, 1.0)
    return min(float(lower), value), max(float(upper), value)


def _judge(key: str, value: float, interval: tuple[float, float], p_value: float, n: int) -> Difference:
    verdict: Verdict = "undecided"
    if p_value < LEVEL and interval[0] > 0:
        verdict = "better"
    elif p_value < LEVEL and interval[1] < 0:
        verdict = "worse"
    return Difference(key, value, interval, p_value, n, verdict)


def _make_absent(key: str) -> Difference:
    return Difference(key, None, None, None, 0, "undecided", "no images")

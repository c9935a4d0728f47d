"""Whether one model is better than another on the same images.

Two models that answer the same images are compared by the images on which only one of them is right. What both get
right or both get wrong says nothing about the difference, so that two tables of counts, which do not tell these apart,
cannot give its interval.

Letters: D draws, K classes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedmed.fairness.figures.draws import draw_rows
from fedmed.metrics.values import Array
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
    """

    key: str
    value: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    n: int
    verdict: Verdict
    reason: str | None = None


def compare_paired(cells: Array, seed: int, num_draws: int = 1000) -> dict[str, Difference]:
    """Compare the federated model with another one on the same images.

    Parameters
    ----------
    cells : ndarray of int64, shape (K,2,2)
        ``cells[k, a, b]``: images of true class k for which the federated model is right (a = 1) or wrong (a = 0), and
        the other model likewise (b); see :class:`fedmed.metrics.site_tables.PairedTables`.
    seed : int
        Seed of the run. The same seed gives the same result.
    num_draws : int
        D, at least 1.

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
      with a difference at least as large) / (1 + D)``.
    """
    if cells.ndim != 3 or cells.shape[1:] != (2, 2) or (cells < 0).any() or num_draws < 1:
        raise ValueError(
            f"Cells of shape {cells.shape} and num_draws {num_draws} were found. Needed: numbers of images of shape "
            "(classes, 2, 2), and at least one draw."
        )
    n_K = cells.sum(axis=(1, 2))
    if not n_K.any():
        return {key: _make_absent(key) for key in ("accuracy", "balanced_accuracy")}
    present = n_K > 0
    cells_K, n = cells[present], n_K[present]
    weights = {"accuracy": n / n.sum(), "balanced_accuracy": np.full(len(n), 1 / len(n))}
    won, lost = cells_K[:, 1, 0], cells_K[:, 0, 1]
    p_values = {
        "accuracy": sign_test(int(won.sum()), int(lost.sum())),
        "balanced_accuracy": _flip_signs(won, lost, n, make_rng(seed, "benefit", "signs"), num_draws),
    }
    drawn = _draw_differences(cells_K, make_rng(seed, "benefit", "cells"), num_draws)
    found = {}
    for key, weight in weights.items():
        value = float(weight @ ((won - lost) / n))
        found[key] = _judge(key, value, _find_interval(value, drawn @ weight), p_values[key], int(n.sum()))
    return found


def sign_test(won: int, lost: int) -> float:
    """Return the exact two-sided p-value of a fair coin that falls ``won`` and ``lost`` times on its sides."""
    flips, fewer = won + lost, min(won, lost)
    term = tail = 1
    for i in range(fewer):
        term = term * (flips - i) // (i + 1)
        tail += term
    return min(1.0, 2 * (tail / (1 << flips)))


def _flip_signs(won: Array, lost: Array, n: Array, rng: np.random.Generator, num_draws: int) -> float:
    differing = won + lost
    flipped = (2 * rng.binomial(differing, 0.5, size=(num_draws, len(n))) - differing) / n
    as_large = np.abs(flipped.sum(axis=1)) >= abs(((won - lost) / n).sum()) - _ROUNDING
    return float(1 + as_large.sum()) / (1 + num_draws)


def _draw_differences(cells: Array, rng: np.random.Generator, num_draws: int) -> Array:
    """Return differences of every class, shape (D,K), around their own mean."""
    flat = cells.reshape(len(cells), 4)
    drawn = draw_rows(rng, flat.sum(axis=1), flat + _PRIOR, num_draws)
    differences = (drawn[..., 2] - drawn[..., 1]) / flat.sum(axis=1)
    expected = (flat[:, 2] - flat[:, 1]) / (flat.sum(axis=1) + 4 * _PRIOR)
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

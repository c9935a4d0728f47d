"""How much less images say of the difference of two models where a patient has several.

Of a row (site, true class) let n be its images, m its patients, D the sum of squares of their numbers of images, and U
the variance that the sum of the differences of right answers has if images are unrelated. Q is the sum of squares
between patients of the row, about the row's own mean. With the correlation rho of two differences of one patient the
variance is U times ``1 + rho (D / n - 1)`` (Rao and Scott, Biometrics 48, 1992); rho is one number for a site,

    rho = sum_rows (m / (m - 1) Q - U) / sum_rows (D / n - 1) U,

held between 0 and 1, and 1 where nothing varies. Of few patients (:data:`FEW_PATIENTS`) chance alone often makes it 0;
it is then at least the correlation of the federated model's right answers. Sites are separate samples: the variance of
a class is the sum over the sites, so that a site of few patients keeps its own, however many patients the others have.
What is left of not knowing the variances is in their degrees of freedom (Satterthwaite, Biometrics Bulletin 2, 1946),
``(sum v)^2 / sum v^2 / (m - 1)`` of the variances v of the rows.

Letters: S sites, K classes.
"""

from typing import NamedTuple

import numpy as np

from fedmed.fairness.figures.design_effects import allow_for_few, find_correlation
from fedmed.metrics.clusters import PATIENTS, SIZES
from fedmed.metrics.values import Array, divide_defined

FEW_PATIENTS = 20
"""Of a site, below which the correlation of differences alone is too uncertain."""


class PairedEffects(NamedTuple):
    """What patients with several images mean for a comparison."""

    by_class: Array
    """Design effects, shape (K,), at least 1."""
    lowest_p: float
    """What a two-sided test that flips whole patients cannot go below; 0 where each has one image."""


def find_paired_effects(cells: Array, spread: Array | None, patients: Array | None) -> PairedEffects:
    """Return the design effects of a comparison at some sites together.

    Parameters
    ----------
    cells : ndarray, shape (S,K,2,2)
        As for :func:`fedmed.fairness.chance.paired.compare_paired`.
    spread : ndarray, shape (S,K), optional
        Q of each row.
    patients : ndarray, shape (S,K,4) or (S,K), optional
        The four numbers of :mod:`fedmed.metrics.clusters`, or m alone, and then all patients have the same number of
        images. Zeros where nothing is known.
    """
    n, differing, surplus = _count(cells)
    if spread is None:
        return PairedEffects(np.ones(n.shape[1]), 0.0)
    unrelated = np.where(n > 1, (differing - surplus**2 / np.maximum(n, 1)) * n / np.maximum(n - 1, 1), 0.0)
    m, clusters = _complete(n, patients)
    rows = zip(cells, unrelated, spread, m, clusters, strict=True)
    effects = np.stack([_find_site_effects(*row) for row in rows])
    variances, several = effects * unrelated, (m > 0) & (m < n)
    factor = _allow_for_freedom(variances, np.where(several, m, np.inf))
    by_images = divide_defined((effects * n).sum(axis=0), n.sum(axis=0))
    by_class = np.where(
        unrelated.sum(axis=0) > 0, divide_defined(variances.sum(axis=0), unrelated.sum(axis=0)), by_images
    )
    lowest = 2.0 ** (1 - float(np.where(m > 0, m, n).sum())) if several.any() else 0.0
    return PairedEffects(np.maximum(np.nan_to_num(by_class, nan=1.0), 1.0) * factor, min(lowest, 1.0))


def _count(cells: Array) -> tuple[Array, Array, Array]:
    """Return images, images on which the models differ, and how many more of them the federated model has right."""
    won, lost = cells[..., 1, 0], cells[..., 0, 1]
    return cells.sum(axis=(-2, -1)), won + lost, won - lost


def _complete(n: Array, patients: Array | None) -> tuple[Array, Array]:
    """Return m, and m, Q, C and D with equal numbers of images where m alone is told; zeros where nothing is."""
    if patients is None:
        patients = np.zeros_like(n)
    if patients.ndim == n.ndim + 1:
        return patients[..., PATIENTS], patients
    clusters = np.zeros((*n.shape, 4))
    clusters[..., PATIENTS], clusters[..., SIZES] = patients, np.nan_to_num(divide_defined(n**2, patients))
    return patients, clusters


def _find_site_effects(cells: Array, unrelated: Array, spread: Array, m: Array, clusters: Array) -> Array:
    n = cells.sum(axis=(-2, -1))
    if not m.any():  # only how much patients vary is told
        whole = spread.sum() / unrelated.sum() if unrelated.sum() > 0 else 1.0
        return np.full(len(n), max(1.0, float(whole)))
    several = (m > 0) & (m < n)
    more = np.where(several, np.maximum(np.nan_to_num(divide_defined(clusters[..., SIZES], n)) - 1, 0.0), 0.0)
    usable = several & (m > 1)
    shared = float(np.where(usable, more * unrelated, 0.0).sum())
    surplus = np.where(usable, spread * np.nan_to_num(divide_defined(m, m - 1)) - unrelated, 0.0)
    rho = float(np.clip(surplus.sum() / shared, 0.0, 1.0)) if shared > 0 else 1.0
    if m.sum() < FEW_PATIENTS and clusters[..., 1:SIZES].any():
        rho = max(rho, find_correlation(cells[:, 1].sum(axis=-1), n, clusters))
    return 1 + rho * more


def _allow_for_freedom(variances: Array, m: Array) -> float:
    """Return by how much variances count as larger; ``m`` is infinite where a variance needs no estimate."""
    unsure = float((np.square(variances) / np.maximum(m - 1, 1)).sum())
    return allow_for_few(float(variances.sum()) ** 2 / unsure) if unsure > 0 else 1.0

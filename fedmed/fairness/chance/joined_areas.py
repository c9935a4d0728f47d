"""The interval of a mean of areas under ROC curves, from histograms of scores.

The tables hold the histogram of each class's score, not which scores belong to one image, and so not how the areas of
the classes hang together. Draws join the scores by rank within a true class, the highest own score with the lowest
other ones. This is exact for two classes; of more it makes the areas hang together more than they do rather than less.

Letters: D draws, K classes, B bins.
"""

import numpy as np

from fedmed.fairness.figures.draws import resample
from fedmed.metrics.classification import area_values
from fedmed.metrics.tables import SCORE_BINS
from fedmed.metrics.values import Array
from fedmed.seeding import make_rng


def join_intervals(by_class: Array, areas: Array, scores: Array, seed: int, num_draws: int) -> Array:
    """Return the interval of the mean area.

    Parameters
    ----------
    by_class : ndarray, shape (2,K)
        Intervals of the classes' areas, NaN where there is none.
    areas : ndarray, shape (K,)
        The areas.
    scores : ndarray, shape (K,K,B)
        Histograms of the score of each class (second axis) by true class.
    seed : int
        Seed of the run.
    num_draws : int
        D.

    Returns
    -------
    ndarray, shape (2,)

    Notes
    -----
    With the distances r of the classes' ends from their areas and the correlations C of the areas in the draws, none
    taken as below 0, each end is ``sqrt(r C r) / K`` from the mean (Zou and Donner, 2008, for what is correlated).
    """
    defined = np.flatnonzero(~np.isnan(by_class[0]))
    if not len(defined):
        return np.full(2, np.nan)
    drawn = draw_areas(scores, seed, num_draws)[:, defined]
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    centred = drawn - drawn.mean(axis=0) if len(drawn) > 1 else np.zeros((2, len(defined)))
    spread = np.sqrt(np.square(centred).mean(axis=0))
    varies = spread > 0
    scaled = centred[:, varies] / spread[varies]
    # A class that never varies in the draws tells nothing of the others, so it is taken to go with all of them.
    correlation = np.ones((len(defined), len(defined)))
    correlation[np.ix_(varies, varies)] = np.clip(scaled.T @ scaled / max(len(scaled), 1), 0.0, 1.0)
    reach = np.abs(by_class[:, defined] - areas[defined])
    distance = np.sqrt(np.einsum("ej,jk,ek->e", reach, correlation, reach)) / len(defined)
    ends: Array = np.clip(areas[defined].mean() + np.array([-1.0, 1.0]) * distance, 0.0, 1.0)
    return ends


def draw_areas(scores: Array, seed: int, num_draws: int) -> Array:
    """Return the areas of every class in draws of the images of each true class, shape (D,K)."""
    rng = make_rng(seed, "intervals", "scores")
    num_classes = len(scores)
    own = np.zeros((num_draws, num_classes, SCORE_BINS))
    total = np.zeros_like(own)
    for k in range(num_classes):
        if not scores[k].any():
            continue
        cells, weights = np.unique(_join_by_rank(scores[k], k), axis=0, return_counts=True)
        is_in_bin = (cells[:, :, None] == np.arange(SCORE_BINS)).astype(np.float64)
        drawn = resample(rng, weights, num_draws).astype(np.float64)
        histograms = (drawn @ is_in_bin.reshape(len(cells), -1)).reshape(own.shape)
        own[:, k] = histograms[:, k]
        total += histograms
    by_class = area_values(own, total - own).by_class
    assert by_class is not None
    return by_class


def _join_by_rank(histograms: Array, own: int) -> Array:
    """Return one row of K score bins for each image of a true class, shape (n,K): own scores up, other scores down."""
    bins = [np.repeat(np.arange(SCORE_BINS), histogram) for histogram in histograms]
    return np.stack([side if c == own else side[::-1] for c, side in enumerate(bins)], axis=1)

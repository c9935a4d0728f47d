"""Which two groups differ most in a class, and which lack it.

Letters: G groups, K classes.
"""

from collections.abc import Sequence

import numpy as np

from fedmed.metrics.values import Array


def find_ends(rate_G: Array, worth_G: Array) -> tuple[int, int]:
    """Return the two places whose rates differ most for how many images they count as, the lower one first.

    Parameters
    ----------
    rate_G : ndarray, shape (G,)
        Rates; NaN for a group that lacks the class. Two at least are not.
    worth_G : ndarray, shape (G,)
        How many images each counts as.
    """
    defined = np.flatnonzero(~np.isnan(rate_G)).tolist()
    pairs = [(one, other) for one in defined for other in defined if one != other and rate_G[one] <= rate_G[other]]
    return max(
        pairs,
        key=lambda pair: (
            float((rate_G[pair[1]] - rate_G[pair[0]]) / np.sqrt(1 / worth_G[pair[0]] + 1 / worth_G[pair[1]])),
            -pair[0],
        ),
    )


def find_lacking(rate_GK: Array, names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return for each class that some groups have and others lack, the names of these others."""
    lacks, num_groups = np.isnan(rate_GK), len(names)
    found = {
        k: tuple(names[g] for g in np.flatnonzero(lacks[:, k]).tolist())
        for k in np.flatnonzero(lacks.any(axis=0)).tolist()
    }
    return {k: groups for k, groups in found.items() if len(groups) < num_groups}

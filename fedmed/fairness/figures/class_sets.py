"""Which classes groups are compared over.

A mean over the classes of one group and over fewer classes of another are two different figures, and so are two shares
of right answers of which one is about easy classes only. So groups are compared
over the classes that are told in all of them. A group of which fewer than two classes are told is not compared. Where
the others have fewer than two in common, as many groups as possible are kept that have two in common; of several such
choices the one with most images.

Letters: G groups, K classes.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from fedmed.metrics.values import Array


@dataclass(frozen=True, eq=False)
class ClassSet:
    """Groups that are compared, and the classes over which.

    Attributes
    ----------
    groups : ndarray of bool, shape (G,)
        All false where fewer than two groups have two classes in common.
    classes : ndarray of bool, shape (K,)
        Told in all of these groups.
    is_whole : bool
        Whether these are all groups with told images, and all classes that are told of any of them. Only then do images
        whose class is not told count in a comparison of accuracies.
    """

    groups: Array
    classes: Array
    is_whole: bool


def find_class_set(images: Array) -> ClassSet:
    """Return which groups are compared over which classes.

    Parameters
    ----------
    images : ndarray of int, shape (G,K)
        Images that are told by group and true class.
    """
    told, total = images > 0, images.sum(axis=1)
    best = (1, 0, np.zeros(len(images), np.bool_))
    for first, second in itertools.combinations(range(images.shape[1]), 2):
        kept = told[:, first] & told[:, second]
        rank = (int(kept.sum()), int(total[kept].sum()))
        if rank > best[:2] and rank[0] > 1:
            best = (*rank, kept)
    chosen: Array = best[2]
    common: Array = np.logical_and.reduce(told[chosen], axis=0) & bool(chosen.any())
    return ClassSet(chosen, common, bool(chosen.any()) and bool((told == chosen[:, None] & common).all()))

"""Which classes groups are compared over.

A mean over the classes of one group and over fewer classes of another are two different figures. So groups are compared
over the classes that are told in all of them. A group of which fewer than two classes are told is not compared, and
where the others have fewer than two in common, the group with the fewest is left out, until they have.

Letters: G groups, K classes.
"""

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
    """

    groups: Array
    classes: Array


def find_class_set(images: Array) -> ClassSet:
    """Return which groups are compared over which classes.

    Parameters
    ----------
    images : ndarray of int, shape (G,K)
        Images that are told by group and true class.
    """
    told, total = images > 0, images.sum(axis=1)
    kept = told.sum(axis=1) > 1
    while kept.sum() > 1:
        common = told[kept].all(axis=0)
        if common.sum() > 1:
            return ClassSet(kept, common)
        places = np.flatnonzero(kept)
        kept[min(places.tolist(), key=lambda place: (told[place].sum(), total[place], place))] = False
    return ClassSet(np.zeros(len(images), np.bool_), np.zeros(images.shape[1], np.bool_))

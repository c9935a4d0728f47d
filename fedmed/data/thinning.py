"""Fewer training images: for quick studies, or in a long tail of classes. Validation and test keep theirs.

Letters: K classes.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np

from fedmed.config import DataSection
from fedmed.data.split_files import SplitRow
from fedmed.data.splits import PARTS, TRAIN, count_by_group
from fedmed.errors import DataError
from fedmed.seeding import make_rng

Rows = Mapping[str, Sequence[SplitRow]]
"""Site names to images of all parts."""


def thin_training(
    rows: Rows, classes: Sequence[str], config: DataSection, seed: int
) -> tuple[dict[str, list[SplitRow]], list[int]]:
    """Leave out training images as ``data.long_tail`` and ``data.max_train_images`` say.

    Parameters
    ----------
    rows : mapping of str to sequence of SplitRow
        Site names to images of all parts.
    classes : sequence of str
        Names of the K classes.
    config : DataSection
        Settings of the data.
    seed : int
        Seed of the run.

    Returns
    -------
    rows : dict of str to list of SplitRow
        What is left.
    left_out : list of int
        Training images of each class that are left out (K).

    Raises
    ------
    DataError
        If the long tail leaves a site without training images.
    """
    if config.long_tail is not None:
        kept = _keep_long_tail(rows, classes, config.long_tail, config.max_train_images, seed)
    elif config.max_train_images is not None:
        kept = _keep_share(rows, config.max_train_images, seed)
    else:
        kept = {site: list(of_site) for site, of_site in rows.items()}
    before, after = (_count_training(some, len(classes)) for some in (rows, kept))
    return kept, [full - left for full, left in zip(before, after, strict=True)]


def long_tail_sizes(available: Sequence[int], ratio: float, most: int | None = None) -> list[int]:
    """Return how many images of each class a long tail has.

    Parameters
    ----------
    available : sequence of int
        Images that there are of each class, the most frequent class first, none of them 0 (K).
    ratio : float
        Size of the first class over that of the last; at least 1.
    most : int, optional
        Most images of all classes together.

    Returns
    -------
    list of int
        ``n_c = n_max * ratio ** (-r / (K - 1))`` for the class of rank r = 0 .. K-1, rounded, at least 1, and never
        more than there are. ``n_max`` is the number of images of the first class or, where that would be more than
        ``most`` together, the largest that is not.

    Notes
    -----
    The exponential profile of Cui et al., "Class-balanced loss based on effective number of samples" (CVPR 2019).
    """
    steps = max(1, len(available) - 1)

    def sizes(largest: int) -> list[int]:
        wanted = (round(largest * ratio ** (-rank / steps)) for rank in range(len(available)))
        return [min(there, max(1, size)) for there, size in zip(available, wanted, strict=True)]

    largest = available[0]
    if most is not None:
        largest = max(1, bisect_right(range(1, largest + 1), most, key=lambda size: sum(sizes(size))))
    return sizes(largest)


def _keep_long_tail(
    rows: Rows, classes: Sequence[str], ratio: float, most: int | None, seed: int
) -> dict[str, list[SplitRow]]:
    """Keep whole patients or lesions in random order, as long as no class exceeds its size over all sites together."""
    counts = _count_training(rows, len(classes))
    ranks = sorted((k for k in range(len(classes)) if counts[k]), key=lambda k: (-counts[k], classes[k]))
    wanted_K = np.zeros(len(classes))
    wanted_K[ranks] = long_tail_sizes([counts[k] for k in ranks], ratio, most)
    groups = count_by_group([row.item for of_site in rows.values() for row in of_site if _trains(row)], len(classes))
    order = make_rng(seed, "long_tail").permutation(np.array(list(groups), dtype=object)).tolist()
    kept: set[str] = set()
    have_K = np.zeros(len(classes))
    for group in order:
        if (have_K + groups[group] <= wanted_K).all():
            kept.add(group)
            have_K += groups[group]
    for k in ranks:
        if not have_K[k]:  # every group of the class is larger than the size it should have
            smallest = min((group for group in order if groups[group][k]), key=lambda group: groups[group].sum())
            kept.add(smallest)
            have_K += groups[smallest]
    found = {site: [row for row in rows[site] if not _trains(row) or row.item.group in kept] for site in rows}
    for site, of_site in found.items():
        if not any(map(_trains, of_site)):
            raise DataError(
                f"data.long_tail is {ratio:g}, which leaves the site '{site}' without training images. Set a smaller "
                "ratio, a larger data.max_train_images where there is one, or fewer sites."
            )
    return found


def _keep_share(rows: Rows, most: int, seed: int) -> dict[str, list[SplitRow]]:
    """Keep the same share of the training images of every class at every site, and at least one."""
    total = sum(_trains(row) for of_site in rows.values() for row in of_site)
    share = min(1.0, most / total)
    kept: dict[str, list[SplitRow]] = {}
    for site in sorted(rows):
        rng = make_rng(seed, site, "thin")
        strata: dict[int, list[int]] = {}
        for index, row in enumerate(rows[site]):
            if _trains(row):
                strata.setdefault(row.item.label, []).append(index)
        dropped: set[int] = set()
        for label in sorted(strata):
            order = rng.permutation(strata[label])
            dropped |= {int(index) for index in order[max(1, int(share * len(order))) :]}
        kept[site] = [row for index, row in enumerate(rows[site]) if index not in dropped]
    return kept


def _count_training(rows: Rows, num_classes: int) -> list[int]:
    """Return training images of each class over all sites (K)."""
    counts = [0] * num_classes
    for of_site in rows.values():
        for row in of_site:
            counts[row.item.label] += _trains(row)
    return counts


def _trains(row: SplitRow) -> bool:
    return row.part == PARTS[TRAIN]

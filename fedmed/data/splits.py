"""A site's images into train, validation and test: whole patients, every class in its share."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmed.config import SplitConfig
from fedmed.data.partition import Item
from fedmed.errors import DataError
from fedmed.seeding import make_rng

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)

Array = np.ndarray[Any, np.dtype[np.float64]]


def split_sites(
    by_site: Mapping[str, Sequence[Item]], num_classes: int, split: SplitConfig, seed: int
) -> dict[str, list[int]]:
    """Choose a part for every image of every site.

    A group that has images at several sites is put in one part at all of them, chosen at the first site in name order;
    otherwise a patient could be trained on at one site and tested on at another.

    Parameters
    ----------
    by_site : mapping of str to sequence of Item
        Site names to images.
    num_classes : int
        K.
    split : SplitConfig
        Shares of validation and test.
    seed : int
        Seed of the run.

    Returns
    -------
    dict of str to list of int
        Site names to indices into ``PARTS``, one for each image.

    Raises
    ------
    DataError
        If a site is left without training images.
    """
    sites_of_group: dict[str, set[str]] = defaultdict(set)
    for site, items in by_site.items():
        for item in items:
            sites_of_group[item.group].add(site)
    fixed: dict[str, int] = {}
    parts: dict[str, list[int]] = {}
    for site in sorted(by_site):
        items = by_site[site]
        rng = make_rng(seed, site, "split")
        part_of_group = allocate_groups(count_by_group(items, num_classes), split, rng, fixed)
        fixed |= {group: part for group, part in part_of_group.items() if len(sites_of_group[group]) > 1}
        parts[site] = [part_of_group[item.group] for item in items]
        if TRAIN not in parts[site]:
            raise DataError(
                f"The site '{site}' has {len(items)} images and none of them for training: their patients or lesions "
                "(data.group_column) also occur at other sites, where the split put them into validation or test. "
                "Give these sites one name in the table, or take the site out."
            )
    return parts


def count_by_group(items: Sequence[Item], num_classes: int) -> dict[str, Array]:
    """Return for every group, sorted by id, how many images of each class it has, (K,)."""
    counts: dict[str, Array] = defaultdict(lambda: np.zeros(num_classes))
    for item in items:
        counts[item.group][item.label] += 1
    return {group: counts[group] for group in sorted(counts)}


def allocate_groups(
    counts: Mapping[str, Array], split: SplitConfig, rng: np.random.Generator, fixed: Mapping[str, int]
) -> dict[str, int]:
    """Choose a part for every group of one site.

    Parameters
    ----------
    counts : mapping of str to array (K,)
        Images of each class in every group.
    split : SplitConfig
        Shares of validation and test.
    rng : Generator
        Breaks ties between groups of one size.
    fixed : mapping of str to int
        Groups whose part is decided already; others are ignored.

    Returns
    -------
    dict of str to int
        Index into ``PARTS`` of every group.

    Notes
    -----
    First each class, the rarest first, gets one of its smallest groups into every part; one that has only two groups
    goes without validation, and one that has a single group is only trained on. Then the largest group left goes where
    it increases least

        sum_p sum_k (a_pk - d_pk)^2 / d_pk,

    with ``a_pk`` images of class k in part p and ``d_pk`` those that the shares ask for; all classes together count
    as one more class. At last an empty part takes a small group of another, so that validation and test are empty only
    at a site with fewer than three groups.
    """
    order = rng.permutation(np.array(list(counts), dtype=object)).tolist()
    order.sort(key=lambda group: counts[group].sum())  # stable: equal sizes stay in random order
    vectors = {group: np.append(counts[group], counts[group].sum()) for group in order}
    shares = np.array([1 - split.validation - split.test, split.validation, split.test])
    wanted = np.maximum(shares[:, None] * np.sum(list(vectors.values()), axis=0), 1e-9)  # (3, K + 1)
    part_of = {group: fixed[group] for group in order if group in fixed}
    _seed_classes(order, vectors, part_of)
    have = np.zeros_like(wanted)
    for group, part in part_of.items():
        have[part] += vectors[group]
    for group in reversed(order):
        if group not in part_of:
            vector = vectors[group]
            increase = ((2 * (have - wanted) + vector) * vector / wanted).sum(axis=1)
            part_of[group] = int(increase.argmin())
            have[part_of[group]] += vector
    _fill_empty_parts(order, part_of, fixed)
    return part_of


def _seed_classes(order: Sequence[str], vectors: Mapping[str, Array], part_of: dict[str, int]) -> None:
    """Put one group of every class into each part, in place, if the class has groups enough."""
    num_classes = len(next(iter(vectors.values()))) - 1
    members = [[group for group in order if vectors[group][k] > 0] for k in range(num_classes)]
    for groups in sorted(members, key=len):
        free = [group for group in groups if group not in part_of]
        taken = {part_of[group] for group in groups if group in part_of}
        missing = [part for part in (TRAIN, TEST, VALIDATION) if part not in taken][: len(free)]
        # Reversed, so that of two or three groups the largest is trained on.
        part_of |= dict(zip(free, reversed(missing), strict=False))


def _fill_empty_parts(order: Sequence[str], part_of: dict[str, int], fixed: Mapping[str, int]) -> None:
    """Move one small group into every part that has none, in place, from the part with most groups."""
    for part in (TRAIN, TEST, VALIDATION):
        if part in part_of.values():
            continue
        sizes = np.bincount(list(part_of.values()), minlength=3)
        donors = [group for group in order if group not in fixed and sizes[part_of[group]] > 1]
        if donors:
            chosen = max(donors, key=lambda group: sizes[part_of[group]])  # the first, so the smallest, of that part
            part_of[chosen] = part

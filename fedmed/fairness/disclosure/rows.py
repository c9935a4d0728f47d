"""Which rows of a site's tables may leave it, so that no small number follows from several of them.

A row is a (group, true class) of an attribute, that is a set of images. It is not enough to leave out rows of few
images: the total minus the other groups is the small one, two attributes whose groups nearly agree differ by a few
images, and so do the same rows before and after a patient withdrew. So a row is told only if no weighted sum of all
rows that were ever told is about fewer than ``k_row`` images; see :mod:`fedmed.fairness.disclosure.row_span`.

Rows are tried in the order of their importance: the site, single attributes, crossings of attributes, and in each the
larger ones first. What is not told class by class goes into the row "rare classes" of its group, if that passes the
same test. Nothing is told of a group with fewer than ``k`` images, and nothing may follow about it. Before all this, a
few images are set aside, see :mod:`fedmed.fairness.disclosure.set_aside`.

Letters: N images, A atoms.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Ints, Mask, RowSpan
from fedmed.fairness.disclosure.set_aside import Disclosure, Images, ToldRows, set_aside_beside, set_aside_given_away
from fedmed.fairness.figures.groups import is_crossing

__all__ = ["AttributePlan", "Disclosure", "DisclosurePlan", "ToldRows", "plan_disclosure"]

Candidate = tuple[str, Mask]
"""An attribute and the images of one of its rows."""


@dataclass(frozen=True, eq=False)
class AttributePlan:
    """Where the images of one attribute are counted."""

    counted: Mask
    """Class by class."""
    rare: Mask
    """In the row of rare classes of their group."""
    whole: frozenset[str] = frozenset()
    """Groups of which nothing is told."""


@dataclass(frozen=True, eq=False)
class DisclosurePlan:
    """What may leave of one part of a site's data, whatever the model."""

    attributes: Mapping[str, AttributePlan]
    set_aside: Mask
    """Images that are in no table."""
    told: ToldRows
    """All that has been told once tables of this plan have left."""

    @property
    def num_told(self) -> int:
        """Images in the tables, those of rare classes included; of the attribute with most."""
        return max(int(plan.counted.sum() + plan.rare.sum()) for plan in self.attributes.values())

    @property
    def is_complete(self) -> bool:
        """Whether the site's images are all told class by class."""
        return bool(self.attributes[SITE_ATTRIBUTE].counted.all())


def plan_disclosure(
    labels: torch.Tensor,
    groups: Mapping[str, Sequence[str]],
    items: Sequence[str],
    disclosure: Disclosure,
    earlier: ToldRows | None = None,
) -> DisclosurePlan:
    """Choose the rows that may leave.

    Parameters
    ----------
    labels : Tensor of integers, shape (N,)
        True classes.
    groups : mapping of str to sequence of str
        Attribute to the group of each image, as :func:`fedmed.fairness.figures.groups.assign_groups` gives them.
    items : sequence of str, length N
        Id of each image, none twice.
    disclosure : Disclosure
        The thresholds.
    earlier : ToldRows, optional
        What has been told before.

    Returns
    -------
    DisclosurePlan
        The same again where ``earlier`` is what it has told and the images are the same.
    """
    earlier = ToldRows() if earlier is None else earlier
    y_N = labels.numpy().astype(np.int64)
    if disclosure.k <= 1 and disclosure.k_row <= 1:
        everything, nothing = np.ones(len(y_N), np.bool_), np.zeros(len(y_N), np.bool_)
        return DisclosurePlan({name: AttributePlan(everything, nothing) for name in groups}, nothing, earlier)
    images = Images.index(y_N, groups, items, disclosure, earlier)
    gone = set_aside_beside(images, earlier)
    set_aside_given_away(images)
    told = _Atoms(images, earlier)
    counted = _collect(images, _choose(_list_rows(images), told))
    rare = _collect(images, _choose(_list_rare(images, counted), told))
    plans = {name: _finish(images, name, counted[name], rare[name]) for name in images.codes}
    after = replace(_sum_up(images, plans, earlier, gone), protected=told.protected)
    return DisclosurePlan(plans, ~images.open, after)


class _Atoms:
    """The rows that were told, over images that are alike in all rows."""

    def __init__(self, images: Images, earlier: ToldRows) -> None:
        gone = [item for item in earlier.classes if item not in images.places]
        places = {**images.places} | {item: len(images.places) + number for number, item in enumerate(gone)}
        in_rows = np.zeros((len(places), len(earlier.rows)), np.int64)
        rows = sorted(earlier.rows, key=lambda row: (-len(row), sorted(row)))
        for number, row in enumerate(rows):
            in_rows[[places[item] for item in row], number] = 1
        present = np.column_stack([images.labels, images.open, *images.codes.values()]).astype(np.int64)
        absent = np.full((len(gone), present.shape[1]), -1)  # in no row of now
        profiles = np.ascontiguousarray(np.hstack([np.vstack([present, absent]), in_rows]))
        _, first, atom = np.unique(
            profiles.view(f"V{profiles.strides[0]}").ravel(), return_index=True, return_inverse=True
        )
        self._atom_N = atom[: len(images.labels)]
        self._num_atoms = len(first)
        self.protected = _list_protected(images, earlier)
        masks = [
            np.isin(np.arange(len(first)), [atom[places[i]] for i in ids if i in places]) for ids in self.protected
        ]
        self._span = RowSpan(np.bincount(atom), images.disclosure.k_row, masks)
        for marks in in_rows[first].T:
            self._span.add(marks)

    def try_add(self, inside_N: Mask) -> bool:
        """Take a row as told unless it reveals too much; return whether it was taken."""
        return self._span.try_add(self._mark(inside_N))

    def _mark(self, inside_N: Mask) -> Ints:
        marks = np.zeros(self._num_atoms, np.int64)
        marks[self._atom_N[inside_N]] = 1
        return marks


def _list_protected(images: Images, earlier: ToldRows) -> frozenset[frozenset[str]]:
    """Return the images of each group that is too small, or was; nothing about them alone may follow.

    Those of fewer images than a row needs are protected anyhow.
    """
    items, found = np.array(images.items, dtype=object), set(earlier.protected)
    for attribute, codes in images.codes.items():
        for group in images.find_small_groups(attribute):
            small = frozenset(items[codes == group])
            if len(small) >= images.disclosure.k_row and not any(small <= other for other in found):
                found.add(small)
    return frozenset(found)


def _list_rows(images: Images) -> list[Candidate]:
    """Return all rows that are large enough, of groups that are, in the order in which they are tried."""
    found = []
    for attribute, codes in images.codes.items():
        key, small = images.key_rows(attribute), images.find_small_groups(attribute)
        rows, first, sizes = np.unique(key[images.open], return_index=True, return_counts=True)
        groups = codes[images.open][first]
        large = (sizes >= images.disclosure.k_row) & ~np.isin(groups, list(small))
        found += [(attribute, images.open & (key == row)) for row in rows[large]]
    return sorted(found, key=_rank)


def _list_rare(images: Images, counted: Mapping[str, Mask]) -> list[Candidate]:
    """Return the row of rare classes of every group that is large enough."""
    found = []
    for attribute, codes in images.codes.items():
        left, small = images.open & ~counted[attribute], images.find_small_groups(attribute)
        groups, sizes = np.unique(codes[left], return_counts=True)
        large = (sizes >= images.disclosure.k_row) & ~np.isin(groups, list(small))
        found += [(attribute, left & (codes == group)) for group in groups[large]]
    return sorted(found, key=_rank)


def _rank(candidate: Candidate) -> tuple[int, int]:
    attribute, inside_N = candidate
    return 0 if attribute == SITE_ATTRIBUTE else 1 + is_crossing(attribute), -int(inside_N.sum())


def _choose(candidates: Iterable[Candidate], told: _Atoms) -> Iterable[Candidate]:
    return (candidate for candidate in candidates if told.try_add(candidate[1]))


def _collect(images: Images, rows: Iterable[Candidate]) -> dict[str, Mask]:
    """Return the images of rows, by attribute."""
    found = {attribute: np.zeros(len(images.labels), np.bool_) for attribute in images.codes}
    for attribute, inside_N in rows:
        found[attribute] |= inside_N
    return found


def _finish(images: Images, attribute: str, counted_N: Mask, rare_N: Mask) -> AttributePlan:
    codes, names = images.codes[attribute], images.names[attribute]
    told = np.bincount(codes[counted_N | rare_N], minlength=len(names))
    return AttributePlan(counted_N, rare_N, frozenset(np.array(names)[told == 0].tolist()))


def _sum_up(images: Images, plans: Mapping[str, AttributePlan], earlier: ToldRows, gone: frozenset[str]) -> ToldRows:
    """Return what has been told once tables of these plans have left."""
    items = np.array(images.items, dtype=object)
    rows, shown_N = set(earlier.rows), np.zeros(len(items), np.bool_)
    for attribute, plan in plans.items():
        shown_N |= plan.counted | plan.rare
        for inside_N, key in ((plan.counted, images.key_rows(attribute)), (plan.rare, images.codes[attribute])):
            rows |= {frozenset(items[inside_N & (key == row)]) for row in np.unique(key[inside_N])}
    classes = dict(zip(items[shown_N], images.labels[shown_N].tolist(), strict=True))
    return ToldRows({**earlier.classes, **classes}, frozenset(rows), earlier.set_aside | gone | {*items[~images.open]})

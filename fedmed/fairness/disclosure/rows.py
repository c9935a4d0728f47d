"""Which rows of a site's tables may leave it, so that no small number follows from several of them.

A row is a (group, true class) of an attribute, that is a set of images. It is not enough to leave out rows of few
images: the total minus the other groups is the small one, two attributes whose groups nearly agree differ by a few
images, and so do the same rows before and after a patient withdrew. So a row is told only if no weighted sum of all
rows that were ever told is about fewer than ``k_row`` patients; see :mod:`fedmed.fairness.disclosure.row_span`. Where
the data has no patients' ids, each image counts as a patient.

Rows are tried in the order of their importance: the site, single attributes, crossings of attributes, and in each the
larger ones first. What is not told class by class goes into the row "rare classes" of its group, if that passes the
same test. Nothing is told of a group with fewer than ``k`` patients, and nothing may follow about it. Before all this,
a few images are set aside, see :mod:`fedmed.fairness.disclosure.set_aside`. What integers and right answers give away
beyond weighted sums is looked at once models have answered, see :mod:`fedmed.fairness.reconstruction.hold`.

Letters: N images, A atoms.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Ints, Mask, RowSpan
from fedmed.fairness.disclosure.set_aside import Disclosure, Images, ToldRows, conceal_groups, set_aside_beside
from fedmed.fairness.figures.groups import CROSS, is_crossing

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
    folded: frozenset[tuple[str, int]] = frozenset()
    """Rows (group, class) whose wrong answers are told together, not class by class."""
    unpaired: frozenset[tuple[str, int]] = frozenset()
    """Rows in which no two models are compared image by image."""
    silent: frozenset[tuple[str, int]] = frozenset()
    """Rows of which no alerts are told."""


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


def plan_disclosure(  # noqa: PLR0917
    labels: torch.Tensor,
    groups: Mapping[str, Sequence[str]],
    items: Sequence[str],
    disclosure: Disclosure,
    earlier: ToldRows | None = None,
    patients: Sequence[str] | None = None,
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
    patients : sequence of str of length N, optional
        Id of each image's patient, which the thresholds count; without it they count images.

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
    images = Images.index(y_N, groups, items, disclosure, earlier, patients)
    gone = set_aside_beside(images, earlier)
    conceal_groups(images)
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
        columns = [images.labels, images.open, *images.codes.values(), *images.shown.values()]
        present = np.column_stack(columns).astype(np.int64)
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
        patients = {item: earlier.patients.get(item, item) for item in gone}
        patients |= dict(zip(images.items, images.patients, strict=True))
        weights = _weigh_atoms(atom, [patients[item] for item in places])
        self._span = RowSpan(weights, images.disclosure.k_row, masks)
        for marks in in_rows[first].T:
            self._span.add(marks)

    def try_add(self, inside_N: Mask) -> bool:
        """Take a row as told unless it reveals too much; return whether it was taken."""
        return self._span.try_add(self._mark(inside_N))

    def _mark(self, inside_N: Mask) -> Ints:
        marks = np.zeros(self._num_atoms, np.int64)
        marks[self._atom_N[inside_N]] = 1
        return marks


def _weigh_atoms(atom_N: Ints, patients: Sequence[str]) -> Ints:
    """Return the number of patients of each atom, each patient in one atom only, where most of its images are.

    So the weights of any atoms together are at most the patients who have images in them. Between atoms with as many
    of its images a patient goes to the one that has fewest so far, lest one of them look empty.
    """
    weights = np.zeros(int(atom_N.max(initial=-1)) + 1, np.int64)
    images: dict[str, Counter[int]] = defaultdict(Counter)
    for atom, patient in zip(atom_N.tolist(), patients, strict=True):
        images[patient][atom] += 1
    tied = []
    for of_patient in images.values():
        most = [atom for atom, number in of_patient.items() if number == max(of_patient.values())]
        if len(most) == 1:
            weights[most[0]] += 1
        else:
            tied.append(sorted(most))
    for atoms in sorted(tied):
        weights[min(atoms, key=lambda atom: (weights[atom], atom))] += 1
    return weights


def _list_protected(images: Images, earlier: ToldRows) -> frozenset[frozenset[str]]:
    """Return the images of each group that is too small, or was; nothing about them alone may follow.

    Those of fewer images than a row needs are protected anyhow.
    """
    items, found = np.array(images.items, dtype=object), set(earlier.protected)
    for attribute, codes in images.codes.items():
        for group in images.find_small_groups(attribute):
            small, patients = frozenset(items[codes == group]), len(np.unique(images.patient_codes[codes == group]))
            if patients >= images.disclosure.k_row and not any(small <= other for other in found):
                found.add(small)
    return frozenset(found)


def _list_rows(images: Images) -> list[Candidate]:
    """Return all rows that are large enough, of groups that are, in the order in which they are tried."""
    found = []
    for attribute, codes in images.codes.items():
        key, small, open_N = (
            images.key_rows(attribute),
            images.find_small_groups(attribute),
            images.find_open(attribute),
        )
        rows, first = np.unique(key[open_N], return_index=True)
        groups = codes[open_N][first]
        sizes = images.count_patients(key, open_N)[rows]
        large = (sizes >= images.disclosure.k_row) & ~np.isin(groups, list(small))
        found += [(attribute, open_N & (key == row)) for row in rows[large]]
    return sorted(_thin_crossings(images, found), key=_rank)


def _thin_crossings(images: Images, rows: Sequence[Candidate]) -> list[Candidate]:
    """Leave out rows of crossings that share an attribute with a larger one of the class: both say too much."""
    sizes: dict[str, int] = {}
    for attribute, inside_N in rows:
        sizes[attribute] = sizes.get(attribute, 0) + int(inside_N.sum())
    order = sorted((name for name in sizes if is_crossing(name)), key=lambda name: (-sizes[name], name))
    classes = {(attribute, _find_class(images, inside_N)) for attribute, inside_N in rows}
    chosen: set[tuple[str, int]] = set()
    for label in {label for _, label in classes}:
        taken: set[str] = set()
        for name in order:
            if (name, label) in classes and not taken & {*name.split(CROSS)}:
                taken |= {*name.split(CROSS)}
                chosen.add((name, label))
    return [row for row in rows if not is_crossing(row[0]) or (row[0], _find_class(images, row[1])) in chosen]


def _find_class(images: Images, inside_N: Mask) -> int:
    return int(images.labels[inside_N.argmax()])


def _list_rare(images: Images, counted: Mapping[str, Mask]) -> list[Candidate]:
    """Return the row of rare classes of every group that is large enough."""
    found = []
    for attribute, codes in images.codes.items():
        if is_crossing(attribute):
            continue  # with the rows of its attributes they would say too much
        left, small = images.find_open(attribute) & ~counted[attribute], images.find_small_groups(attribute)
        groups = np.unique(codes[left])
        sizes = images.count_patients(codes, left, len(images.names[attribute]))[groups]
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
    known = zip(images.items, images.patients, strict=True)
    return ToldRows(
        classes={**earlier.classes, **classes},
        rows=frozenset(rows),
        set_aside=earlier.set_aside | gone | {*items[~images.open]},
        patients={**earlier.patients, **{item: patient for item, patient in known if patient != item}},
    )

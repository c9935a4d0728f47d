"""Proofs without an integer program: patients who are alike to a reader could have each other's group.

Exchange the group of one attribute between two patients of a class with the same number of images, taken for the same
classes by every model. Then no number changes but those of crossings of the attribute. A hidden cell (i, j) loses a
patient where the other one is neither in i nor in j, and gains one where two have one of both each. So a cell can be
empty if each of its patients has such a counterpart, and can then have any number up to that of the pairs which bring
in a patient of one image. That is sufficient, not necessary; the integer program answers for the others.

Letters: P patients, A and B groups of two attributes, F profiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Ints, Mask
from fedmed.fairness.reconstruction.statement import Row, ToldPart
from fedmed.fairness.reconstruction.structure import OTHERS, find_crossings
from fedmed.metrics.values import Array


@dataclass(frozen=True)
class ReaderView:
    """The patients of a class, as what was told is true of them."""

    codes: Mapping[str, Ints]
    """Attribute to each patient's group, shape (P,); -1 where a patient's images are in several."""
    profiles: Ints
    """Equal for patients whose images the models take for the same classes, shape (P,)."""
    is_single: Mask
    """Whether a patient has one image only, shape (P,)."""


def view_class(  # noqa: PLR0917
    told: ToldPart,
    label: int,
    labels: Ints,
    groups: Mapping[str, Sequence[str]],
    answers: Array,
    patients: Ints,
    counted: Mapping[str, Mask],
    *,
    is_folded: bool,
) -> ReaderView:
    """Return how a reader may take a class to be.

    Parameters
    ----------
    told : ToldPart
        What would be told.
    label : int
        The class.
    labels : ndarray of int64, shape (N,)
        True classes.
    groups : mapping of str to sequence of str
        Attribute to the group of each image.
    answers : ndarray of int64, shape (N,M)
        What each of M models takes the images for.
    patients : ndarray of int64, shape (N,)
        Number of each image's patient.
    counted : mapping of str to ndarray of bool, each of shape (N,)
        Attribute to the images that its rows count, of those that the site's row counts.
    is_folded : bool
        Whether wrong answers are told together in all groups.
    """
    inside = np.flatnonzero((labels == label) & counted[SITE_ATTRIBUTE])
    seen = answers[inside]
    if is_folded:
        # The site's own rows are told class by class, but no exchange changes them.
        seen = (seen == label).astype(np.int64)
    _, kind_N = np.unique(seen, axis=0, return_inverse=True)
    own, of_patient_N = np.unique(patients[inside], return_inverse=True)
    kinds: list[list[int]] = [[] for _ in own]
    for patient, kind in zip(of_patient_N.ravel().tolist(), kind_N.ravel().tolist(), strict=True):
        kinds[patient].append(kind)
    numbers: dict[tuple[int, ...], int] = {}
    profile_P = np.array([numbers.setdefault(tuple(sorted(kind)), len(numbers)) for kind in kinds], np.int64)
    codes = {}
    for attribute, names in told.groups.items():
        if attribute != SITE_ATTRIBUTE:
            place = {name: number for number, name in enumerate(names)}
            others = place.get(OTHERS, -1)
            code_N = np.array([place.get(groups[attribute][i], others) for i in inside.tolist()], np.int64)
            shown = np.array([Row(attribute, name, label) in told.images for name in names], np.bool_)
            # Who is left out of a row that is told is in a hidden one, to a reader.
            hidden = int(np.flatnonzero(~shown)[0]) if not shown.all() else -1
            code_N[~counted[attribute][inside] & shown[code_N]] = hidden
            first_P = np.full(len(own), -1, np.int64)
            first_P[of_patient_N.ravel()[::-1]] = code_N[::-1]
            mixed = np.unique(of_patient_N.ravel()[first_P[of_patient_N.ravel()] != code_N])
            first_P[mixed] = -1
            codes[attribute] = first_P
    return ReaderView(codes, profile_P, np.array([len(kind) == 1 for kind in kinds], np.bool_))


def keeps_values(told: ToldPart, label: int, asked: tuple[str, str], view: ReaderView, k_row: int) -> bool:
    """Return whether exchanges prove that each cell of two attributes can have all values from 0 to ``k_row`` - 1.

    Only where no row of their own crossing is told, nor one of rare classes.
    """
    partners = {
        one: [other for pair in find_crossings(told, label) if one in pair for other in pair if other != one]
        for one in asked
    }
    asked = (asked[0], asked[1]) if len(partners[asked[0]]) <= len(partners[asked[1]]) else (asked[1], asked[0])
    # The first attribute is exchanged, between patients of one group of what it is crossed with.
    alike = np.column_stack([view.profiles, *(view.codes[other] for other in partners[asked[0]])])
    _, profile_P = np.unique(alike, axis=0, return_inverse=True)
    hidden = [
        np.array([Row(attribute, name, label) not in told.images for name in told.groups[attribute]])
        for attribute in asked
    ]
    sizes = [len(of_attribute) for of_attribute in hidden]
    code_AB = [view.codes[attribute] for attribute in asked]
    num_profiles = int(profile_P.max(initial=-1)) + 1
    whole = (code_AB[0] >= 0) & (code_AB[1] >= 0) & (alike >= 0).all(axis=1)
    full, single = np.zeros((*sizes, num_profiles), np.int64), np.zeros((*sizes, num_profiles), np.int64)
    for counts, chosen in ((full, whole), (single, whole & view.is_single)):
        np.add.at(counts, (code_AB[0][chosen], code_AB[1][chosen], profile_P.ravel()[chosen]), 1)
    stuck = np.zeros(sizes, np.bool_)  # cells in which a patient may be who cannot be exchanged
    for first, second in zip(code_AB[0][~whole].tolist(), code_AB[1][~whole].tolist(), strict=True):
        rows = slice(None) if first < 0 else first
        stuck[rows, slice(None) if second < 0 else second] = True
    others = full.sum(axis=(0, 1)) - full.sum(axis=0) - full.sum(axis=1)[:, None] + full
    can_empty = (full <= others).all(axis=-1)
    across = np.minimum(single.sum(axis=1)[:, None] - single, single.sum(axis=0) - single).sum(axis=-1)
    # Within hidden rows a patient goes from one to the other without any counterpart.
    for axis in (0, 1):
        rows = hidden[axis]
        if rows.sum() > 1 and not partners[asked[axis]]:
            in_rows = np.expand_dims(rows, 1 - axis)
            can_empty |= in_rows
            total = single.sum(axis=-1) * in_rows
            across = np.where(in_rows, np.maximum(across, total.sum(axis=axis, keepdims=True) - total), across)
    return bool((can_empty & ~stuck & (across >= k_row - 1)).all())

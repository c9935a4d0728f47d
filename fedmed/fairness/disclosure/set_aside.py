"""Images that are left out of tables, because counting them would cost more.

There are two occasions.

* An attribute has few patients of a class in small groups, for example of unknown sex, or none. They would follow from
  the site's patients of the class and those of the other groups, so that one of these, perhaps all men, had to be held
  back. Instead a few further patients are left out of the attribute's rows, and only of these, until the patients whose
  group is not told are ``k_row``. To a reader there may be none of unknown sex or several.
* A patient withdrew after having been counted. The difference of the rows before and after would be about this patient
  alone, so that the class could not be told any more. So further images of the same rows are set aside with it: they
  are in no table. What is set aside once stays so: when it came back, it would be a difference again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Ints, Mask
from fedmed.fairness.figures.groups import CROSS, is_crossing

_TIMES = 2
MOST_SET_ASIDE = 0.1
"""Largest share of a class's images on one occasion."""


@dataclass(frozen=True)
class Disclosure:
    """What of an evaluation may leave a site. The default holds nothing back, as in a simulation."""

    k: int = 1
    """Fewest patients of a group; images, where the data has no patients' ids."""
    k_row: int = 1
    """Likewise of a true class within a group."""
    scores: bool = True
    """Whether histograms of scores may leave, or what is made of scores."""
    k_bin: int = 1
    """Fewest images of a bin of confidence."""
    group_histograms: bool = False
    """Whether a hospital tells calibration, Brier score and AUC of groups of patients as well."""

    @property
    def is_open(self) -> bool:
        """Whether nothing is held back, as in a simulation: then tables are exact."""
        return self.k <= 1 and self.k_row <= 1


@dataclass(frozen=True)
class ToldRows:
    """Which rows a site has told so far, of one part of its data."""

    classes: Mapping[str, int] = field(default_factory=dict)
    """Class of every image in a row, by the image's id."""
    rows: frozenset[frozenset[str]] = frozenset()
    """Each row as the ids of its images."""
    set_aside: frozenset[str] = frozenset()
    """Images that are counted no more: set aside, or withdrawn after they had been counted."""
    protected: frozenset[frozenset[str]] = frozenset()
    """Groups that were too small, as the ids of their images."""
    patients: Mapping[str, str] = field(default_factory=dict)
    """Patient of every image in a row; an image that is not in it is a patient by itself."""


@dataclass(frozen=True, eq=False)
class Images:
    """One part of a site's data, for :func:`fedmed.fairness.disclosure.rows.plan_disclosure`."""

    labels: Ints
    """True classes."""
    items: tuple[str, ...]
    places: Mapping[str, int]
    """Item to its place."""
    names: Mapping[str, Sequence[str]]
    """Attribute to the names of its groups, sorted."""
    codes: Mapping[str, Ints]
    """Attribute to the number of each image's group in ``names``."""
    disclosure: Disclosure
    open: Mask
    """Images that are not set aside; changed in place."""
    shown: dict[str, Mask]
    """Attribute to the images that may be in its rows; changed in place."""
    patients: tuple[str, ...]
    """Id of each image's patient."""
    patient_codes: Ints
    """A number of each image's patient."""

    @classmethod
    def index(  # noqa: PLR0917
        cls,
        y_N: Ints,
        groups: Mapping[str, Sequence[str]],
        items: Sequence[str],
        disclosure: Disclosure,
        earlier: ToldRows,
        patients: Sequence[str] | None = None,
    ) -> "Images":
        """Return images with numbered groups, of which those are set aside that were before."""
        names, codes = {}, {}
        for attribute, of_images in groups.items():
            found, code_N = np.unique(np.array(of_images, dtype=str), return_inverse=True)
            names[attribute], codes[attribute] = found.tolist(), code_N.astype(np.int64)
        places = {item: place for place, item in enumerate(items)}
        open_N = np.array([item not in earlier.set_aside for item in items], dtype=np.bool_)
        shown = {name: np.ones(len(y_N), np.bool_) for name in codes}
        of_items = tuple(items if patients is None else patients)
        patient_N = np.unique(np.array(of_items, dtype=str), return_inverse=True)[1].reshape(-1).astype(np.int64)
        return cls(y_N, tuple(items), places, names, codes, disclosure, open_N, shown, of_items, patient_N)

    def count_patients(self, key_N: Ints, inside_N: Mask, num_keys: int | None = None) -> Ints:
        """Return how many patients have images inside, by the images' key, shape (num_keys,)."""
        pairs = np.unique(np.column_stack([key_N[inside_N], self.patient_codes[inside_N]]), axis=0)
        length = int(key_N.max(initial=0)) + 1 if num_keys is None else num_keys
        return np.bincount(pairs[:, 0], minlength=length).astype(np.int64)

    def key_rows(self, attribute: str) -> Ints:
        """Return a number of each image's row, shape (N,)."""
        key_N: Ints = self.codes[attribute] * (int(self.labels.max(initial=0)) + 1) + self.labels
        return key_N

    def find_small_groups(self, attribute: str) -> frozenset[int]:
        """Return the groups with fewer than ``k`` patients."""
        sizes = self.count_patients(self.codes[attribute], self.find_open(attribute), len(self.names[attribute]))
        return frozenset(np.flatnonzero(sizes < self.disclosure.k).tolist())

    def find_open(self, attribute: str) -> Mask:
        """Return the images that may be in an attribute's rows, shape (N,)."""
        open_N: Mask = self.open & self.shown[attribute]
        return open_N


def set_aside_beside(images: Images, earlier: ToldRows) -> frozenset[str]:
    """Set images aside beside those that were counted and are gone; return the latter."""
    gone = frozenset(item for item in earlier.classes if item not in images.places) - earlier.set_aside
    for label in sorted({earlier.classes[item] for item in gone}):
        _complete_differences(images, earlier, {item for item in gone if earlier.classes[item] == label}, label)
    return gone


def _complete_differences(images: Images, earlier: ToldRows, missing: set[str], label: int) -> None:
    """Set images of a class aside until the rows differ from before by enough of them, as far as they may be few.

    Images of the same rows as those that are missing come first. What cannot be completed is held back later.
    """
    k_row = images.disclosure.k_row
    rows = sorted((row for row in earlier.rows if row & missing), key=lambda row: (-len(row), sorted(row)))
    alike_N = np.zeros(len(images.labels), np.int64)
    for row in rows:
        alike_N[[images.places[item] for item in row if item in images.places]] += 1
    most = max(k_row - 1, int(MOST_SET_ASIDE * (images.open & (images.labels == label)).sum()))
    patient_of = {**dict(zip(images.items, images.patients, strict=True)), **earlier.patients}
    for row in rows:
        lacking = k_row - len({patient_of.get(item, item) for item in row & missing})
        inside = [images.places[item] for item in row if item in images.places]
        inside = [place for place in inside if images.open[place] and images.labels[place] == label]
        inside.sort(key=lambda place: (-alike_N[place], images.items[place]))
        known = {patient_of.get(item, item) for item in row & missing}
        others = [name for name in dict.fromkeys(images.patients[place] for place in inside) if name not in known]
        patients = set(others[: max(lacking, 0)])
        chosen = [place for place in inside if images.patients[place] in patients]
        if 0 < lacking <= len(patients) and len(chosen) <= most:
            images.open[chosen] = False
            missing |= {images.items[place] for place in chosen}
            most -= len(chosen)


def conceal_groups(images: Images) -> None:
    """Leave further patients of a class out of an attribute's rows where few are left beside these; changes ``shown``.

    They are the same for all attributes as far as possible, or right answers would tell those of one attribute from
    those of another. Their order is known to the site only and stays. Rows keep ``k_row`` patients; where they cannot,
    nothing is done, and rows are held back later.
    """
    singles = [name for name in images.codes if name != SITE_ATTRIBUTE and not is_crossing(name)]
    for label in np.unique(images.labels[images.open]).tolist():
        _conceal(images, singles, label)
    for attribute in set(images.codes) - {SITE_ATTRIBUTE, *singles}:
        for part in attribute.split(CROSS):
            if part in singles:  # an attribute's rows are sums of a crossing's
                images.shown[attribute] &= images.shown[part]


def _conceal(images: Images, attributes: Sequence[str], label: int) -> None:
    """Choose patients of a class."""
    of_class_N = images.open & (images.labels == label)
    lacking = {attribute: _count_lacking(images, attribute, of_class_N) for attribute in attributes}
    lacking = {attribute: number for attribute, number in lacking.items() if number > 0}
    rooms = {
        attribute: images.count_patients(images.codes[attribute], of_class_N, len(images.names[attribute]))
        - images.disclosure.k_row
        for attribute in lacking
    }
    places: dict[str, list[int]] = {}
    for place in np.flatnonzero(of_class_N).tolist():
        places.setdefault(images.patients[place], []).append(place)

    def find_room(patient: str, attribute: str) -> int:
        return min(int(rooms[attribute][images.codes[attribute][place]]) for place in places[patient])

    while lacking:
        free = {patient: sum(find_room(patient, attribute) > 0 for attribute in lacking) for patient in places}
        chosen = min(places, key=lambda patient: (-free[patient], _shuffle(patient)), default=None)
        if chosen is None or not free[chosen]:
            break
        for attribute in [name for name in lacking if find_room(chosen, name) > 0]:
            images.shown[attribute][places[chosen]] = False
            for group in np.unique(images.codes[attribute][places[chosen]]).tolist():
                rooms[attribute][group] -= 1
            lacking[attribute] -= 1
        lacking = {attribute: number for attribute, number in lacking.items() if number > 0}
        del places[chosen]


def _count_lacking(images: Images, attribute: str, of_class_N: Mask) -> int:
    """Return how many patients must be left out of an attribute's rows of a class."""
    codes, names, k_row = images.codes[attribute], images.names[attribute], images.disclosure.k_row
    sizes = images.count_patients(codes, of_class_N, len(names))
    small = np.isin(np.arange(len(names)), list(images.find_small_groups(attribute)))
    large = ~small & (sizes >= k_row)
    if large.all() or not large.any():
        return 0
    # Those of groups that are too small as a whole do not count, since nothing may follow about them alone.
    beside_N = of_class_N & ~np.isin(codes, np.flatnonzero(large | small))
    few, room = len(np.unique(images.patient_codes[beside_N])), int((sizes[large] - k_row).sum())
    if not 0 < k_row - few <= room:
        return 0
    # Twice as many as needed, or right answers would tell; of a small class, what it has. As many in all, whatever is
    # of small groups: who knows this rule would else subtract.
    return min(max(_TIMES * k_row - few - int(sizes[small].sum()), k_row - few), room)


def _shuffle(patient: str) -> bytes:
    return hashlib.blake2b(patient.encode(errors="surrogateescape"), digest_size=16, person=b"conceal").digest()

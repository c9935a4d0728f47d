"""Images that are set aside: counted in no table, because counting them would cost more than leaving them out.

There are two occasions.

* An attribute has so few images of a class in a small group, for example of unknown sex, that they follow from the
  site's images of the class and those of the other groups. Else one of these, perhaps all men, had to be held back.
* A patient withdrew after having been counted. The difference of the rows before and after would be about this patient
  alone, so that the class could not be told any more. So further images of the same rows are left out with it.

What is set aside once stays so: when it came back, it would be a difference again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Ints, Mask
from fedmed.fairness.figures.groups import is_crossing

MOST_SET_ASIDE = 0.1
"""Largest share of a class's images on one occasion."""


@dataclass(frozen=True)
class Disclosure:
    """What of an evaluation may leave a site. The default holds nothing back, as in a simulation."""

    k: int = 1
    """Fewest images of a group."""
    k_row: int = 1
    """Fewest images of a true class within a group."""
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

    @classmethod
    def index(
        cls,
        y_N: Ints,
        groups: Mapping[str, Sequence[str]],
        items: Sequence[str],
        disclosure: Disclosure,
        earlier: ToldRows,
    ) -> "Images":
        """Return images with numbered groups, of which those are set aside that were before."""
        names, codes = {}, {}
        for attribute, of_images in groups.items():
            found, code_N = np.unique(np.array(of_images, dtype=str), return_inverse=True)
            names[attribute], codes[attribute] = found.tolist(), code_N.astype(np.int64)
        places = {item: place for place, item in enumerate(items)}
        open_N = np.array([item not in earlier.set_aside for item in items], dtype=np.bool_)
        return cls(y_N, tuple(items), places, names, codes, disclosure, open_N)

    def key_rows(self, attribute: str) -> Ints:
        """Return a number of each image's row, shape (N,)."""
        key_N: Ints = self.codes[attribute] * (int(self.labels.max(initial=0)) + 1) + self.labels
        return key_N

    def find_small_groups(self, attribute: str) -> frozenset[int]:
        """Return the groups with fewer than ``k`` images."""
        sizes = np.bincount(self.codes[attribute][self.open], minlength=len(self.names[attribute]))
        return frozenset(np.flatnonzero(sizes < self.disclosure.k).tolist())

    def find_hidden(self, attribute: str) -> Mask:
        """Return the images in rows that are too small, or in groups that are, shape (N,)."""
        small_N = np.isin(self.codes[attribute], list(self.find_small_groups(attribute)))
        key_N = self.key_rows(attribute)
        sizes = np.bincount(key_N[self.open], minlength=int(key_N.max(initial=0)) + 1)
        hidden_N: Mask = self.open & (small_N | (sizes[key_N] < self.disclosure.k_row))
        return hidden_N


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
    for row in rows:
        lacking = k_row - len(row & missing)
        inside = [images.places[item] for item in row if item in images.places]
        inside = [place for place in inside if images.open[place] and images.labels[place] == label]
        if 0 < lacking <= min(most, len(inside)):
            chosen = sorted(inside, key=lambda place: (-alike_N[place], images.items[place]))[:lacking]
            images.open[chosen] = False
            missing |= {images.items[place] for place in chosen}
            most -= lacking


def set_aside_given_away(images: Images) -> None:
    """Set images of small groups aside where the rest of their class gives them away and they are a small share."""
    singles = [name for name in images.codes if name != SITE_ATTRIBUTE and not is_crossing(name)]
    changed = True
    while changed:  # a row may fall below the threshold through another attribute
        changed = False
        for attribute in singles:
            hidden_N = images.find_hidden(attribute)
            for label in np.unique(images.labels[hidden_N]).tolist():
                of_class_N = hidden_N & (images.labels == label)
                share = of_class_N.sum() / (images.open & (images.labels == label)).sum()
                groups = np.unique(images.codes[attribute][of_class_N])
                given_away = of_class_N.sum() < images.disclosure.k_row or len(groups) == 1
                if given_away and share <= MOST_SET_ASIDE:
                    images.open[of_class_N] = False
                    changed = True

"""What has been told of one part of a site's images, as numbers about rows: what a reader begins with.

A row is a (attribute, group, true class). A row that is told comes with its number of images, where the data has
patients' ids with its number of patients, and for every model with the images that were taken for each class. All else
is hidden: rows that were held back and rows of 0 images look alike.

Letters: N images, K classes, G groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Ints, Mask
from fedmed.fairness.disclosure.rows import DisclosurePlan
from fedmed.fairness.figures.groups import is_crossing
from fedmed.fairness.reconstruction.links import Mark, find_links, join_links
from fedmed.metrics.clusters import PATIENTS, SIZES, count_clusters, number_patients
from fedmed.metrics.rounding import round_digits
from fedmed.metrics.site_tables import FEDERATED, PAIRED_MODELS
from fedmed.metrics.values import Array

ALERTS = "alerts"
"""Name of the model whose right answers are the alerts of the federated one: numerators of rows like right answers."""
Key = TypeVar("Key", "Row", "Rare")
Value = TypeVar("Value")


class Row(NamedTuple):
    """A set of images: those of a true class in a group."""

    attribute: str
    group: str
    label: int


class Rare(NamedTuple):
    """All images of a group whose classes are hidden there."""

    attribute: str
    group: str


@dataclass(frozen=True)
class Answers:
    """What one model made of the images."""

    rows: Mapping[Row, tuple[int, ...]]
    """Images taken for each of K classes, and last the wrong ones that are not told class by class."""
    rare: Mapping[Rare, int] = field(default_factory=dict)
    """Right answers."""


@dataclass(frozen=True)
class ToldPart:
    """All numbers about the same images."""

    groups: Mapping[str, tuple[str, ...]]
    """Attribute to its groups."""
    num_classes: int
    images: Mapping[Row, int]
    patients: Mapping[Row, int] = field(default_factory=dict)
    """Of the same rows; empty where the unit is the image."""
    rare: Mapping[Rare, int] = field(default_factory=dict)
    """Images."""
    models: Mapping[str, Answers] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], Mapping[Row, int]] = field(default_factory=dict)
    """Names of two models to the images on which both are right."""
    same: frozenset[tuple[Row, Row]] = frozenset()
    """Rows of different attributes that are the same images, which a reader may guess from equal figures."""

    def without(self, rows: Iterable[Row | Rare]) -> "ToldPart":
        """Return the same with some rows hidden."""
        hidden = set(rows)
        return replace(
            self,
            images=_leave_out(self.images, hidden),
            patients=_leave_out(self.patients, hidden),
            rare=_leave_out(self.rare, hidden),
            models={
                name: Answers(_leave_out(model.rows, hidden), _leave_out(model.rare, hidden))
                for name, model in self.models.items()
            },
            pairs={names: _leave_out(both, hidden) for names, both in self.pairs.items()},
            same=frozenset(pair for pair in self.same if not hidden & {*pair}),
        )

    def fold(self, rows: Iterable[Row]) -> "ToldPart":
        """Return the same with the wrong answers of some rows told together."""
        folded = set(rows)
        models = {
            name: replace(model, rows={row: _fold(row, n) if row in folded else n for row, n in model.rows.items()})
            for name, model in self.models.items()
        }
        return replace(self, models=models)

    def unpair(self, rows: Iterable[Row]) -> "ToldPart":
        """Return the same without the comparison of two models in some rows."""
        return replace(self, pairs=self._leave_out_pairs(rows, of_alerts=False))

    def silence(self, rows: Iterable[Row]) -> "ToldPart":
        """Return the same without the alerts of some rows."""
        silent: set[Row | Rare] = set(rows)
        models = {
            name: replace(model, rows=_leave_out(model.rows, silent)) if is_alerts(name) else model
            for name, model in self.models.items()
        }
        return replace(self, models=models, pairs=self._leave_out_pairs(rows, of_alerts=True))

    def _leave_out_pairs(self, rows: Iterable[Row], *, of_alerts: bool) -> dict[tuple[str, str], Mapping[Row, int]]:
        hidden: set[Row | Rare] = set(rows)
        return {
            names: _leave_out(both, hidden) if is_alerts(names[1]) == of_alerts else both
            for names, both in self.pairs.items()
        }


def is_alerts(model: str) -> bool:
    """Return whether the name of a model, with what is before it, is that of the alerts."""
    return model == ALERTS or model.endswith(f"/{ALERTS}")


def tell_alerts(row: Row, num_classes: int, number: int, alerts: int) -> tuple[int, ...]:
    """Return the alerts of a row as right answers of a model that tells all wrong ones together."""
    return (*(alerts if label == row.label else 0 for label in range(num_classes)), number - alerts)


def _fold(row: Row, answers: tuple[int, ...]) -> tuple[int, ...]:
    right = answers[row.label]
    return (*(right if label == row.label else 0 for label in range(len(answers) - 1)), sum(answers) - right)


def _leave_out(values: Mapping[Key, Value], hidden: set[Row | Rare]) -> dict[Key, Value]:
    return {key: value for key, value in values.items() if key not in hidden}


def state_plan(  # noqa: PLR0917
    plan: DisclosurePlan,
    labels: Ints,
    groups: Mapping[str, Sequence[str]],
    answers: Mapping[str, Ints],
    patients: Sequence[str] | None,
    num_classes: int,
    k_row: int,
    prefix: str = "",
    alerts: Mask | None = None,
) -> ToldPart:
    """Return what tables of a plan will tell.

    Parameters
    ----------
    plan : DisclosurePlan
        Where each image is counted.
    labels : ndarray of int64, shape (N,)
        True classes.
    groups : mapping of str to sequence of str
        Attribute to the group of each image.
    answers : mapping of str to ndarray of int64, each of shape (N,)
        What each model takes the images for.
    patients : sequence of str of length N, optional
        Id of each image's patient.
    num_classes : int
        K.
    k_row : int
        Wrong answers below it are told together.
    prefix : str
        Before the models' names.
    alerts : ndarray of bool, shape (N,), optional
        Whether the federated model raises an alert for each image.
    """
    members: dict[Row | Rare, Array] = {}
    for attribute, of_images in groups.items():
        of_attribute, names = plan.attributes[attribute], np.array(of_images, dtype=str)
        for name in np.unique(names).tolist():
            counted = of_attribute.counted & (names == name)
            for label in np.unique(labels[counted]).tolist():
                members[Row(attribute, name, label)] = np.flatnonzero(counted & (labels == label))
            if (of_attribute.rare & (names == name)).any():
                members[Rare(attribute, name)] = np.flatnonzero(of_attribute.rare & (names == name))
    rows = {row: places for row, places in members.items() if isinstance(row, Row)}
    rare = {row: places for row, places in members.items() if isinstance(row, Rare)}
    right = {name: of_model == labels for name, of_model in answers.items()}
    owners = None if patients is None else np.array(patients, dtype=str)
    people = number_patients(patients, len(labels))
    part = ToldPart(
        groups={attribute: tuple(sorted(set(of_images))) for attribute, of_images in groups.items()},
        num_classes=num_classes,
        images={row: len(places) for row, places in rows.items()},
        patients={} if owners is None else {row: len(np.unique(owners[places])) for row, places in rows.items()},
        rare={row: len(places) for row, places in rare.items()},
        models={
            prefix + name: Answers(
                {
                    row: _bin(of_model[places], row.label, num_classes, k_row, people[places])
                    for row, places in rows.items()
                },
                {row: int(right[name][places].sum()) for row, places in rare.items()},
            )
            for name, of_model in answers.items()
        },
        pairs={
            (prefix + FEDERATED, prefix + name): {
                row: int((right[FEDERATED] & right[name])[places].sum()) for row, places in rows.items()
            }
            for name in answers
            if name in PAIRED_MODELS
        },
        same=join_links(_find_same(rows), find_links(_mark_rows(rows, right, people))),
    )
    return part if alerts is None else _add_alerts(part, rows, alerts, right[FEDERATED], prefix)


def _add_alerts(part: ToldPart, rows: Mapping[Row, Array], alerts: Mask, right: Mask, prefix: str) -> ToldPart:
    """Return the same with alerts, and with the images that are right and raise one.

    The latter are not told. But where the threshold is low, an image that is taken for an alert class raises an alert
    for certain, and with two classes one follows from the other; so a reader may know them.
    """
    told = {row: tell_alerts(row, part.num_classes, len(of), int(alerts[of].sum())) for row, of in rows.items()}
    both = {row: int((alerts & right)[of].sum()) for row, of in rows.items()}
    return replace(
        part,
        models={**part.models, prefix + ALERTS: Answers(told)},
        pairs={**part.pairs, (prefix + FEDERATED, prefix + ALERTS): both},
    )


def _find_same(rows: Mapping[Row, Array]) -> frozenset[tuple[Row, Row]]:
    """Return rows of different attributes with the same members."""
    found: dict[bytes, Row] = {}
    pairs = set()
    for row, places in rows.items():
        if row.attribute != SITE_ATTRIBUTE and not is_crossing(row.attribute):
            other = found.setdefault(places.tobytes(), row)
            if other.attribute != row.attribute:
                pairs.add((other, row))
    return frozenset(pairs)


def _mark_rows(rows: Mapping[Row, Array], right: Mapping[str, Array], people: Array) -> dict[Row, Mark]:
    """Return what rows will tell, as far as a reader may take two for the same images by it."""
    marks = {}
    for row, places in rows.items():
        of_models = [
            count_clusters(np.zeros(len(places), np.int64), people[places], of_model[places], 1)[0]
            for of_model in right.values()
        ]
        sums = round_digits(np.concatenate([one[1:] for one in of_models])).tolist()
        counts = (
            len(places),
            int(of_models[0][PATIENTS]),
            *(int(of_model[places].sum()) for of_model in right.values()),
        )
        marks[row] = Mark(counts, tuple(sums), is_telling=int(of_models[0][SIZES]) != len(places))
    return marks


def _bin(answers: Array, label: int, num_classes: int, k_row: int, people: Array) -> tuple[int, ...]:
    counts, wrong = np.bincount(answers, minlength=num_classes), np.flatnonzero(np.arange(num_classes) != label)
    small = np.zeros(num_classes, np.bool_)
    small[wrong] = [len(np.unique(people[answers == answer])) < k_row for answer in wrong.tolist()]
    return (*np.where(small, 0, counts).tolist(), int(counts[small].sum()))


def combine_told(parts: Iterable[ToldPart]) -> list[ToldPart]:
    """Put together what is told about the same images; after a withdrawal, for instance, they are others.

    Parts are of the same images if they agree in all numbers that both tell.
    """
    found: list[ToldPart] = []
    for part in parts:
        for place, one in enumerate(found):
            if _agree(one.images, part.images) and _agree(one.rare, part.rare) and one.images.keys() & part.images:
                found[place] = _join(one, part)
                break
        else:
            found.append(part)
    return found


def _agree(first: Mapping[Key, int], second: Mapping[Key, int]) -> bool:
    return all(second[key] == value for key, value in first.items() if key in second)


def _join(one: ToldPart, part: ToldPart) -> ToldPart:
    names = [*one.groups, *(name for name in part.groups if name not in one.groups)]
    groups = {name: tuple(sorted({*one.groups.get(name, ()), *part.groups.get(name, ())})) for name in names}
    return ToldPart(
        groups,
        one.num_classes,
        {**one.images, **part.images},
        {**one.patients, **part.patients},
        {**one.rare, **part.rare},
        {**one.models, **part.models},
        {**one.pairs, **part.pairs},
        frozenset(pair for pair in one.same | part.same if _may_be_same(pair, one) and _may_be_same(pair, part)),
    )


def _may_be_same(pair: tuple[Row, Row], part: ToldPart) -> bool:
    """Return whether no model tells that two rows are different images after all."""
    told = [
        [
            part.images.get(row),
            *(model.rows[row][row.label] if row in model.rows else None for model in part.models.values()),
        ]
        for row in pair
    ]
    return all(a is None or b is None or a == b for a, b in zip(*told, strict=True))

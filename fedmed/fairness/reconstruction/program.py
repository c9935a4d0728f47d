"""An integer program over what was told of one class, about the numbers that a hidden row can have.

Unknown are the numbers of images in each cell, that is for each combination of groups, and of these the images that a
model takes for each class; all are integers from 0. What was told are their sums. The right and wrong answers belong to
it: if 2 of the elderly with melanoma are missed and 0 of the women, then 2 are men. Cells of all attributes at once
would be too many. Attributes hang together only through crossings that were told, so there is a table of cells for
each of these and for the two attributes that are asked about, and the tables agree in the attributes they share. Where
crossings form a ring, its attributes have one table.

Where patients are told as well, the same holds for their numbers, of which every image's is one: a patient is taken to
be in one cell only, as sex or an age at entry are. A reader may assume that; where it cannot be, patients are left out.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.figures.groups import cross_values
from fedmed.fairness.reconstruction.integers import IMAGES, PATIENTS, Cell, Program
from fedmed.fairness.reconstruction.statement import Rare, Row, ToldPart
from fedmed.fairness.reconstruction.structure import (
    MAYBE,
    find_alike,
    find_categories,
    find_crossings,
    find_same,
    is_told,
    split_crossing,
    split_tables,
)
from fedmed.metrics.site_tables import UNKNOWN
from fedmed.metrics.values import Array

MOST_CELLS = 1500
"""Of one table; of what has more nothing can be proven."""
MOST_IMAGES = 100_000
"""Of one patient."""


class TooLargeError(Exception):
    """The program would have too many cells."""


@dataclass(frozen=True)
class _Table:
    attributes: tuple[str, ...]
    cells: tuple[Cell, ...]
    quantities: Mapping[object, range]
    """Images, patients, answers (model, class) and right answers of two models (model, model), of each cell."""

    def choose(self, attributes: Sequence[str], groups: Cell) -> list[int]:
        """Return the places of the cells in some groups."""
        axes = [self.attributes.index(attribute) for attribute in attributes]
        return [
            place
            for place, cell in enumerate(self.cells)
            if all(cell[a] == g for a, g in zip(axes, groups, strict=True))
        ]

    def sum_of(self, quantity: object, places: Iterable[int]) -> list[int]:
        unknowns = self.quantities[quantity]
        return [unknowns[place] for place in places]


class ClassProgram(Program):
    """What was told of a class, about the cells of some attributes.

    Parameters
    ----------
    told : ToldPart
        All that was told.
    label : int
        True class.
    asked : sequence of str
        One attribute or two.
    with_patients : bool
        Whether patients count as well, each in one cell.

    Raises
    ------
    TooLargeError
        If there are too many cells.
    """

    def __init__(self, told: ToldPart, label: int, asked: Sequence[str], with_patients: bool) -> None:
        with_patients = with_patients and bool(told.patients)
        super().__init__((IMAGES, PATIENTS) if with_patients else (IMAGES,))
        self.told, self.label, self.asked, self.with_patients = told, label, tuple(asked), with_patients
        self._crossings = find_crossings(told, label)
        self._alike = find_alike(told, label)
        self._models = sorted(set(self._alike.values()))
        self._categories = {name: find_categories(told.models[name].rows, label) for name in self._models}
        self._pairs = [names for names in told.pairs if all(name in self._alike for name in names)]
        links = [*self._crossings, *([self.asked] if len(self.asked) > 1 else []), *find_same(told, label)]
        self._tables = [self._make_table(attributes) for attributes in split_tables(self.asked, links)]
        for table in self._tables:
            self._tell_rows(table)
        for first, second in itertools.combinations(self._tables, 2):
            self._link(first, second)
        self._constraints.layers = [
            [unknown for table in self._tables for unknown in table.quantities[unit]] for unit in reversed(self.units)
        ]
        self.axes = tuple(
            tuple(sorted(told.groups[one], key=partial(_rank_group, told, label, one))) for one in self.asked
        )
        own = next(table for table in self._tables if set(self.asked) <= set(table.attributes))
        for groups in itertools.product(*(told.groups[attribute] for attribute in self.asked)):
            if MAYBE not in groups and not is_told(told, self.asked, groups, label):
                places = own.choose(self.asked, groups)
                self.hidden[groups] = {unit: own.sum_of(unit, places) for unit in self.units}

    def spread(self, found: Array) -> dict[Cell, tuple[int, int]]:
        """Return by how much exchanges of two images that each model takes for the same make a cell less and more.

        One image in (i, j) and one in (k, l) become one in (i, l) and one in (k, j). No other number changes, as long
        as these four cells are hidden.
        """
        table = next(one for one in self._tables if set(self.asked) <= set(one.attributes))
        if (
            len(self.asked) < 2
            or set(table.attributes) != set(self.asked)
            or self._is_linked()
            or (self._pairs and not self._is_coarse())
        ):
            return {}
        axes = [self.told.groups[attribute] for attribute in table.attributes]
        shape = tuple(map(len, axes))

        def read(quantity: object) -> Array:
            numbers: Array = found[list(table.quantities[quantity])].astype(np.int64).reshape(shape)
            return numbers

        def meet(numbers: Array) -> Array:
            both: Array = np.minimum(numbers[:, :, None, None], numbers[None, None])
            return both

        alike = meet(read(IMAGES))
        for model in self._models:
            kinds = [read((model, category)) for category in self._categories[model]]
            if self._is_coarse():
                kinds = [kinds[0], read(IMAGES) - kinds[0]]
            alike = np.minimum(alike, sum(map(meet, kinds)))
        if self._pairs:
            alike = np.minimum(alike, self._meet_pairs(read, meet))
        if self.with_patients:
            alike = np.minimum(alike, np.maximum(meet(read(PATIENTS)) - 1, 0))
        order = [self.asked.index(attribute) for attribute in table.attributes]
        is_hidden = np.array(
            [[(cell if order == [0, 1] else cell[::-1]) in self.hidden for cell in row] for row in _make_grid(axes)]
        )
        free = is_hidden[:, :, None, None] & is_hidden[None, None] & is_hidden[:, None, None, :]
        free &= is_hidden.T[None, :, :, None]
        free &= (
            ~np.eye(shape[0], dtype=np.bool_)[:, None, :, None] & ~np.eye(shape[1], dtype=np.bool_)[None, :, None, :]
        )
        alike = np.where(free, alike, 0)
        less, more = alike.max(axis=(2, 3)), alike.transpose(0, 3, 2, 1).max(axis=(2, 3))
        return {
            (cell if order == [0, 1] else cell[::-1]): (int(less[i, j]), int(more[i, j]))
            for i, row in enumerate(_make_grid(axes))
            for j, cell in enumerate(row)
        }

    def _meet_pairs(self, read: Callable[[object], Array], meet: Callable[[Array], Array]) -> Array:
        """Return how many images of two cells the first model of all pairs takes alike, and in each pair the second."""
        right, wrong = [], []
        for pair in self._pairs:
            first, second = (read((self._alike[name], self.label)) for name in pair)
            both = read(pair)
            right.append(meet(both) + meet(first - both))
            wrong.append(meet(second - both) + meet(read(IMAGES) - first - second + both))
        total: Array = np.minimum.reduce(right) + np.minimum.reduce(wrong)
        return total

    def _is_coarse(self) -> bool:
        """Return whether no row of a group tells wrong answers class by class."""
        return not any(
            any(n for category, n in enumerate(values[:-1]) if category != self.label)
            for model in self._models
            for row, values in self.told.models[model].rows.items()
            if row.label == self.label and row.attribute != SITE_ATTRIBUTE
        )

    def _is_linked(self) -> bool:
        """Return whether rows of the attributes are the same images as others, or their unknown values are told."""
        if any(
            row.label == self.label and row.group == UNKNOWN and self._split(row.attribute) for row in self.told.images
        ):
            return True
        return any(set(pair) & set(self.asked) for pair in find_same(self.told, self.label))

    def _make_table(self, attributes: tuple[str, ...]) -> _Table:
        sizes = [len(self.told.groups[attribute]) for attribute in attributes]
        if np.prod(sizes) > MOST_CELLS:
            raise TooLargeError(f"{' x '.join(attributes)} has {np.prod(sizes)} cells, more than {MOST_CELLS}")
        cells = tuple(itertools.product(*(self.told.groups[attribute] for attribute in attributes)))
        rules, number = self._constraints, len(cells)
        quantities: dict[object, range] = {IMAGES: rules.make(number)}
        if self.with_patients:
            quantities[PATIENTS] = rules.make(number)
        for model in self._models:
            quantities |= {(model, category): rules.make(number) for category in self._categories[model]}
        quantities |= {pair: rules.make(number) for pair in self._pairs}
        for place in range(number):
            most = self._find_most(attributes, cells[place])
            self._tie_cell({key: unknowns[place] for key, unknowns in quantities.items()}, most)
        return _Table(attributes, cells, quantities)

    def _find_most(self, attributes: tuple[str, ...], cell: Cell) -> int:
        """Return how many images one patient of a cell can have, since every other has one at least."""
        rows = [Row(attribute, group, self.label) for attribute, group in zip(attributes, cell, strict=True)]
        rows += [row for row in self.told.patients if row.attribute == SITE_ATTRIBUTE and row.label == self.label]
        told = [self.told.images[row] - self.told.patients[row] + 1 for row in rows if row in self.told.patients]
        return min(told, default=MOST_IMAGES)

    def _tie_cell(self, unknowns: Mapping[object, int], most: int) -> None:
        """Put the numbers of one cell into relation."""
        rules, images = self._constraints, unknowns[IMAGES]
        for model in self._models:
            rules.add([unknowns[model, category] for category in self._categories[model]], [images], 0, 0)
        if self.with_patients:
            rules.add([images], [unknowns[PATIENTS]], 0, np.inf)
            rules.add([images], [unknowns[PATIENTS]], -np.inf, 0, factor=float(most))
        for pair in self._pairs:
            both, (first, second) = unknowns[pair], (unknowns[self._alike[name], self.label] for name in pair)
            rules.add([first], [both], 0, np.inf)
            rules.add([second], [both], 0, np.inf)
            rules.add([images, both], [first, second], 0, np.inf)

    def _tell_rows(self, table: _Table) -> None:
        """Put what was told into relation to the cells."""
        everything = range(len(table.cells))
        for row, number in self.told.images.items():
            if row.label != self.label:
                continue
            if row.attribute == SITE_ATTRIBUTE:
                self._tell_row(table, row, number, everything)
            elif row.attribute in table.attributes:
                self._tell_row(table, row, number, table.choose([row.attribute], (row.group,)))
            elif self._split(row.attribute) is not None and set(self._split(row.attribute) or ()) <= {
                *table.attributes
            }:
                self._tell_row(table, row, number, self._find_crossed(table, row))
        for first, second in self.told.same:
            if first.label == self.label and {first.attribute, second.attribute} <= set(table.attributes):
                here, there = (set(table.choose([row.attribute], (row.group,))) for row in (first, second))
                self._constraints.add(table.sum_of(IMAGES, here ^ there), (), 0, 0)
        for rare, number in self.told.rare.items():
            if Row(rare.attribute, rare.group, self.label) in self.told.images:
                continue
            if rare.attribute == SITE_ATTRIBUTE:
                self._tell_rare(table, rare, number, everything)
            elif rare.attribute in table.attributes:
                self._tell_rare(table, rare, number, table.choose([rare.attribute], (rare.group,)))

    def _tell_row(self, table: _Table, row: Row, number: int, places: Sequence[int]) -> None:
        rules = self._constraints
        rules.add(table.sum_of(IMAGES, places), (), number, number)
        if self.with_patients and row in self.told.patients:
            rules.add(table.sum_of(PATIENTS, places), (), self.told.patients[row], self.told.patients[row])
        for model in self._models:
            of_row = self.told.models[model].rows.get(row)
            if of_row is None:
                continue
            apart = [c for c in self._categories[model] if c >= 0 and (of_row[c] or c == self.label)]
            for category in apart:
                rules.add(table.sum_of((model, category), places), (), of_row[category], of_row[category])
            others = [c for c in self._categories[model] if c not in apart]
            unknowns = [u for category in others for u in table.sum_of((model, category), places)]
            rules.add(unknowns, (), of_row[-1], of_row[-1])
        for pair in self._pairs:
            both = self.told.pairs[pair].get(row)
            if both is not None:
                rules.add(table.sum_of(pair, places), (), both, both)

    def _tell_rare(self, table: _Table, rare: Rare, number: int, places: Sequence[int]) -> None:
        """Bound a hidden row by the rare classes of its group, among which it is."""
        rules = self._constraints
        rules.add(table.sum_of(IMAGES, places), (), 0, number)
        for model in self._models:
            right = self.told.models[model].rare.get(rare)
            if right is not None:
                rules.add(table.sum_of((model, self.label), places), (), 0, right)
                wrong = [c for c in self._categories[model] if c != self.label]
                unknowns = [u for category in wrong for u in table.sum_of((model, category), places)]
                rules.add(unknowns, (), 0, number - right)

    def _find_crossed(self, table: _Table, row: Row) -> list[int]:
        """Return the cells of a crossing's group; that of unknown values has several."""
        parts = self._split(row.attribute)
        assert parts is not None, "it is a crossing of attributes that are there"
        chosen = [
            groups
            for groups in itertools.product(*(self.told.groups[part] for part in parts))
            if cross_values(groups) == row.group
        ]
        return [place for groups in chosen for place in table.choose(parts, groups)]

    def _split(self, attribute: str) -> tuple[str, ...] | None:
        return split_crossing(self.told, attribute)

    def _link(self, first: _Table, second: _Table) -> None:
        for attribute in set(first.attributes) & set(second.attributes):
            for group in self.told.groups[attribute]:
                here, there = first.choose([attribute], (group,)), second.choose([attribute], (group,))
                for quantity in first.quantities:
                    self._constraints.add(first.sum_of(quantity, here), second.sum_of(quantity, there), 0, 0)


def _make_grid(axes: Sequence[Sequence[str]]) -> list[list[Cell]]:
    return [[(first, second) for second in axes[1]] for first in axes[0]]


def _rank_group(told: ToldPart, label: int, attribute: str, group: str) -> int:
    return -told.images.get(Row(attribute, group, label), 0)

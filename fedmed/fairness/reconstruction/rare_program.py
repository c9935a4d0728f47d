"""An integer program over all classes of one attribute, about what the rows of rare classes give away.

Unknown are images and right answers of each (group, class). The row "rare classes" of a group is their sum over the
classes that are hidden there, and a class's row of the site their sum over the groups.
"""

import itertools
from collections.abc import Iterable

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.reconstruction.integers import IMAGES, Program
from fedmed.fairness.reconstruction.statement import Rare, Row, ToldPart
from fedmed.fairness.reconstruction.structure import MAYBE


class RareProgram(Program):
    """The hidden rows of an attribute; their cells are a group and the number of a class.

    Parameters
    ----------
    told : ToldPart
        All that was told.
    attribute : str
        The site itself, or an attribute that is no crossing.
    """

    def __init__(self, told: ToldPart, attribute: str) -> None:
        super().__init__()
        self._told, self._attribute = told, attribute
        groups, classes = told.groups[attribute], range(told.num_classes)
        self._models = list(told.models)
        self.axes = (tuple(groups), tuple(map(str, classes)))
        self._unknowns = {
            (group, label): (self._constraints.make(1)[0], self._constraints.make(len(self._models)))
            for group, label in itertools.product(groups, classes)
        }
        for images, right in self._unknowns.values():
            for of_model in right:
                self._constraints.add([images], [of_model], 0, np.inf)
        for label in classes:
            for group in groups:
                row = Row(attribute, group, label)
                if row in told.images:
                    self._tell([(group, label)], row, label)
                elif group != MAYBE:
                    self.hidden[group, str(label)] = {IMAGES: [self._unknowns[group, label][0]]}
            for site in told.groups.get(SITE_ATTRIBUTE, ()):
                if attribute != SITE_ATTRIBUTE and Row(SITE_ATTRIBUTE, site, label) in told.images:
                    self._tell([(group, label) for group in groups], Row(SITE_ATTRIBUTE, site, label), label)
        for rare in told.rare:
            if rare.attribute in (attribute, SITE_ATTRIBUTE):
                self._tell_rare(rare)

    def _tell(self, cells: Iterable[tuple[str, int]], row: Row, label: int) -> None:
        chosen = [self._unknowns[cell] for cell in cells]
        number = self._told.images[row]
        self._constraints.add([images for images, _ in chosen], (), number, number)
        for place, model in enumerate(self._models):
            of_row = self._told.models[model].rows.get(row)
            if of_row is not None:
                self._constraints.add([right[place] for _, right in chosen], (), of_row[label], of_row[label])

    def _tell_rare(self, rare: Rare) -> None:
        told, own = self._told, rare.attribute == self._attribute
        labels = [y for y in range(told.num_classes) if Row(rare.attribute, rare.group, y) not in told.images]
        groups = [rare.group] if own else told.groups[self._attribute]
        chosen = [self._unknowns[cell] for cell in itertools.product(groups, labels)]
        self._constraints.add([images for images, _ in chosen], (), told.rare[rare], told.rare[rare])
        for place, model in enumerate(self._models):
            right = told.models[model].rare.get(rare)
            if right is not None:
                self._constraints.add([of_models[place] for _, of_models in chosen], (), right, right)

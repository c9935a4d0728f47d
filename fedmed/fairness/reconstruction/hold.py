"""Rows that are held back because integers and right answers would give hidden ones away.

The rule of :mod:`fedmed.fairness.disclosure.rows` sees weighted sums only. But numbers of images are integers from 0,
and each model's right and wrong answers are as well. So once the models have answered, the site asks the integer
programs of :mod:`fedmed.fairness.reconstruction.exposure` what its tables would give away. As long as a hidden row
does not keep all values 0 to ``k_row`` - 1, and has not ``k_row`` patients for certain, less is told of the class: no
rows of crossings, then the wrong answers of its groups together instead of class by class and no comparison of
models image by image in its groups, then fewer rows of single attributes, the smaller ones first, and the
site's own at the very last. Of each class, crossings are told that have no attribute in
common, so that they say nothing together. Rows of rare classes come last, if they give nothing away.
Alerts of groups are told where they cost none of these rows, and never those of crossings.
"""

import time
from collections.abc import Callable, Sequence

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.reconstruction.bounds import find_bounded
from fedmed.fairness.reconstruction.exchange import ReaderView, keeps_values
from fedmed.fairness.reconstruction.exposure import (
    Exposed,
    Question,
    find_exposed,
    is_plain,
    is_safe_single,
    list_questions,
)
from fedmed.fairness.reconstruction.held import Held
from fedmed.fairness.reconstruction.statement import Rare, Row, ToldPart, combine_told, is_alerts
from fedmed.fairness.reconstruction.structure import is_named, merge_hidden, split_crossing

MOST_SECONDS = 20.0
"""For all classes of a site; what is not proven by then is held back, a class's rows of groups before its own."""
MOST_MODELS = 5
"""Of which rows of groups are told on the same images; of later ones, as in many rounds, the site's own rows only."""
OPTIONAL_SECONDS = 5.0
"""For the question whether rows of crossings and rare classes may be told; likewise."""


Viewer = Callable[[ToldPart, int, bool], ReaderView]
"""Gives a view of a class, of what is told and whether wrong answers are told together."""


def find_held(
    now: ToldPart,
    earlier: Sequence[ToldPart],
    k_row: int,
    viewer: Viewer | None = None,
    seconds: float = MOST_SECONDS,
) -> Held:
    """Return what must not be told.

    Parameters
    ----------
    now : ToldPart
        What would be told.
    earlier : sequence of ToldPart
        What has been told of this part before; it cannot be held back any more, but what models of now say of it.
    k_row : int
        The threshold.
    viewer : callable, optional
        The site's view of its own images, which saves most integer programs.
    seconds : float
        Time for it.
    """
    holding = _Holding(now, earlier, k_row, viewer, time.monotonic() + seconds)
    if holding.num_models > MOST_MODELS:
        every: set[Row | Rare] = {*now.images}
        return Held(frozenset((every | now.rare.keys()) - holding.vacuous))
    names = None
    while names != (names := holding.list_names()):
        for label in range(now.num_classes):
            holding.hold_class(label, num_left=now.num_classes - label)
    holding.grant(0.5 * seconds)
    for label in range(now.num_classes):
        holding.add_alerts(label)
    for label in range(now.num_classes):
        holding.add_crossings(label)
    holding.add_rare()
    return holding.held


class _Holding:
    """What is held back so far."""

    def __init__(
        self, now: ToldPart, earlier: Sequence[ToldPart], k_row: int, viewer: Viewer | None, deadline: float
    ) -> None:
        self._now, self._earlier, self._k_row, self._last = now, earlier, k_row, deadline
        self._deadline = deadline
        self._viewer = viewer if not earlier else None  # it knows the models of now only
        crossed = {row.attribute for row in now.images if split_crossing(now, row.attribute) is not None}
        sizes = {name: sum(n for row, n in now.images.items() if row.attribute == name) for name in crossed}
        self._crossings = sorted(crossed, key=lambda name: (-sizes[name], name))
        self.rows: set[Row | Rare] = {row for row in now.images if row.attribute in crossed}
        self.rows |= set(now.rare)
        self.folded: set[Row] = set()
        self.unpaired: set[Row] = set()
        has_alerts = any(map(is_alerts, now.models))
        # Of groups none at first, so that alerts cost no row.
        self.silent = {row for row in now.images if has_alerts and row.attribute != SITE_ATTRIBUTE}
        self._end: float | None = None
        before = combine_told([now, *earlier])[0]
        self.num_models = sum(not is_alerts(name) for name in before.models)
        known = {(row, number) for part in earlier for row, number in part.images.items()}
        self.vacuous = {
            row for row, number in now.images.items() if row.attribute == SITE_ATTRIBUTE and (row, number) in known
        }
        """Rows of the site that were told before: how often a further model is right in all says nothing of groups."""

    def list_names(self) -> frozenset[tuple[str, str]]:
        """Return the groups that tables name; where one has lost its last row, all classes are looked at again."""
        return frozenset(
            (row.attribute, row.group) for row in self._now.images.keys() - self.rows if row.attribute != SITE_ATTRIBUTE
        )

    @property
    def held(self) -> Held:
        """What is held back now."""
        few = (frozenset(rows) for rows in (self.folded, self.unpaired, self.silent))
        return Held(frozenset(self.rows), *few)

    def grant(self, seconds: float) -> None:
        """Give time from now on."""
        self._deadline = time.monotonic() + seconds

    def hold_class(self, label: int, num_left: int) -> None:
        """Hold rows of a class back until no hidden one gives too much away.

        Parameters
        ----------
        label : int
            The class.
        num_left : int
            Classes that share the time that is left, this one among them.
        """
        self.grant(max(0.0, self._last - time.monotonic()) * max(0.5, 1 / num_left))
        singles = [row for row in self._now.images if row.label == label and row not in self.rows]
        of_groups = [row for row in singles if row.attribute != SITE_ATTRIBUTE]
        safe: set[Question] = set()
        if self._find_doubtful(label, set()) is not None:
            self.folded |= set(of_groups)
            self.unpaired |= set(of_groups) if self._now.pairs else set()
        self._hold_bounded(label)
        while (exposed := self._find_exposed(label, safe)) is not None:
            rows = [row for row in singles if row not in self.rows]
            # Those of the cell itself first, which need not be the smallest ones of their attributes.
            own = [
                row
                for row in rows
                if (row.attribute, row.group) in zip(exposed.attributes, exposed.groups, strict=False)
            ]
            left = own or [row for row in rows if row.attribute in exposed.attributes] or rows
            if {*left} <= self.vacuous:
                return
            if not exposed.is_proven and exposed.attributes != (SITE_ATTRIBUTE,):
                left = self._choose_attribute(rows, exposed) or left
                self.rows |= {*left}
                safe = {one for one in safe if left[0].attribute not in one[0]}
                continue
            # The site's own row at the very last.
            row = min(left, key=lambda row: (row.attribute == SITE_ATTRIBUTE, self._now.images[row], row))
            self.rows.add(row)
            safe = {one for one in safe if row.attribute not in one[0] and row.attribute != SITE_ATTRIBUTE}

    def _choose_attribute(self, rows: Sequence[Row], exposed: Exposed) -> list[Row]:
        """Return all rows of the attribute with fewest images; rows of a single one need no program."""
        of_attributes = [[row for row in rows if row.attribute == attribute] for attribute in exposed.attributes]
        return min(filter(None, of_attributes), key=lambda own: sum(self._now.images[row] for row in own), default=[])

    def _hold_bounded(self, label: int) -> None:
        """Hold rows of a class back as long as two groups alone say too much of each other."""
        pairs = [
            question[0] for question in list_questions(self._tell()) if question[1] == label and len(question[0]) > 1
        ]
        found = True
        while found:
            found = False
            for asked in pairs:
                told = self._tell()
                cell = find_bounded(told, label, asked, self._k_row)
                rows = [Row(name, group, label) for name, group in zip(asked, cell or (), strict=False)]
                rows = [row for row in rows if row in told.images] or [
                    row for row in told.images if row.label == label and row.attribute in asked
                ]
                rows = [row for row in rows if row in self._now.images and row not in self.rows]
                if cell is not None and rows:
                    self.rows.add(min(rows, key=lambda row: (told.images[row], row)))
                    found = True

    def add_alerts(self, label: int) -> None:
        """Tell alerts of a class by group, as far as they give nothing away: of all attributes, or of single ones."""
        rows = {row for row in self.silent - self.rows if row.label == label and row.attribute not in self._crossings}
        single = [{row for row in rows if row.attribute == name} for name in sorted({row.attribute for row in rows})]
        for chosen in (rows, *(single if len(single) > 1 else ())):
            told = chosen & self.silent
            self.silent -= told
            if told and (self._is_late() or self._find_exposed(label, set()) is not None):
                self.silent |= told

    def add_crossings(self, label: int) -> None:
        """Tell rows of crossings of a class, as far as they give nothing away."""
        taken: set[str] = set()
        for name in self._crossings:
            parts = set(split_crossing(self._now, name) or ())
            told = self._tell()
            rows = {
                row for row in self._now.images if row.attribute == name and row.label == label and is_named(told, row)
            }
            if not rows or parts & taken:
                continue
            before, unpaired = set(self.folded), set(self.unpaired)
            self.rows -= rows
            for few in (self.folded, self.unpaired):
                if any(row.label == label for row in few):
                    few.update(rows)
            safe = {one for one in list_questions(self._tell()) if not set(one[0]) & parts}
            if not self._is_late() and self._find_exposed(label, safe) is None:
                taken |= parts
            else:
                self.rows |= rows
                self.folded, self.unpaired = before, unpaired

    def add_rare(self) -> None:
        """Tell rows of rare classes of an attribute, as far as they give nothing away."""
        for attribute in self._now.groups:
            rows = {
                row for row in self._now.rare if row.attribute == attribute and row.attribute not in self._crossings
            }
            if not rows or self._is_late() or any(self._is_incomplete(row) for row in rows):
                continue
            self.rows -= rows
            told = self._tell()
            questions = [
                one
                for one in list_questions(told)
                if one[1] is None or attribute in one[0] or attribute == SITE_ATTRIBUTE
            ]
            if any(find_exposed(told, one, self._k_row, self._deadline, first=True) for one in questions):
                self.rows |= rows

    def _is_late(self) -> bool:
        """Return whether the time for what may be left out is over; it counts from the first of it."""
        self._end = self._end or time.monotonic() + OPTIONAL_SECONDS
        return time.monotonic() > self._end

    def _is_incomplete(self, rare: Rare) -> bool:
        """Return whether rows of the group are hidden that its row of rare classes does not hold."""
        return any(
            row.attribute == rare.attribute and row.group == rare.group for row in self.rows if isinstance(row, Row)
        )

    def _tell(self) -> ToldPart:
        return merge_hidden(combine_told([self.held.cut(self._now), *self._earlier])[0])

    def _find_exposed(self, label: int, safe: set[Question]) -> Exposed | None:
        """Return a hidden row that gives too much away; adds to ``safe`` questions that do not."""
        while (question := self._find_doubtful(label, safe)) is not None:
            found = find_exposed(self._tell(), question, self._k_row, self._deadline, first=True)
            if found:
                return found[0]
            safe.add(question)
        return None

    def _find_doubtful(self, label: int, safe: set[Question]) -> Question | None:
        """Return a question that exchanges of patients do not settle; adds to ``safe`` those that they do."""
        told, view = self._tell(), None
        for question in list_questions(told):
            if question[1] != label or question in safe:
                continue
            if len(question[0]) == 1:
                if not is_safe_single(told, question, self._k_row):
                    return question
            elif self._viewer is None or not is_plain(told, question):
                return question
            else:
                view = view or self._viewer(told, label, any(row.label == label for row in self.folded))
                if not keeps_values(told, label, (question[0][0], question[0][1]), view, self._k_row):
                    return question
            safe.add(question)
        return None

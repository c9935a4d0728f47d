"""Which hidden rows give away more than they may: those that lack one of the values 0 to k_row - 1.

A hidden row that has ``k_row`` patients for certain gives nobody away, though. "Not proven" is no proof.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.reconstruction.integers import Cell, Hidden, Program
from fedmed.fairness.reconstruction.program import ClassProgram, TooLargeError
from fedmed.fairness.reconstruction.rare_program import RareProgram
from fedmed.fairness.reconstruction.statement import Row, ToldPart
from fedmed.fairness.reconstruction.structure import MAYBE, find_crossings, find_same, split_crossing

_SECONDS = 5.0
"""For one integer program."""
_SPARED = 2

Question = tuple[tuple[str, ...], int | None]
"""Attributes whose hidden cells are looked at, and the class; None for the rare classes of an attribute."""


@dataclass(frozen=True)
class Exposed:
    """A hidden row that does not keep all values that it needs."""

    attributes: tuple[str, ...]
    groups: tuple[str, ...]
    label: int
    missing: tuple[int, ...]
    """Values from 0 to ``k_row`` - 1 that it cannot have."""
    low: int | None
    """The smallest number of patients, or images, that it may have; None where this is not known."""
    high: int | None
    is_proven: bool = True
    """False where the time, or what can be computed, was not enough; then it may be all right."""


def list_questions(told: ToldPart) -> list[Question]:
    """Return what must be looked at so that each hidden row is; what is safe anyhow is left out."""
    singles = [name for name in told.groups if name != SITE_ATTRIBUTE and split_crossing(told, name) is None]
    rare = {row.attribute for row in told.rare}
    found: list[Question] = []
    found += [((name,), None) for name in told.groups if name in rare or (SITE_ATTRIBUTE in rare and name in singles)]
    for label in range(told.num_classes):
        shown = {row.attribute for row in told.images if row.label == label}
        crossed = {part for parts in find_crossings(told, label) for part in parts}
        found += [((name,), label) for name in singles if name in shown | crossed | rare]
        # Of two attributes of which one tells nothing, its groups may share any row of the other between them.
        found += [
            (pair, label)
            for pair in itertools.combinations(singles, 2)
            if shown and all(name in shown | crossed | rare for name in pair)
        ]
    return found


def is_plain(told: ToldPart, question: Question) -> bool:
    """Return whether neither rare classes nor the crossing of what is asked about bear on a question."""
    attributes, label = question
    if label is None or any(row.attribute in (*attributes, SITE_ATTRIBUTE) for row in told.rare):
        return False
    if any(set(attributes) & set(pair) for pair in find_same(told, label)):
        return False
    return not any(set(attributes) <= set(parts) for parts in find_crossings(told, label))


def is_safe_single(told: ToldPart, question: Question, k_row: int) -> bool | None:
    """Return whether hidden rows of one attribute are safe, where that can be seen; None where not."""
    (attribute,), label = question[0], question[1]
    if label is None or not is_plain(told, question):
        return None
    if any(attribute in parts for parts in find_crossings(told, label)):
        return None
    sites = [row for row in told.images if row.attribute == SITE_ATTRIBUTE and row.label == label]
    hidden = [name for name in told.groups[attribute] if Row(attribute, name, label) not in told.images]
    if not sites or not hidden:
        return True
    few = [told.images] + ([told.patients] if told.patients else [])
    left = min(
        sum(numbers[row] for row in sites)
        - sum(n for row, n in numbers.items() if row.attribute == attribute and row.label == label)
        for numbers in few
    )
    # However many hidden groups there are: a reader may know that there is one only.
    return left >= k_row or None


def count_hidden(told: ToldPart) -> int:
    """Return the number of hidden rows, of single attributes and of every two of them."""
    singles = [name for name in told.groups if name != SITE_ATTRIBUTE and split_crossing(told, name) is None]
    sizes = [len({*told.groups[name]} - {MAYBE}) for name in singles]
    cells = sum(sizes) + sum(a * b for a, b in itertools.combinations(sizes, 2)) + len(told.groups[SITE_ATTRIBUTE])
    crossed = {name for name in told.groups if (parts := split_crossing(told, name)) is not None and len(parts) == 2}
    shown = sum(row.attribute in {*singles, *crossed, SITE_ATTRIBUTE} for row in told.images)
    return cells * told.num_classes - shown


def find_exposed(
    told: ToldPart, question: Question, k_row: int, deadline: float, *, first: bool = False
) -> list[Exposed]:
    """Return the hidden rows of a question that give too much away.

    Parameters
    ----------
    told : ToldPart
        All that was told of the same images.
    question : Question
        One of :func:`list_questions`.
    k_row : int
        The threshold.
    deadline : float
        When to end, as ``time.monotonic`` counts.
    first : bool
        Whether one of them is enough.
    """
    attributes, label = question
    if len(attributes) == 1 and is_safe_single(told, question, k_row):
        return []
    try:
        programs: Iterator[Program]
        if label is None:
            programs = iter([RareProgram(told, attributes[0])])
        else:
            programs = (ClassProgram(told, label, attributes, patients) for patients in (True, False))
        for program in programs:
            if not program.hidden:
                return []
            if program.solve(_left(deadline)) is not False:
                found = _look(program, k_row, deadline)
                return [_describe(question, *one) for one in (itertools.islice(found, 1) if first else found)]
    except TooLargeError:
        pass
    return [Exposed(attributes, (), -1 if label is None else label, (), None, None, is_proven=False)]


def _describe(
    question: Question, cell: Cell, missing: tuple[int, ...], bounds: tuple[int | None, int | None, bool]
) -> Exposed:
    attributes, label = question
    groups = cell if label is not None else cell[:1]
    return Exposed(attributes, groups, int(cell[1]) if label is None else label, missing, *bounds)


def _look(
    program: Program, k_row: int, deadline: float
) -> Iterator[tuple[Cell, tuple[int, ...], tuple[int | None, int | None, bool]]]:
    """Yield cells that lack values."""
    unit = program.units[-1]  # of a row that has 5 images of one patient it is the patient who counts
    lacking = {(cell, unit): set(range(k_row)) for cell in program.hidden}
    _meet_together(program, lacking, deadline)
    for cell in program.hidden:
        if not lacking[cell, unit] or program.has_at_least(cell, unit, k_row, _left(deadline)):
            continue
        missing, is_proven = _meet_one(program, lacking, cell, unit, deadline)
        if missing:
            low, high = (program.find_least(cell, unit, _left(deadline), sign) for sign in (1, -1))
            if not is_proven or low is None or low < k_row:
                yield cell, missing, (low, high, is_proven)


def _meet_together(program: Program, lacking: dict[Hidden, set[int]], deadline: float) -> None:
    """Strike out values that hidden numbers have, of many at once.

    All but those of one group of each attribute shall be small at the same time, and these make up for it.
    """
    turns = itertools.count()
    for groups in itertools.product(*(axis[:_SPARED] for axis in program.axes)):
        fruitless = 0
        while fruitless < _SPARED and _left(deadline) > 0:
            turn, wanted = next(turns), {}
            for place, (key, values) in enumerate(lacking.items()):
                if values and not any(group == spared for group, spared in zip(key[0], groups, strict=True)):
                    ordered = sorted(values)
                    wanted[key] = ordered[(place + turn) % len(ordered)]
            if not wanted:
                break
            found = program.solve(_left(deadline), most=wanted)
            fruitless = 0 if found and _strike(lacking, found) else fruitless + 1


def _meet_one(
    program: Program, lacking: dict[Hidden, set[int]], cell: Cell, unit: str, deadline: float
) -> tuple[tuple[int, ...], bool]:
    """Return the values that one hidden number cannot have, and whether that is proven."""
    missing, is_proven = [], True
    for value in sorted(lacking[cell, unit]):
        if value in lacking[cell, unit]:
            found = program.solve(_left(deadline), fixed={(cell, unit): value})
            if found:
                _strike(lacking, found)
            else:
                missing.append(value)
                is_proven = is_proven and found is False
    return tuple(missing), is_proven


def _strike(lacking: dict[Hidden, set[int]], found: dict[Hidden, range]) -> bool:
    struck = [key for key, values in found.items() if lacking.get(key, set()) & {*values}]
    for key in struck:
        lacking[key] -= {*found[key]}
    return bool(struck)


def _left(deadline: float) -> float:
    return min(_SECONDS, deadline - time.monotonic())

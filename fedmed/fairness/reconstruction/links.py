"""Rows of different attributes that a reader may take for the same images, since all that is told of them agrees.

The same numbers of images, patients and answers of every model may be chance. Sums that depend on which images they are
are hardly equal by chance: how right answers vary between patients, areas under the ROC curve, the Brier score. They
are told with three digits, so that sums are also taken for equal which differ by one in the last of them.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.figures.groups import is_crossing
from fedmed.metrics.rounding import DIGITS

if TYPE_CHECKING:
    from fedmed.fairness.reconstruction.statement import Row


@dataclass(frozen=True)
class Mark:
    """What is told of a row."""

    counts: tuple[object, ...]
    """Whole numbers, which must be equal."""
    sums: tuple[float, ...] = ()
    """Of the row, which must be nearly equal."""
    of_group: tuple[float, ...] = ()
    """Sums of its group in all classes; of rows that are the same they may differ."""
    is_telling: bool = False
    """Whether the row's sums are more than what follows from the counts."""


def find_links(marks: Mapping["Row", Mark]) -> frozenset[tuple["Row", "Row"]]:
    """Return rows of different attributes, each in one order, that may be the same images.

    Parameters
    ----------
    marks : mapping of Row to Mark
        Rows of the site itself and of crossings are left out.
    """
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row, mark in sorted(marks.items()):
        if row.attribute != SITE_ATTRIBUTE and not is_crossing(row.attribute):
            alike.setdefault((row.label, *mark.counts), []).append(row)
    pairs = itertools.chain.from_iterable(itertools.combinations(rows, 2) for rows in alike.values())
    return frozenset(
        (first, second)
        for first, second in pairs
        if first.attribute != second.attribute and _are_same(marks[first], marks[second])
    )


def _are_same(first: Mark, second: Mark) -> bool:
    if not _are_near(first.sums, second.sums):
        return False
    group = any(value % 1 for value in first.of_group) and _are_near(first.of_group, second.of_group)
    return first.is_telling or group


def _are_near(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(abs(a - b) <= _find_unit(max(abs(a), abs(b))) for a, b in zip(first, second, strict=True))


def _find_unit(value: float) -> float:
    """Return one in the last digit of a number that is told."""
    return 10.0 ** (math.floor(math.log10(value)) + 1 - DIGITS) * 1.001 if value else 0.0


def join_links(*links: Iterable[tuple["Row", "Row"]]) -> frozenset[tuple["Row", "Row"]]:
    """Return links of several kinds, each once."""
    return frozenset((min(pair), max(pair)) for pair in itertools.chain(*links))

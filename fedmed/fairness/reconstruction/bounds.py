"""What the sums of two groups alone say of those who are in both, at once and without an integer program.

Of T images let A be in one group and B in another. At least A + B - T and at most min(A, B) are in both, and this holds
for right and wrong answers of each model separately. It finds most cells that give too much away, but not all.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Ints
from fedmed.fairness.reconstruction.statement import Row, ToldPart

Counts = list[Ints]
"""For images, patients and the answers of each model: the numbers of each kind."""


def find_bounded(told: ToldPart, label: int, asked: Sequence[str], k_row: int) -> tuple[str, str] | None:
    """Return the groups of a cell of two attributes that gives too much away; None if none is found.

    Parameters
    ----------
    told : ToldPart
        All that was told.
    label : int
        The class.
    asked : sequence of str
        Two attributes.
    k_row : int
        The threshold.
    """
    site = next((row for row in told.images if row.attribute == SITE_ATTRIBUTE and row.label == label), None)
    if site is None:
        return None
    whole = _count(told, site)
    sides = [_list_groups(told, attribute, label, whole) for attribute in asked]
    for (first, counts, is_row), (second, others, is_other_row) in itertools.product(*sides):
        low = high = None
        for own, other, of_all in zip(counts, others, whole, strict=True):
            if own is not None and other is not None and of_all is not None:
                high = min(int(np.minimum(own, other).sum()), np.inf if high is None else high)
                if is_row and is_other_row:
                    low = max(int(np.maximum(own + other - of_all, 0).sum()), low or 0)
        if (low or 0) < k_row and ((low or 0) > 0 or (high is not None and high < k_row - 1)):
            return first, second
    return None


def _count(told: ToldPart, row: Row) -> list[Ints | None]:
    counts: list[Ints | None] = [np.array([told.images[row]])]
    counts.append(np.array([told.patients[row]]) if row in told.patients else None)
    for model in told.models.values():
        answers = model.rows.get(row)
        counts.append(None if answers is None else np.array([answers[row.label], sum(answers) - answers[row.label]]))
    return counts


def _list_groups(
    told: ToldPart, attribute: str, label: int, whole: Sequence[Ints | None]
) -> list[tuple[str, list[Ints | None], bool]]:
    """Return each group with its numbers, those of hidden groups together, and whether they are its own."""
    rows = {group: Row(attribute, group, label) for group in told.groups[attribute]}
    shown = {group: _count(told, row) for group, row in rows.items() if row in told.images}
    hidden = [group for group in rows if group not in shown]
    rest: list[Ints | None] = []
    for place, of_all in enumerate(whole):
        parts = [counts[place] for counts in shown.values()]
        known = [part for part in parts if part is not None]
        rest.append(None if of_all is None or len(known) < len(parts) else of_all - sum(known, np.zeros_like(of_all)))
    return [(group, counts, True) for group, counts in shown.items()] + [
        (group, rest, len(hidden) == 1) for group in hidden
    ]

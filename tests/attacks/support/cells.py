"""What an honest but curious server works out about hidden cells of two attributes: intervals, by links of answers.

Whatever is known to be the same set of images in two tables (right answers of a round, wrong ones that were taken for
one class) links the groups of one attribute with those of the other: a cell has at least what two groups overlap for
certain, and at most the smaller of them. Links of all rounds add up, as do groups over the other attribute.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from fedmed.fairness.reconstruction.statement import Row, ToldPart

Cell = tuple[str, str, int]
Box = dict[tuple[str, str], list[int]]


def solve(told: ToldPart, a: str, b: str) -> dict[Cell, tuple[int, int]]:
    """Return the interval of images of each hidden cell of two attributes, by group, group and class."""
    found = {}
    for label in range(told.num_classes):
        own, other = ([g for g in told.groups[name] if Row(name, g, label) in told.images] for name in (a, b))
        crossed = {
            (g, h): row for g, h in product(own, other) if (row := Row(f"{a} x {b}", f"{g}, {h}", label)) in told.images
        }
        site = next((row for row in told.images if row.attribute == "site" and row.label == label), None)
        box: Box = {cell: [0, 10**9] for cell in product(own, other) if cell not in crossed}
        if site is None or not box:
            continue
        known = list(crossed.values())
        for cell in box:
            beside = (
                [row for (g, h), row in crossed.items() if g == cell[0]],
                [row for (g, h), row in crossed.items() if h == cell[1]],
            )
            rows = (site, known), (Row(a, cell[0], label), beside[0]), (Row(b, cell[1], label), beside[1])
            for parts in _list_links(told, rows):
                n, of_own, of_other = parts.T
                box[cell][0] = max(box[cell][0], int(np.maximum(0, of_own + of_other - n).sum()))
                box[cell][1] = min(box[cell][1], int(np.minimum(of_own, of_other).sum()))
        _add_up(told, label, (a, own), (b, other), box)
        found |= {(*cell, label): (low, high) for cell, (low, high) in box.items()}
    return found


def _list_links(told: ToldPart, rows: Sequence[tuple[Row, Sequence[Row]]]) -> Iterator[np.ndarray]:
    """Yield for every model what is left of three rows without told cells, shape (P,3): P disjoint kinds of answers."""
    for model in told.models.values():
        if all(one in model.rows for row, less in rows for one in (row, *less)):
            yield np.array([_split(model.rows, row, less) for row, less in rows]).T
            wrong = [_split_classes(model.rows, row, less) for row, less in rows]
            if all(one is not None for one in wrong):
                yield np.array(wrong).T
    yield np.array([[told.images[row] - sum(told.images[one] for one in less) for row, less in rows]])


def _split(answers: Mapping[Row, tuple[int, ...]], row: Row, less: Sequence[Row]) -> list[int]:
    """Return right and wrong answers of a row without some cells."""
    right = answers[row][row.label] - sum(answers[one][row.label] for one in less)
    return [right, sum(answers[row]) - sum(sum(answers[one]) for one in less) - right]


def _split_classes(answers: Mapping[Row, tuple[int, ...]], row: Row, less: Sequence[Row]) -> list[int] | None:
    """Return answers by class of a row without some cells; None where some are told together only."""
    if any(answers[one][-1] for one in (row, *less)):
        return None
    return [answers[row][c] - sum(answers[one][c] for one in less) for c in range(len(answers[row]) - 1)]


def _add_up(
    told: ToldPart, label: int, own: tuple[str, Sequence[str]], other: tuple[str, Sequence[str]], box: Box
) -> None:
    """Narrow intervals by the sum of a group over the other attribute, where all of that one's groups are told."""
    total = next(n for row, n in told.images.items() if row.attribute == "site" and row.label == label)
    crossing = f"{own[0]} x {other[0]}"
    for _, axis in product(range(20), (0, 1)):
        (name, groups), (beside_name, others) = (own, other) if axis == 0 else (other, own)
        if sum(told.images[Row(beside_name, group, label)] for group in others) != total:
            continue
        for group in groups:
            cells = [(group, g) if axis == 0 else (g, group) for g in others]
            told_cells = sum(told.images.get(Row(crossing, ", ".join(cell), label), 0) for cell in cells)
            rest = told.images[Row(name, group, label)] - told_cells
            hidden = [cell for cell in cells if cell in box]
            for cell in hidden:
                beside = [box[one] for one in hidden if one != cell]
                box[cell][0] = max(box[cell][0], rest - sum(high for _, high in beside))
                box[cell][1] = min(box[cell][1], rest - sum(low for low, _ in beside))


def count_solved(
    told: ToldPart, pair: tuple[str, str], labels: np.ndarray, groups: Mapping[str, Sequence[str]], harmless: int
) -> tuple[int, int, int]:
    """Return how many cells are hidden, how many of them are solved, and how many within one, and truly so.

    A cell that has ``harmless`` images for certain, as a told one has, is not counted. Rows of an attribute may be
    without some images, so that an interval may also be wrong.
    """
    of_a, of_b = (np.array(groups[name]) for name in pair)
    found = solve(told, *pair)
    true = {cell: int(((of_a == cell[0]) & (of_b == cell[1]) & (labels == cell[2])).sum()) for cell in found}
    right = [bounds for cell, bounds in found.items() if bounds[0] <= true[cell] <= bounds[1] and bounds[0] < harmless]
    return len(found), sum(low == high for low, high in right), sum(high - low <= 2 for low, high in right)

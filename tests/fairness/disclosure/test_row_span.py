"""Whether a further row reveals too much, against trying every small set of images."""

from itertools import combinations

import numpy as np
import pytest

from fedmed.fairness.disclosure import row_span
from fedmed.fairness.disclosure.row_span import RowSpan
from fedmed.seeding import make_rng

Rows = list[np.ndarray]


def reveals_new(rows: Rows, row: np.ndarray, weights: np.ndarray, most: int) -> bool:
    """Try every set of atoms of at most ``most`` images: without it, the row must not follow from the others."""
    old, new = np.array([np.zeros(len(row)), *rows]), np.array([np.zeros(len(row)), *rows, row])
    if np.linalg.matrix_rank(old) == np.linalg.matrix_rank(new):
        return False
    for size in range(len(row) + 1):
        for chosen in combinations(range(len(row)), size):
            if weights[list(chosen)].sum() <= most:
                left = np.setdiff1d(np.arange(len(row)), chosen)
                if np.linalg.matrix_rank(old[:, left]) == np.linalg.matrix_rank(new[:, left]):
                    return True
    return False


@pytest.mark.parametrize("seed", range(25))
def test_rows_are_refused_exactly_where_a_small_set_follows(seed: int) -> None:
    rng = make_rng(seed, "rows")
    weights = rng.integers(1, 4, size=9)
    k_row = int(rng.integers(2, 6))
    span, taken = RowSpan(weights, k_row), []
    decided = []
    for _ in range(12):
        row = (rng.random(9) < rng.choice([0.3, 0.5, 0.8])).astype(np.int64)
        wanted = not reveals_new(taken, row, weights, k_row - 1)
        assert span.try_add(row) is wanted
        decided.append(wanted)
        if wanted:
            taken.append(row)
    assert any(decided)


def test_set_that_is_protected_is_not_revealed_though_it_is_large() -> None:
    weights, mask = np.array([6, 7, 20]), np.array([True, False, False])
    total, others, group = np.array([1, 1, 1]), np.array([0, 1, 1]), np.array([1, 0, 0])
    open_span = RowSpan(weights, 5)
    assert open_span.try_add(total)
    assert open_span.try_add(others)
    span = RowSpan(weights, 5, [mask])
    assert span.try_add(total)
    assert not span.try_add(others)
    assert not span.try_add(group)
    assert span.try_add(np.array([0, 1, 0]))
    assert not span.try_add(np.array([0, 0, 1]))


def test_what_was_revealed_before_does_not_count_against_a_row() -> None:
    span = RowSpan(np.array([1, 8, 8]), 5)
    span.add(np.array([1, 0, 0]))
    assert span.try_add(np.array([1, 1, 0]))
    assert span.try_add(np.array([0, 1, 0]))
    assert span.try_add(np.array([1, 1, 1]))


def test_search_that_takes_too_long_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = make_rng(1, "long")
    rows = (rng.random((12, 40)) < 0.5).astype(np.int64)
    free, short = RowSpan(np.ones(40, np.int64), 5), RowSpan(np.ones(40, np.int64), 5)
    assert [free.try_add(row) for row in rows] == [True] * 12
    monkeypatch.setattr(row_span, "MOST_NODES", 0)
    assert [short.try_add(row) for row in rows].count(True) < 12
    monkeypatch.setattr(row_span, "MOST_ROWS", -1)
    assert not RowSpan(np.ones(40, np.int64), 5).try_add(rows[0])

"""Small numbers: what is left out of tables before they leave a site."""

import numpy as np
import pytest
import torch

from fedmed.fairness.suppression import (
    Release,
    count_released,
    counts_may_leave,
    find_breach,
    find_released,
    release_tables,
)
from fedmed.metrics.tables import EvaluationTables, tables_from_logits

LABELS = torch.tensor([0] * 6 + [1] * 4 + [2] * 5)
LOGITS = torch.randn(15, 3, generator=torch.Generator().manual_seed(1))
SITE = ["site"] * 15


def assert_equal(found: EvaluationTables, expected: EvaluationTables) -> None:
    assert found.groups == expected.groups
    for name, array in expected.to_arrays().items():
        np.testing.assert_array_equal(found.to_arrays()[name], array)


def test_nothing_is_held_back_by_default() -> None:
    assert_equal(release_tables(LOGITS, LABELS, SITE, Release()), tables_from_logits(LOGITS, LABELS, SITE))


def test_row_below_k_row_is_in_no_table() -> None:
    found = release_tables(LOGITS, LABELS, SITE, Release(k=10, k_row=5))
    others = LABELS != 1
    assert_equal(found, tables_from_logits(LOGITS[others], LABELS[others], ["site"] * 11))
    assert found.counts[0, 1].sum() == found.scores[0, 1].sum() == found.calibration[0, 1].sum() == 0
    assert found.brier[0, 0] == 11


@pytest.mark.parametrize(
    ("k", "k_row", "left"), [(11, 5, 11), (12, 5, 0), (6, 6, 6), (7, 6, 0), (15, 4, 15), (1, 7, 0)]
)
def test_group_is_withheld_when_its_released_images_are_fewer_than_k(k: int, k_row: int, left: int) -> None:
    found = release_tables(LOGITS, LABELS, SITE, Release(k, k_row))
    assert found.num_images == left
    assert found.groups == (("site",) if left else ())
    assert count_released([6, 4, 5], Release(k, k_row)) == left


def test_each_group_has_rows_of_its_own() -> None:
    groups = ["f", "m"] * 7 + ["f"]  # f has 3, 2 and 3 images of the classes, m has 3, 2 and 2
    released = find_released(LABELS, groups, Release(k=3, k_row=3))
    kept = [(group, int(label)) for group, label, is_in in zip(groups, LABELS, released, strict=True) if is_in]
    assert sorted(set(kept)) == [("f", 0), ("f", 2), ("m", 0)]
    assert len(kept) == 9


def test_scores_stay_where_they_are_not_allowed() -> None:
    found = release_tables(LOGITS, LABELS, SITE, Release(scores=False))
    expected = tables_from_logits(LOGITS, LABELS, SITE)
    assert not found.scores.any()
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_array_equal(found.calibration, expected.calibration)


def test_no_image_gives_no_group() -> None:
    assert release_tables(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), [], Release(10, 5)).groups == ()


@pytest.mark.parametrize(
    ("counts", "may"),
    [([10, 5, 0], True), ([10, 4, 0], False), ([5, 0, 0], False), ([0, 0, 0], True), ([1, 9, 20], False)],
)
def test_class_counts_may_leave_only_if_none_is_small(counts: list[int], may: bool) -> None:
    assert counts_may_leave(counts, Release(k=10, k_row=5)) is may


def test_what_is_released_breaches_nothing() -> None:
    for release in (Release(), Release(10, 5), Release(10, 5, scores=False), Release(100, 5)):
        assert find_breach(release_tables(LOGITS, LABELS, SITE, release), release) is None


def test_breach_is_found_and_named() -> None:
    complete = tables_from_logits(LOGITS, LABELS, SITE)
    assert find_breach(complete, Release(10, 5)) == "a class has fewer than k_row = 5 images"
    assert find_breach(complete, Release(16, 4)) == "a group has fewer than k = 16 images"
    assert find_breach(complete, Release(scores=False)) == "they hold scores"
    arrays = release_tables(LOGITS, LABELS, SITE, Release(10, 5)).to_arrays()
    for name in ("brier", "calibration", "scores"):  # counts held back, but not the table that tells as much
        mixed = EvaluationTables(("site",), **(arrays | {name: complete.to_arrays()[name]}))
        assert find_breach(mixed, Release(10, 5)) == "the tables are about different images"

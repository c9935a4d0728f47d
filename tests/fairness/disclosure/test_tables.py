"""Small numbers: what is left out of tables before they leave a site."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedmed.fairness.disclosure.rows import plan_disclosure
from fedmed.fairness.disclosure.tables import (
    Disclosure,
    counts_may_leave,
    disclose_tables,
    find_breach,
    tell_everything,
)
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.site_tables import BATCH_NORM, FEDERATED, LOCAL, UNCALIBRATED, PairedTables, SiteTables
from fedmed.metrics.tables import EvaluationTables, tables_from_logits

LABELS = torch.tensor([0] * 6 + [1] * 4 + [2] * 5 + [3] * 3)
LOGITS = torch.randn(18, 4, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(18, 4, generator=torch.Generator().manual_seed(2))
SITE = {"site": ["north"] * 18}
LIMITS = Disclosure(k=10, k_row=5)


def release(
    limits: Disclosure,
    groups: Mapping[str, Sequence[str]] = SITE,
    labels: torch.Tensor = LABELS,
    **logits: torch.Tensor,
) -> SiteTables:
    logits = {FEDERATED: LOGITS[: len(labels)], **logits}
    plan = plan_disclosure(labels, groups, [str(i) for i in range(len(labels))], limits)
    return disclose_tables(logits, labels, groups, plan, limits)


def assert_equal(found: EvaluationTables, expected: EvaluationTables, *but: str) -> None:
    assert found.groups == expected.groups
    for name in set(expected.to_arrays()) - set(but):
        np.testing.assert_array_equal(found.to_arrays()[name], expected.to_arrays()[name])


def test_nothing_is_held_back_by_default() -> None:
    groups = {**SITE, "sex": ["f", "m", "unknown"] * 6}
    found = release(Disclosure(), groups)
    for attribute, of_images in groups.items():
        assert_equal(found.models[FEDERATED][attribute], tables_from_logits(LOGITS, LABELS, of_images))
    assert found.paired == {}


def test_small_rows_are_told_without_their_class() -> None:
    found = release(LIMITS).site
    large = torch.isin(LABELS, torch.tensor([0, 2]))
    expected = tables_from_logits(LOGITS[large], LABELS[large], ["north"] * 11)
    assert_equal(found, expected, "rare", "withheld")
    small = tables_from_logits(LOGITS[~large], LABELS[~large], ["north"] * 7)
    np.testing.assert_array_equal(found.rare, small.calibration.sum(axis=1))
    assert found.rare[0, :, 0].sum() == 7
    assert found.withheld.tolist() == [[0, 1, 0, 1]]
    assert found.counts[0, 1].sum() == found.scores[0, 1].sum() == found.calibration[0, 1].sum() == 0
    assert found.brier[0, 0] == 11
    assert found.num_images == 18


def test_rare_row_that_is_small_itself_is_withheld() -> None:
    found = release(LIMITS, labels=LABELS[:15], groups={"site": ["north"] * 15}).site
    assert found.counts.sum() == 11
    assert not found.rare.any()
    assert found.withheld.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("k", "k_row", "told"), [(11, 5, 11), (15, 5, 11), (16, 5, 0), (15, 6, 15), (15, 4, 15), (1, 7, 15), (16, 1, 0)]
)
def test_group_of_fewer_than_k_images_is_withheld_as_a_whole(k: int, k_row: int, told: int) -> None:
    """There are 6, 4 and 5 images; those of small rows count together from k_row on."""
    found = release(Disclosure(k, k_row), labels=LABELS[:15], groups={"site": ["north"] * 15}).site
    assert found.num_images == told
    assert found.groups == ("north",)
    if not told:
        assert found.withheld.tolist() == [[1, 1, 1, 1]]
        assert not any(array.any() for name, array in found.to_arrays().items() if name != "withheld")


def test_each_group_has_rows_of_its_own() -> None:
    sex = ["f"] * 5 + ["m"] + ["f"] * 2 + ["m"] * 2 + ["m"] * 5 + ["f"] * 2 + ["m"]
    found = release(Disclosure(k=5, k_row=3), {**SITE, "sex": sex}).models[FEDERATED]
    assert found["sex"].groups == ("f", "m")
    # f has 5, 2, 0 and 2 images of the classes, m has 1, 2, 5 and 1. The site's 6 of class 0 would give the one away.
    assert found["site"].counts.sum(axis=-1).tolist() == [[6, 4, 5, 3]]
    assert found["sex"].counts.sum(axis=-1).tolist() == [[0, 0, 0, 0], [0, 0, 5, 0]]
    assert found["sex"].withheld.tolist() == [[1, 1, 0, 1], [1, 1, 0, 1]]
    assert found["sex"].rare[..., 0].sum(axis=-1).tolist() == [9, 4]


def test_set_aside_images_are_in_no_table() -> None:
    labels = torch.tensor([0] * 60)
    sex = ["f"] * 30 + ["m"] * 27 + ["unknown"] * 3
    logits = torch.randn(60, 2, generator=torch.Generator().manual_seed(3))
    found = release(LIMITS, {"site": ["north"] * 60, "sex": sex}, labels, **{FEDERATED: logits}).models[FEDERATED]
    assert_equal(found["site"], tables_from_logits(logits[:57], labels[:57], ["north"] * 57))
    assert found["sex"].groups == ("f", "m", "unknown")
    assert found["sex"].counts.sum(axis=(1, 2)).tolist() == [30, 27, 0]
    assert found["sex"].withheld.tolist() == [[0, 0], [0, 0], [1, 1]]


def test_scores_stay_where_they_are_not_allowed() -> None:
    found, expected = release(Disclosure(scores=False)).site, tables_from_logits(LOGITS, LABELS, SITE["site"])
    assert not found.scores.any()
    assert_equal(found, expected, "scores")


def test_no_image_gives_no_group() -> None:
    found = release(LIMITS, {"site": []}, LABELS[:0])
    assert found.site.groups == ()
    assert find_breach(found, LIMITS, "north") is None


def test_other_models_are_compared_on_the_rows_that_are_told() -> None:
    found = release(LIMITS, **{UNCALIBRATED: LOGITS * 3, LOCAL: OTHER})
    assert set(found.models) == {FEDERATED, UNCALIBRATED, LOCAL}
    assert set(found.paired) == {LOCAL}
    np.testing.assert_array_equal(found.models[UNCALIBRATED]["site"].counts, found.site.counts)
    assert (found.models[UNCALIBRATED]["site"].calibration != found.site.calibration).any()
    cells = found.paired[LOCAL]["site"].cells
    for label, size in ((0, 6), (1, 0), (2, 5), (3, 0)):
        expected = np.zeros((2, 2), np.int64)
        for place in np.flatnonzero(label == LABELS)[:size]:
            expected[int(LOGITS[place].argmax() == label), int(OTHER[place].argmax() == label)] += 1
        np.testing.assert_array_equal(cells[0, label], expected)
    assert find_breach(found, LIMITS, "north") is None


def test_own_tables_hold_nothing_back_and_all_come_back_from_bytes() -> None:
    groups = {**SITE, "sex": ["f", "m"] * 9}
    found = unpack_site_tables(
        pack_site_tables(tell_everything({FEDERATED: LOGITS, BATCH_NORM: OTHER}, LABELS, groups))
    )
    assert_equal(found.models[BATCH_NORM]["sex"], tables_from_logits(OTHER, LABELS, groups["sex"]))
    assert found.paired[BATCH_NORM]["sex"].cells.sum() == 18


@pytest.mark.parametrize(
    ("counts", "may"),
    [([10, 5, 0], True), ([10, 4, 0], False), ([5, 0, 0], False), ([0, 0, 0], True), ([1, 9, 20], False)],
)
def test_class_counts_may_leave_only_if_none_is_small(counts: list[int], may: bool) -> None:
    assert counts_may_leave(counts, LIMITS) is may


def test_what_is_released_breaches_nothing() -> None:
    groups = {**SITE, "sex": ["f", "m"] * 9}
    for limits in (Disclosure(), LIMITS, Disclosure(10, 5, scores=False), Disclosure(100, 5), Disclosure(3, 2)):
        assert find_breach(release(limits, groups, **{LOCAL: OTHER, UNCALIBRATED: LOGITS / 2}), limits, "north") is None


def test_breach_is_found_and_named() -> None:
    complete = release(Disclosure())
    assert find_breach(complete, LIMITS, "north") == "a class has fewer than k_row = 5 images"
    assert find_breach(complete, Disclosure(19, 3), "north") == "a group has fewer than k = 19 images"
    assert find_breach(complete, Disclosure(scores=False), "north") == "they hold scores"
    assert find_breach(complete, Disclosure(), "south") == "they are of other groups than the site"
    arrays, told = complete.site.to_arrays(), release(LIMITS).site.to_arrays()

    def mix(**changes: Any) -> SiteTables:
        return SiteTables({FEDERATED: {"site": EvaluationTables(("north",), **(told | changes))}})

    for name in ("brier", "calibration", "scores"):  # counts held back, but not the table that tells as much
        assert find_breach(mix(**{name: arrays[name]}), LIMITS, "north") == "the tables are about different images"
    few = np.zeros_like(told["rare"])
    few[0, 0] = [4, 1, 1]
    expected = "the rare classes of a group have fewer than k_row = 5 images"
    assert find_breach(mix(rare=few), LIMITS, "north") == expected
    nothing = np.zeros_like(told["withheld"])
    expected = "a group has fewer than k = 12 images"
    assert find_breach(mix(rare=few * 0, withheld=nothing), Disclosure(12, 5), "north") == expected
    assert find_breach(mix(rare=few * 0), Disclosure(12, 5), "north") is None
    wrong = np.array([[1, 1, 0, 1]])
    assert find_breach(mix(withheld=wrong), LIMITS, "north") == "they count a class that is withheld"
    assert find_breach(mix(withheld=told["withheld"] * 2), LIMITS, "north") == "they count a class that is withheld"


def test_breach_of_other_models_is_found() -> None:
    found = release(LIMITS, **{LOCAL: OTHER})
    full = release(Disclosure(), **{LOCAL: OTHER})
    different = "the tables are about different images"

    def swap(cells: Callable[[np.ndarray], np.ndarray]) -> SiteTables:
        paired = found.paired[LOCAL]["site"]
        return replace(found, paired={LOCAL: {"site": PairedTables(paired.groups, cells(paired.cells))}})

    assert find_breach(replace(found, paired=full.paired), LIMITS, "north") == different
    assert find_breach(swap(lambda cells: cells.swapaxes(2, 3).copy()), LIMITS, "north") == different
    assert find_breach(swap(lambda cells: cells[:, :3].copy()), LIMITS, "north") == different
    assert find_breach(replace(found, models={FEDERATED: found.models[FEDERATED]}), LIMITS, "north") == different
    smaller = release(LIMITS, labels=LABELS[:15], groups={"site": ["north"] * 15}).models[FEDERATED]
    assert find_breach(
        replace(found, models={FEDERATED: found.models[FEDERATED], LOCAL: smaller}), LIMITS, "north"
    ) == (different)
    groups = {**SITE, "sex": ["f", "m"] * 9}
    more = release(LIMITS, groups).models[FEDERATED]
    mixed = SiteTables({FEDERATED: found.models[FEDERATED], LOCAL: more})
    assert find_breach(mixed, LIMITS, "north") == "their models are told by different attributes"

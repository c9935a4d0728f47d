"""Small numbers: what is left out of tables before they leave a site."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
from fedmed.metrics.site_tables import BATCH_NORM, FEDERATED, LOCAL, UNCALIBRATED, SiteTables
from fedmed.metrics.tables import EvaluationTables, tables_from_logits

LABELS = torch.tensor([0] * 6 + [1] * 4 + [2] * 5 + [3] * 3)
LOGITS = torch.randn(18, 4, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(18, 4, generator=torch.Generator().manual_seed(2))
SITE = {"site": ["north"] * 18}
LIMITS = Disclosure(k=10, k_row=5, k_bin=5)
NOT_TOLD = ("scores", "calibration", "mixed", "counts", "other_wrong", "patients", "brier", "areas")
"""What a hospital tells otherwise than a simulation; see ``test_coarse.py``."""


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
    assert_equal(found, expected, "rare", "withheld", *NOT_TOLD)
    right = int((LOGITS.argmax(dim=1) == LABELS)[~large].sum())
    assert found.rare.tolist() == [[7, right]]
    assert found.withheld.tolist() == [[0, 1, 0, 1]]
    assert found.row_images.tolist() == [[6, 0, 5, 0]]
    assert found.counts[0, 1].sum() == found.patients[0, 1].sum() == found.areas[0, 1].sum() == 0
    assert found.brier[0, 0] == 11
    assert found.mixed[0, :, 0].sum() == 18
    assert found.num_images == 18


def test_rare_row_that_is_small_itself_is_withheld() -> None:
    found = release(LIMITS, labels=LABELS[:15], groups={"site": ["north"] * 15}).site
    assert found.row_images.sum() == 11
    assert not found.rare.any()
    assert found.withheld.tolist() == [[0, 1, 0, 1]], "class 3 has no image, class 1 too few"


@pytest.mark.parametrize(
    ("k", "k_row", "told"), [(11, 5, 11), (15, 5, 11), (16, 5, 0), (15, 6, 15), (15, 4, 15), (1, 7, 15), (16, 1, 0)]
)
def test_group_of_fewer_than_k_images_is_withheld_as_a_whole(k: int, k_row: int, told: int) -> None:
    """There are 6, 4 and 5 images; those of small rows count together from k_row on."""
    found = release(Disclosure(k, k_row), labels=LABELS[:15], groups={"site": ["north"] * 15}).site
    assert found.num_images == told
    assert found.groups == (("north",) if told else ())
    if told:
        assert found.withheld[0, 3] == 1  # of this class there is no image at all


def test_each_group_has_rows_of_its_own() -> None:
    """Women have 5, 2, 0 and 2 images of the classes, men 1, 2, 5 and 1.

    The site's 6 of class 0 and 5 women would give the one man away, so 2 women are left out of the rows by sex.
    The rare classes of the women are told, 2 + 2; with those of the men the one man would follow from the site's rows.
    """
    sex = ["f"] * 5 + ["m"] + ["f"] * 2 + ["m"] * 2 + ["m"] * 5 + ["f"] * 2 + ["m"]
    found = release(Disclosure(k=5, k_row=3), {**SITE, "sex": sex}).models[FEDERATED]
    assert found["sex"].groups == ("f", "m")
    assert found["site"].row_images.tolist() == [[6, 4, 5, 3]]
    assert found["sex"].row_images.tolist() == [[3, 0, 0, 0], [0, 0, 5, 0]]
    assert found["sex"].withheld.tolist() == [[0, 1, 1, 1], [1, 1, 0, 1]]
    assert found["sex"].rare[:, 0].tolist() == [4, 0]


@pytest.mark.parametrize("unknown", [0, 1, 3])
def test_as_many_lack_a_group_however_many_are_of_a_small_one(unknown: int) -> None:
    """Of 60 images 50 are told by sex, so that ten may be of unknown sex; the site's row counts all."""
    labels = torch.tensor([0] * 60 + [1] * 6)
    sex = ["f"] * 30 + ["m"] * (30 - unknown) + ["unknown"] * (unknown + 6)
    logits = torch.randn(66, 2, generator=torch.Generator().manual_seed(3))
    found = release(LIMITS, {"site": ["north"] * 66, "sex": sex}, labels, **{FEDERATED: logits}).models[FEDERATED]
    assert found["site"].row_images.tolist() == [[60, 0]]
    assert found["sex"].groups == ("f", "m")
    assert found["sex"].row_images[:, 0].sum() == 50
    assert (found["sex"].row_images[:, 0] >= 20).all()


def test_a_row_that_is_folded_tells_right_answers_alone_and_one_that_is_unpaired_no_comparison() -> None:
    labels, limits = torch.tensor([0] * 40), Disclosure(k=10, k_row=5, k_bin=5)
    groups = {"site": ["north"] * 40, "sex": ["f"] * 20 + ["m"] * 20}
    answers = torch.tensor([0] * 10 + [1] * 10).repeat(2)
    logits = torch.nn.functional.one_hot(answers, 3).double()
    plan = plan_disclosure(labels, groups, [str(i) for i in range(40)], limits)
    row = frozenset({("f", 0)})
    plan = replace(
        plan, attributes={**plan.attributes, "sex": replace(plan.attributes["sex"], folded=row, unpaired=row)}
    )
    found = disclose_tables({FEDERATED: logits, LOCAL: logits.flip(0)}, labels, groups, plan, limits)
    by_sex, paired = found.models[FEDERATED]["sex"], found.paired[LOCAL]["sex"]
    assert by_sex.counts[:, 0].tolist() == [[10, 0, 0], [10, 10, 0]]
    assert by_sex.other_wrong[:, 0].tolist() == [10, 0]
    assert found.site.counts[0, 0].tolist() == [20, 20, 0]
    assert paired.cells[:, 0].sum(axis=(1, 2)).tolist() == [0, 20]
    assert paired.spread[0, 0] == 0 < paired.spread[1, 0]
    assert found.paired[LOCAL]["site"].cells.sum() == 40
    assert find_breach(found, limits, "north") is None
    assert find_breach(found, Disclosure(), "north") is not None


def test_scores_stay_where_they_are_not_allowed() -> None:
    found, expected = release(Disclosure(scores=False)).site, tables_from_logits(LOGITS, LABELS, SITE["site"])
    assert not found.scores.any()
    assert not found.areas.any()
    assert_equal(found, expected, "scores", "areas")
    assert not release(replace(LIMITS, scores=False)).site.areas.any()
    assert release(LIMITS).site.areas.any()


def test_no_image_gives_no_group() -> None:
    found = release(LIMITS, {"site": []}, LABELS[:0])
    assert found.site.groups == ()
    assert find_breach(found, LIMITS, "north") is None


def test_other_models_are_compared_on_the_rows_that_are_told() -> None:
    found = release(LIMITS, **{UNCALIBRATED: LOGITS * 3, LOCAL: OTHER})
    assert set(found.models) == {FEDERATED, UNCALIBRATED, LOCAL}
    assert set(found.paired) == {LOCAL}
    np.testing.assert_array_equal(found.models[UNCALIBRATED]["site"].counts, found.site.counts)
    assert (found.models[UNCALIBRATED]["site"].mixed != found.site.mixed).any()
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

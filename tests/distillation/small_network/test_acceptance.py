"""The gate on tables written by hand (test of faithfulness 22)."""

import json

import numpy as np
import pytest

from fedmed.distillation import GateLimits, decide_gate
from fedmed.distillation.small_network.acceptance import Support
from fedmed.metrics.site_tables import PairedTables

CLASSES = ("common", "second", "rare")


def cells(*rows: tuple[int, int, int, int]) -> np.ndarray:
    """Return (K,2,2) from rows of (both wrong, student alone right, teacher alone right, both right)."""
    return np.array(rows, np.int64).reshape(len(rows), 2, 2)


def tables(**groups: np.ndarray) -> PairedTables:
    return PairedTables(tuple(groups), np.stack(list(groups.values())))


def test_an_equal_student_passes() -> None:
    site = tables(a=cells((10, 0, 0, 90), (5, 0, 0, 15), (2, 0, 0, 8)))
    decision = decide_gate({"site": site}, CLASSES)
    assert decision.accepted
    assert decision.num_images == 130
    assert [check.name for check in decision.checks] == ["balanced_accuracy", "worst_class", *["class"] * 3, "gap"]
    # Recalls 0.9, 0.75, 0.8: mean 0.8167, lowest 0.75.
    assert decision.checks[0].teacher == pytest.approx(2.45 / 3)
    assert decision.checks[1].teacher == pytest.approx(0.75)
    assert json.loads(json.dumps(decision.to_json()))["accepted"] is True


def test_a_student_that_never_finds_a_class_is_rejected_though_its_mean_passes() -> None:
    # Class "rare": teacher 10 of 20, student none. "common" and "second" win as much: balanced accuracy
    # (0.60 + 0.60 + 0.50) / 3 = 0.567 against (0.90 + 0.80 + 0) / 3 = 0.567: no loss. Accuracy rises.
    site = tables(a=cells((10, 30, 0, 60), (20, 20, 0, 60), (10, 0, 10, 0)))
    decision = decide_gate({"site": site}, CLASSES)
    assert decision.checks[0].passed
    assert not decision.accepted
    failed = {(check.name, check.subject) for check in decision.checks if not check.passed}
    assert failed == {("worst_class", "all"), ("class", "rare")}
    assert "recall of 'rare' falls from 50.0 to 0.0 points" in decision.reason


def test_another_class_zeroed_is_found_although_the_lowest_recall_stays() -> None:
    # The teacher never finds "common" either, so the lowest recall is 0 for both: the test of each class finds it.
    # "second" loses 10 of 10 on which they differ: p = 2^-10.
    site = tables(a=cells((50, 0, 0, 0), (10, 0, 10, 0), (1, 9, 0, 10)))
    decision = decide_gate({"site": site}, CLASSES, GateLimits(balanced_accuracy=1.0))
    second = next(check for check in decision.checks if check.subject == "second")
    assert second.p_value == pytest.approx(2**-10)
    assert not second.passed
    assert [check.passed for check in decision.checks if check.name == "worst_class"] == [True]


def test_one_image_of_a_small_class_decides_nothing_by_itself() -> None:
    # 3 of 5 against 2 of 5: 20 points, but one image: p = 1/2. Balanced accuracy falls by 0.2 / 3 = 6.7 points.
    site = tables(a=cells((10, 0, 0, 90), (10, 0, 0, 90), (2, 0, 1, 2)))
    decision = decide_gate({"site": site}, CLASSES, GateLimits(balanced_accuracy=0.1, worst_class=0.2))
    assert decision.accepted
    strict = decide_gate({"site": site}, CLASSES, GateLimits(balanced_accuracy=0.1, worst_class=0.19))
    assert [check.name for check in strict.checks if not check.passed] == ["worst_class"]


def test_the_sign_test_by_hand() -> None:
    # Of 4 differing images the student lost 3: P(at least 3 of 4) = (4 + 1) / 16.
    site = tables(a=cells((0, 1, 3, 16), (0, 0, 0, 20), (0, 0, 0, 20)))
    decision = decide_gate({"site": site}, CLASSES)
    assert decision.checks[2].p_value == pytest.approx(5 / 16)


def test_a_loss_of_exactly_the_limit_passes() -> None:
    site = tables(a=cells((10, 0, 2, 88), (10, 0, 2, 88), (10, 0, 2, 88)))
    assert decide_gate({"site": site}, CLASSES).accepted
    worse = tables(a=cells((10, 0, 3, 87), (10, 0, 2, 88), (10, 0, 2, 88)))
    assert not decide_gate({"site": worse}, CLASSES).accepted


def test_a_gap_that_grows_is_rejected_and_names_its_attribute() -> None:
    # Women: 0.8 for both. Men: 0.8 to 0.77 for every class. Together the mean falls by 1.5 points, the gap grows by 3.
    women = cells((20, 0, 0, 80), (20, 0, 0, 80), (20, 0, 0, 80))
    men = cells((20, 0, 3, 77), (20, 0, 3, 77), (20, 0, 3, 77))
    unknown = cells((100, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    both = {"site": tables(a=women + men), "sex": tables(female=women, male=men, unknown=unknown)}
    decision = decide_gate(both, CLASSES)
    assert not decision.accepted
    gap = decision.checks[-1]
    assert (gap.subject, gap.passed) == ("sex", False)
    assert gap.teacher == pytest.approx(0)
    assert gap.student == pytest.approx(0.03)
    assert "gap between groups of 'sex' grows" in decision.reason


def test_a_group_is_judged_by_the_classes_it_has() -> None:
    # Site b has no "rare" image: its balanced accuracy is the mean of 0.9 and 0.7; a: mean of 0.9, 0.7, 0.5.
    one = cells((10, 0, 0, 90), (30, 0, 0, 70), (5, 0, 0, 5))
    two = cells((10, 0, 0, 90), (30, 0, 0, 70), (0, 0, 0, 0))
    gap = decide_gate({"site": tables(a=one, b=two)}, CLASSES).checks[-1]
    assert gap.teacher == pytest.approx(0.8 - 0.7)


def test_every_condition_says_how_many_images_its_limit_amounts_to() -> None:
    """5 points are 0.6 of 12 images, 2 points of a mean over 3 classes 0.72, over 2 classes in a site 0.28 of 7."""
    one = cells((10, 0, 0, 90), (10, 0, 0, 20), (1, 0, 0, 4))
    two = cells((0, 0, 0, 50), (0, 0, 0, 0), (0, 0, 1, 6))
    checks = {(check.name, check.subject): check.rests_on for check in decide_gate(
        {"site": tables(a=one, b=two), "sex": tables(all=one + two)}, CLASSES).checks}  # fmt: skip
    assert checks["class", "rare"] == Support("rare", None, 12, pytest.approx(0.6))
    assert checks["class", "common"] == Support("common", None, 150, pytest.approx(7.5))
    # The small network's recalls: 140/150, 20/30, 10/12: "second" is the lowest.
    assert checks["worst_class", "all"] == Support("second", None, 30, pytest.approx(1.5))
    assert checks["balanced_accuracy", "all"] == Support("rare", None, 12, pytest.approx(0.02 * 12 * 3))
    # Site a: 3 classes, 5 images of "rare": 15; site b: 2 classes, 7 images of it: 14.
    assert checks["gap", "site"] == Support("rare", "b", 7, pytest.approx(0.02 * 14))
    assert checks["gap", "sex"] is None  # one group has no gap


def test_a_reason_names_the_images() -> None:
    """Of 5 images of "rare" one is lost: 20 points, where 5 are a quarter of an image."""
    site = tables(a=cells((10, 0, 0, 90), (10, 0, 0, 90), (2, 0, 1, 2)))
    decision = decide_gate({"site": site}, CLASSES, GateLimits(balanced_accuracy=0.1))
    assert decision.reason == (
        "The lowest recall of a class falls from 60.0 to 40.0 points, by more than 5 (0.2 of the 5 images of class "
        "'rare')."
    )
    told = json.loads(json.dumps(decision.to_json()))["checks"][1]["rests_on"]
    assert told == {"label": "rare", "group": None, "num_images": 5, "limit_images": 0.25}


def test_nothing_to_judge_by_is_no_acceptance() -> None:
    decision = decide_gate({"site": tables(a=np.zeros((3, 2, 2), np.int64))}, CLASSES)
    assert not decision.accepted
    assert "No validation image" in decision.reason


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="'site'"):
        decide_gate({"sex": tables(a=np.zeros((3, 2, 2), np.int64))}, CLASSES)
    with pytest.raises(ValueError, match="2 classes"):
        decide_gate({"site": tables(a=np.zeros((3, 2, 2), np.int64))}, ("a", "b"))

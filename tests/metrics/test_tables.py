import dataclasses
import math

import numpy as np
import pytest
import torch

from fedmed.metrics.tables import (
    EvaluationTables,
    calibration_bins,
    combine_tables,
    log_odds,
    score_bins,
    tables_from_logits,
)
from tests.metrics.support.samples import draw_predictions, draw_tables


def assert_equal(a, b, *but):
    assert a.groups == b.groups
    for name in set(a.to_arrays()) - set(but):
        np.testing.assert_allclose(a.to_arrays()[name], b.to_arrays()[name], rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_tables_of_three_images_by_hand():
    """p = (.8, .2), (.5, .5), (.1, .9) with y = 0, 1, 1 and groups b, a, b.

    Log-odds of class 0: log 4 = 1.386, 0, -log 9 = -2.197; bins floor((x + 12) / 0.375) = 35, 32, 26. A tie is given to
    class 0. Confidences 0.8, 0.5, 0.9 lie in bins ceil(15 c) - 1 = 11, 7, 13. Brier 2 * 0.04, 2 * 0.25, 2 * 0.01.
    """
    logits = torch.tensor([[math.log(4), 0.0], [0.0, 0.0], [0.0, math.log(9)]], dtype=torch.float64)
    tables = tables_from_logits(logits, torch.tensor([0, 1, 1]), ["b", "a", "b"])
    assert tables.groups == ("a", "b")
    assert tables.num_images == 3
    assert tables.num_classes == 2
    np.testing.assert_array_equal(tables.counts, [[[0, 0], [1, 0]], [[1, 0], [0, 1]]])
    scores = np.zeros((2, 2, 2, 64), int)
    scores[0, 1, 0, 32] = scores[0, 1, 1, 32] = 1
    scores[1, 0, 0, 35] = scores[1, 0, 1, 28] = 1  # -1.386: floor(10.614 / 0.375) = 28
    scores[1, 1, 0, 26] = scores[1, 1, 1, 37] = 1
    np.testing.assert_array_equal(tables.scores, scores)
    calibration = np.zeros((2, 2, 15, 3))
    calibration[0, 1, 7] = (1, 0.5, 0)
    calibration[1, 0, 11] = (1, 0.8, 1)
    calibration[1, 1, 13] = (1, 0.9, 1)
    np.testing.assert_allclose(tables.calibration, calibration, atol=1e-15)
    np.testing.assert_allclose(tables.brier, [[1, 0.5, 0.25], [2, 0.1, 0.08**2 + 0.02**2]], atol=1e-15)


def test_tables_equal_a_loop_over_the_images():
    logits, labels = draw_predictions(200, seed=3)
    groups = [f"g{i % 3}" for i in range(200)]
    tables = tables_from_logits(logits, labels, groups)
    probabilities = torch.softmax(logits, dim=1).numpy()
    counts, scores = np.zeros((3, 7, 7), int), np.zeros((3, 7, 7, 64), int)
    for i, (p, y) in enumerate(zip(probabilities, labels.tolist(), strict=True)):
        counts[i % 3, y, p.argmax()] += 1
        for c in range(7):
            odds = math.log(p[c]) - math.log(1 - p[c])
            scores[i % 3, y, c, min(max(math.floor((odds + 12) / 24 * 64), 0), 63)] += 1
    np.testing.assert_array_equal(tables.counts, counts)
    np.testing.assert_array_equal(tables.scores, scores)


def test_tables_add_over_any_split_of_the_images():
    logits, labels = draw_predictions(300, seed=1)
    groups = ["f" if i % 4 else "m" for i in range(300)]
    whole = tables_from_logits(logits, labels, groups)
    parts = [
        tables_from_logits(logits[s], labels[s], groups[s]) for s in (slice(0, 50), slice(50, 120), slice(120, 300))
    ]
    # Areas compare the images of one part only.
    assert_equal(combine_tables(parts), whole, "areas")
    assert_equal(parts[0] + parts[1] + parts[2], whole, "areas")
    assert_equal(whole.select("f") + whole.select("m"), whole)
    assert_equal(whole.pool(), tables_from_logits(logits, labels, ["all"] * 300), "areas")


def test_groups_are_united_in_sorted_order_and_the_parts_stay_as_they_were():
    first, second = draw_tables(20, group="site_02"), draw_tables(30, group="site_01", seed=1)
    before = first.counts.copy()
    total = first + second
    assert total.groups == ("site_01", "site_02")
    assert total.select("site_01").num_images == 30
    assert (first + first).num_images == 40
    np.testing.assert_array_equal(first.counts, before)


def test_no_image_gives_zero_tables():
    empty = tables_from_logits(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), [])
    assert empty.groups == ()
    assert empty.num_images == 0
    assert empty.pool().counts.shape == (1, 3, 3)
    some = draw_tables(10, shares=(0.5, 0.3, 0.2))
    assert_equal(empty + some, some)


def test_score_bins_have_open_ends_and_lower_edges_belong_to_the_bin():
    odds = np.array([-np.inf, -12.0, -11.626, -11.625, 0.0, 11.624, 11.625, 12.0, 700.0])
    np.testing.assert_array_equal(score_bins(odds), [0, 0, 0, 1, 32, 62, 63, 63, 63])


def test_log_odds_keep_their_digits_where_the_probability_rounds_to_one():
    z = np.array([[200.0, -200.0, -300.0]])
    np.testing.assert_allclose(log_odds(z), [[400.0, -400.0, -500.0]])
    np.testing.assert_allclose(log_odds(np.zeros((1, 8))), np.full((1, 8), -math.log(7)))


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin():
    edges = np.array([i / 15 for i in range(1, 16)])
    np.testing.assert_array_equal(calibration_bins(edges), np.arange(15))
    np.testing.assert_array_equal(calibration_bins(np.nextafter(edges[:-1], 1)), np.arange(1, 15))


@pytest.mark.parametrize("num_classes", [3, 5, 15])
def test_uniform_answers_lie_exactly_on_an_edge(num_classes):
    tables = tables_from_logits(torch.full((4, num_classes), 0.1), torch.zeros(4, dtype=torch.int64), ["a"] * 4)
    assert tables.calibration[0, 0, 15 // num_classes - 1, 0] == 4


def test_half_precision_logits_are_computed_with_in_float64():
    logits, labels = draw_predictions(50)
    half = logits.to(torch.float16)
    assert_equal(
        tables_from_logits(half, labels, ["a"] * 50), tables_from_logits(half.to(torch.float64), labels, ["a"] * 50)
    )


@pytest.mark.parametrize(
    ("logits", "labels", "groups", "message"),
    [
        (torch.zeros(2), torch.zeros(2), ["a", "a"], "shape"),
        (torch.zeros(2, 1), torch.zeros(2), ["a", "a"], ">= 2 classes"),
        (torch.zeros(2, 3), torch.zeros(3), ["a", "a"], "one label and one group"),
        (torch.zeros(2, 3), torch.zeros(2), ["a"], "one label and one group"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ["a", "a"], "Labels from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), ["a", "a"], "Allowed: 0 to 2"),
        (torch.tensor([[0.0, math.nan], [0.0, 0.0]]), torch.zeros(2), ["a", "a"], "not finite for 1 of 2"),
    ],
)
def test_predictions_that_cannot_be_counted_are_refused(logits, labels, groups, message):
    with pytest.raises(ValueError, match=message):
        tables_from_logits(logits, labels, groups)


def test_arrays_make_the_round_trip():
    tables = draw_tables(40, group="b") + draw_tables(20, group="a", seed=1)
    assert_equal(EvaluationTables.from_arrays(tables.groups, tables.to_arrays()), tables)


def change(name, position, value):
    def apply(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name][position] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("counts"), "Needed"),
        (lambda a: a.update(extra=a["brier"]), "Allowed"),
        (lambda a: a.update(counts=a["counts"][:, :, :1]), "at least two classes"),
        (lambda a: a.update(counts=np.array(1)), "at least two classes"),
        (lambda a: a.update(scores=a["scores"][..., :10]), "'scores' has shape"),
        (lambda a: a.update(counts=a["counts"].astype(np.int32)), "int32"),
        (lambda a: a.update(brier=a["brier"].astype(np.float32)), "float32"),
        (change("counts", (0, 0, 0), -1), "'counts' holds a negative"),
        (change("brier", (0, 1), np.nan), "'brier' holds a negative or non-finite"),
        (change("scores", (0, 0, 0, 0), 1000), "'scores' does not fit"),
        (change("scores", (0, 0, slice(None), 0), 1000), "'scores' does not fit"),
        (change("calibration", (0, 0, 0, 1), 1000), "'calibration'"),
        (change("calibration", (0, 0, 0, 2), 1000), "'calibration'"),
        (change("brier", (0, 1), 1000), "'brier' has a mean"),
        (change("brier", (0, 2), 1000), "'brier' has a mean"),
        (change("brier", (0, 0), 39.5), "'brier' holds a number of images, pairs or patients that is not whole"),
        (change("mixed", (0, 3), (2, 2.1, 1)), "'mixed' has a mean confidence"),
        (change("rare", (0, 1), 1), "'rare' has an accuracy above 1"),
        (change("patients", (0, 0, 0), 41), "'patients' has more patients than images"),
        (change("patients", (0, 0, 1), -1), "'patients' holds a negative"),
        (change("areas", (0, 0, 1), 1e6), "'areas' has an area above 1"),
        (change("areas", (0, 0, 2), -1), "'areas' holds a negative"),
        (change("other_wrong", (0, 0), -1), "'other_wrong' holds a negative"),
    ],
)
def test_arrays_that_cannot_be_true_are_refused(spoil, message):
    arrays = draw_tables(40).to_arrays()
    spoil(arrays)
    with pytest.raises(ValueError, match=message):
        EvaluationTables.from_arrays(("site_01",), arrays)


def test_arrays_of_zeros_may_be_missing_but_for_the_counts():
    arrays = draw_tables(40).to_arrays()
    found = EvaluationTables.from_arrays(("a",), {"counts": arrays["counts"]})
    assert found.num_images == 40
    assert not any(array.any() for name, array in found.to_arrays().items() if name != "counts")
    signed = {"counts": arrays["counts"], "patients": arrays["patients"].copy(), "areas": arrays["areas"].copy()}
    signed["patients"][0, 0, 2] = signed["areas"][0, 0, 4] = -1.0  # products may be negative
    assert EvaluationTables.from_arrays(("a",), signed).patients[0, 0, 2] == -1


def test_wrong_answers_that_are_not_told_by_class_are_images_of_their_row():
    tables = EvaluationTables.make(("a",), 2, counts=np.array([[[3, 1], [0, 2]]]), other_wrong=np.array([[2, 1]]))
    assert tables.row_images.tolist() == [[6, 3]]
    assert tables.num_images == 9


def test_groups_must_differ_and_fit():
    tables = draw_tables(10, group="a") + draw_tables(10, group="b")
    with pytest.raises(ValueError, match="not all different"):
        EvaluationTables.from_arrays(("a", "a"), tables.to_arrays())
    with pytest.raises(ValueError, match="'counts' has shape"):
        EvaluationTables.from_arrays(("a",), tables.to_arrays())
    with pytest.raises(ValueError, match="no group 'c'"):
        tables.select("c")


def test_tables_without_shared_scores_are_allowed():
    arrays = draw_tables(10).to_arrays()
    arrays["scores"] = np.zeros_like(arrays["scores"])
    assert EvaluationTables.from_arrays(("a",), arrays).num_images == 10


def test_sums_need_at_least_one_table_and_the_same_classes():
    with pytest.raises(ValueError, match="no tables"):
        combine_tables([])
    with pytest.raises(ValueError, match=r"\[2, 7\] classes"):
        draw_tables(5) + draw_tables(5, shares=(0.5, 0.5))


def test_tables_of_some_classes_keep_their_alerts_and_all_alert_scores():
    own = draw_tables(60, shares=(0.5, 0.3, 0.2))
    alerts_GK2 = np.stack([own.row_images, own.row_images // 2], axis=-1)
    decision = np.zeros_like(own.decision)
    decision[0, 1, 7] = 60
    kept = dataclasses.replace(own, alerts=alerts_GK2, decision=decision).keep_classes(np.array([True, False, True]))
    assert (alerts_GK2[0, :, 0] > 0).all()
    np.testing.assert_array_equal(kept.alerts[0], alerts_GK2[0] * [[1], [0], [1]])
    np.testing.assert_array_equal(kept.decision, decision)
    np.testing.assert_array_equal(kept.counts[0, 1], [0, 0, 0])

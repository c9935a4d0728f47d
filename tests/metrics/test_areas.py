"""The area under the ROC curve at a site, against scikit-learn and against sums over all pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedmed.metrics.areas import area_intervals, measure_area, pooled_areas
from fedmed.metrics.tables import log_odds, tables_from_logits
from tests.metrics.support.samples import draw_predictions, draw_tables

SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=25)
"""Whether an image is of the class, its score, its patient."""


def measure(images):
    own = np.array([is_own for is_own, _, _ in images])
    scores, who = (np.array([image[place] for image in images]) for place in (1, 2))
    return measure_area(scores[own].astype(float), scores[~own].astype(float), who[own], who[~own])


def by_all_pairs(images):
    """Area and clustered variance as Obuchowski (1997) writes them, with loops."""
    own = [(score, who) for is_own, score, who in images if is_own]
    others = [(score, who) for is_own, score, who in images if not is_own]

    def psi(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    theta = float(np.mean([[psi(x, y) for y, _ in others] for x, _ in own]))
    people = sorted({who for _, _, who in images})
    placed = [
        (
            sum(np.mean([psi(x, y) for y, _ in others]) - theta for x, who in own if who == person),
            sum(np.mean([psi(x, y) for x, _ in own]) - theta for y, who in others if who == person),
        )
        for person in people
    ]
    i10, i01 = len({who for _, who in own}), len({who for _, who in others})
    m, n = len(own), len(others)
    s10 = i10 / ((i10 - 1) * m) * sum(a * a for a, _ in placed)
    s01 = i01 / ((i01 - 1) * n) * sum(b * b for _, b in placed)
    s11 = len(people) / (len(people) - 1) * sum(a * b for a, b in placed)
    return theta, s10 / m + s01 / n + 2 * s11 / (m * n), i10, i01


@settings(max_examples=200, deadline=None)
@given(SCORES)
def test_clustered_variance_is_that_of_all_pairs(images):
    found = measure(images)
    if not 0 < sum(is_own for is_own, _, _ in images) < len(images):
        assert not found.any()
        return
    people = [{who for is_own, _, who in images if is_own is side} for side in (True, False)]
    if min(map(len, people)) < 2:
        assert found[2:4].max() >= found[0] ** 2 / 4
        return
    theta, variance, i10, i01 = by_all_pairs(images)
    assert found[1] / found[0] == pytest.approx(theta)
    assert found[2:5].sum() / found[0] ** 2 == pytest.approx(variance, abs=1e-12)
    assert (found[5], found[6]) == (i10, i01)


def test_single_images_have_delongs_variance():
    """By hand: scores 3, 1 against 2, 0: placements 1, 1/2 and 1/2, 1, both with variance 1/8."""
    found = measure([(True, 3, 0), (True, 1, 1), (False, 2, 2), (False, 0, 3)])
    assert found[:2].tolist() == [4, 3]
    # The parts that both kinds of images share are of different patients: 4/3 * sum of products, which are all 0.
    assert found[2:5].sum() / 16 == pytest.approx((1 / 8) / 2 + (1 / 8) / 2)


def test_areas_of_tables_are_scikit_learns():
    logits, labels = draw_predictions(400, seed=4)
    tables = tables_from_logits(logits, labels, ["a"] * 400)
    odds = log_odds(logits.numpy())
    for k in range(7):
        expected = roc_auc_score(labels.numpy() == k, odds[:, k])
        assert tables.areas[0, k, 1] / tables.areas[0, k, 0] == pytest.approx(expected, abs=1e-12)


def test_sites_are_pooled_by_numbers_of_pairs():
    """2 of 2 pairs at one site and 0 of 1 at the other: 2/3, whatever an image of one is against the other's."""
    first = tables_from_logits(torch.tensor([[1.0, 0], [0, 1], [0, 2]]), torch.tensor([0, 1, 1]), ["a"] * 3)
    second = tables_from_logits(torch.tensor([[9.0, 0], [0, 5]]), torch.tensor([1, 0]), ["b"] * 2)
    pooled = (first + second).pool()
    assert pooled.areas[0, 0, :2].tolist() == [3, 2]
    assert pooled_areas(pooled.areas[0]).by_class.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert pooled_areas(np.zeros((2, 7))).value != pooled_areas(np.zeros((2, 7))).value  # not a number


def test_intervals_hold_the_truth():
    """True area .76 of normal scores one apart, 300 draws of 30 and 60 images: at least 92 % of 95 % intervals."""
    rng = np.random.default_rng(3)
    truth, held = 0.7602, 0
    for _ in range(300):
        own, others = rng.normal(1, 1, 30), rng.normal(0, 1, 60)
        _, ends = area_intervals(measure_area(own, others, np.arange(30), np.arange(30, 90))[None])
        held += int(ends[0, 0] <= truth <= ends[1, 0])
    assert held / 300 >= 0.92


@pytest.mark.parametrize(("own", "others"), [([2.0] * 6, [1.0] * 4), ([0.0] * 3, [1.0] * 9), ([1.0] * 4, [1.0] * 4)])
def test_no_interval_has_width_zero(own, others):
    areas = measure_area(np.array(own), np.array(others), np.arange(len(own)), np.arange(len(others)) + len(own))
    value, ends = area_intervals(areas[None])
    assert ends[1, 0] - ends[0, 0] > 0.1
    assert ends[0, 0] <= areas[1] / areas[0] <= ends[1, 0]
    assert value.tolist() == ends[:, 0].tolist()


def test_a_class_without_pairs_has_no_interval():
    areas = draw_tables(200, shares=(0.5, 0.5, 1e-9)).areas[0]
    value, ends = area_intervals(areas)
    assert np.isnan(ends[:, 2]).all()
    np.testing.assert_allclose(value, ends[:, :2].mean(axis=1))

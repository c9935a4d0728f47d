"""How many images several images of one patient are worth."""

import numpy as np
import pytest

from fedmed.fairness.figures.class_sets import find_class_set
from fedmed.fairness.figures.design_effects import count_effective, design_effects, find_correlation
from fedmed.fairness.figures.draws import deal_rows
from fedmed.metrics.clusters import assume_single_images, count_clusters


def test_single_images_are_worth_an_image_exactly():
    right, images = np.array([[3, 7], [0, 5]]), np.array([[10, 9], [0, 5]])
    effects = design_effects(right, images, assume_single_images(right, images))
    assert effects.tolist() == [[1, 1], [1, 1]]
    assert design_effects(right, images, np.zeros((2, 2, 4))).tolist() == [[1, 1], [1, 1]]


def test_images_that_are_answered_alike_are_worth_one_a_patient():
    """Four patients with three images, two patients all right and two all wrong: 12 images are worth 4."""
    row, patient = np.zeros(12, np.int64), np.repeat(np.arange(4), 3)
    clusters = count_clusters(row, patient, np.repeat([True, True, False, False], 3), 1)
    effects = design_effects(np.array([6]), np.array([12]), clusters)
    assert effects == pytest.approx([3.0])
    assert count_effective(np.array([12]), effects).tolist() == [4]


def test_a_row_without_wrong_answers_borrows_the_correlation_of_the_others():
    """Row 0 as above; row 1 has 6 images of two patients, all right, so that it tells nothing itself."""
    row, patient = np.repeat([0, 1], [12, 6]), np.repeat(np.arange(6), 3)
    right = np.r_[np.repeat([True, True, False, False], 3), np.ones(6, np.bool_)]
    clusters = count_clusters(row, patient, right, 2)
    assert design_effects(np.array([6, 6]), np.array([12, 6]), clusters) == pytest.approx([3.0, 3.0])
    alone = count_clusters(np.zeros(6, np.int64), np.repeat([0, 1], 3), np.ones(6, np.bool_), 1)
    assert find_correlation(np.array([6]), np.array([6]), alone) == 1.0


def test_the_correlation_is_found_again():
    """Chances of patients from a beta distribution, whose correlation of two answers is 1 / (a + b + 1)."""
    rng = np.random.default_rng(0)
    chance = rng.beta(0.75, 0.25, 4000)
    right = rng.random((4000, 5)) < chance[:, None]
    clusters = count_clusters(np.zeros(20000, np.int64), np.repeat(np.arange(4000), 5), right.ravel(), 1)
    found = find_correlation(np.array([right.sum()]), np.array([20000]), clusters)
    assert found == pytest.approx(0.5, abs=0.03)


def test_dealing_out_keeps_every_answer_and_every_size():
    counts = np.array([[[8, 2], [1, 9]], [[3, 3], [0, 5]], [[0, 4], [2, 2]]])
    sizes = counts.sum(axis=-1)
    dealt = deal_rows(np.random.default_rng(0), sizes, counts, 2000)
    assert (dealt.sum(axis=1) == counts.sum(axis=0)).all()
    assert (dealt.sum(axis=-1) == sizes).all()
    # Each group is expected to get its share: 11 of 20 answers are right in class 0.
    assert dealt[:, :, 0, 0].mean(axis=0) == pytest.approx(sizes[:, 0] * 11 / 20, rel=0.03)


def test_fewer_images_are_dealt_out_in_the_same_shares():
    """Half of 20 images, 11 of 20 of them right: 5 or 6 right answers, as the larger remainder has it."""
    counts = np.array([[[8, 2], [1, 9]], [[3, 7], [0, 10]]])
    dealt = deal_rows(np.random.default_rng(0), np.array([[5, 5], [5, 5]]), counts, 10)
    assert set(dealt[:, :, 0, 0].sum(axis=1).tolist()) <= {5, 6}
    assert (dealt.sum(axis=-1) == 5).all()


@pytest.mark.parametrize(
    ("images", "groups", "classes"),
    [
        ([[5, 5, 5], [9, 9, 9]], [1, 1], [1, 1, 1]),
        ([[5, 5, 0], [9, 9, 9]], [1, 1], [1, 1, 0]),
        ([[5, 0, 0], [9, 9, 9], [3, 3, 3]], [0, 1, 1], [1, 1, 1]),  # one class is not ranked
        ([[5, 5, 0, 0], [9, 9, 9, 0], [0, 0, 9, 9]], [1, 1, 0], [1, 1, 0, 0]),  # the smaller one of two classes goes
        ([[5, 5, 0, 0], [0, 0, 9, 9]], [0, 0], [0, 0, 0, 0]),
    ],
)
def test_groups_are_compared_over_common_classes(images, groups, classes):
    found = find_class_set(np.array(images))
    assert found.groups.tolist() == [bool(one) for one in groups]
    assert found.classes.tolist() == [bool(one) for one in classes]

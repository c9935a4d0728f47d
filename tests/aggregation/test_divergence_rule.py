"""Weights by the distance from a shared teacher, by hand."""

import pytest

from fedmed.aggregation.divergence_rule import (
    SMALLEST_DISTANCE,
    compute_divergence,
    find_divergence_breach,
    weigh_by_divergence,
)
from fedmed.aggregation.rule import normalise
from fedmed.protocol.reports import TrainReport


def test_two_sites_one_without_a_class() -> None:
    """Site a has three classes: w = (1, 2, 1) / 4, v = (0.5, 1, 0.5) / 2, so r = (1 + 4 + 1) / 16 = 3/8.

    Site b lacks the second: w = (3, 1) / 4, v = (1, 1) / 2, so r = 1/2. The weights of ``mas`` are 3/7 and 4/7.
    """
    a = compute_divergence([1.0, 2.0, 1.0], [0.5, 1.0, 0.5])
    b = compute_divergence([3.0, None, 1.0], [1.0, None, 1.0])
    assert (a, b) == (pytest.approx(3 / 8), pytest.approx(1 / 2))
    assert a is not None
    assert b is not None
    weights = weigh_by_divergence({"a": 100, "b": 20}, {"a": a, "b": b}, size_power=0.0, divergence_power=1.0)
    assert weights == pytest.approx({"a": 3 / 7, "b": 4 / 7})
    assert sum(weights.values()) == pytest.approx(1.0)


def test_the_inverse_takes_one_by_the_distance_in_training() -> None:
    """w = (3, 1) / 4; 1 / v = (1/2, 2), whose sum is 5/2: (1/5, 4/5). r = 3/4 * 1/5 + 1/4 * 4/5 = 7/20."""
    assert compute_divergence([3.0, 1.0], [2.0, 0.5], inverse=True) == pytest.approx(7 / 20)
    assert compute_divergence([3.0, None, 1.0], [2.0, None, 0.5], inverse=True) == pytest.approx(7 / 20)


def test_a_class_at_distance_0_divides_by_nothing() -> None:
    """1 / v of that class is all there is, so r is its w: 3/4."""
    assert compute_divergence([3.0, 1.0], [0.0, 0.5], inverse=True) == pytest.approx(3 / 4, abs=1e-5)
    assert compute_divergence([0.0, 0.0], [0.0, -1e-7], inverse=True) == pytest.approx(1 / 2)
    assert compute_divergence([0.0, 0.0], [0.0, 0.0]) == pytest.approx(1 / 2)
    assert SMALLEST_DISTANCE < 2**-19


def test_only_classes_with_both_means_count() -> None:
    assert compute_divergence([1.0, 2.0], [1.0, None]) == 1.0
    assert compute_divergence([None, 2.0], [1.0, None]) is None
    assert compute_divergence([0.3, 0.3, 0.3], [0.1, 0.1, 0.1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("floor", [0, 20, 1000])
def test_powers_1_and_0_are_fedavg_to_the_last_bit(floor: int) -> None:
    images = {"a": 1013, "b": 7, "c": 391, "d": 19}
    told = {"a": 0.13, "b": 0.9, "c": 0.31, "d": 1.0}
    weights = weigh_by_divergence(images, told, size_power=1.0, divergence_power=0.0, floor=floor)
    assert weights == normalise(images)


def test_the_recommended_experiment() -> None:
    """a = 1/2, b = 1: sqrt(100) * 0.2 = 2 and sqrt(25) * 0.6 = 3."""
    weights = weigh_by_divergence(
        {"a": 100, "b": 25}, {"a": 0.2, "b": 0.6}, size_power=0.5, divergence_power=1.0, floor=20
    )
    assert weights == pytest.approx({"a": 2 / 5, "b": 3 / 5})


def test_a_site_below_the_floor_keeps_its_share_of_the_images() -> None:
    """c has 2 of 200 images, so 1/100; a and b share 99/100 as 0.2 to 0.6. Without the floor c would have 1 / 1.8."""
    images, told = {"a": 99, "b": 99, "c": 2}, {"a": 0.2, "b": 0.6, "c": 1.0}
    weights = weigh_by_divergence(images, told, size_power=0.0, divergence_power=1.0, floor=20)
    assert weights == pytest.approx({"a": 0.99 / 4, "b": 0.99 * 3 / 4, "c": 0.01})
    plain = weigh_by_divergence(images, told, size_power=0.0, divergence_power=1.0)
    assert plain["c"] == pytest.approx(1 / 1.8)


def test_of_few_images_it_does_not_leave() -> None:
    told = {"loss": 0.5, "learning_rate": 0.1, "train_s": 1.0}
    assert find_divergence_breach(TrainReport(num_images=10, mas_weight=0.5, **told), 10) is None
    assert find_divergence_breach(TrainReport(num_images=3, **told), 10) is None
    found = find_divergence_breach(TrainReport(num_images=9, mas_weight=0.5, **told), 10)
    assert "fewer than k = 10 images" in str(found)

"""Predictive values at a stated prevalence: by hand, and how often the intervals hold."""

import numpy as np
import pytest

from fedmed.fairness.chance.predictive_values import predict_at
from fedmed.fairness.chance.proportions import wilson_interval


def test_they_follow_from_bayes_and_the_interval_from_that_of_the_ratio() -> None:
    """Sensitivity 90 of 100, specificity 160 of 200, prevalence 0.1: odds 1/9 times the ratio 0.9 / 0.2.

    An end L of the ratio a / b is where ``(a - L b)^2 = (a - l)^2 + L^2 (u - b)^2`` (Fieller's form of it).
    """
    found = predict_at((90, 100), (160, 200), 0.1)
    value, (low, high) = found["ppv"]
    assert value == pytest.approx(0.09 / (0.09 + 0.2 * 0.9))
    (low_a, high_a), (low_b, high_b) = (
        np.ravel(wilson_interval(np.array(x), np.array(n))) for x, n in ((90, 100), (40, 200))
    )
    for end, of_a, of_b in ((low, low_a, high_b), (high, high_a, low_b)):
        ratio = end / (1 - end) * 9
        assert (0.9 - ratio * 0.2) ** 2 == pytest.approx((0.9 - of_a) ** 2 + ratio**2 * (of_b - 0.2) ** 2)
    value, (low, high) = found["npv"]
    assert value == pytest.approx(0.8 * 0.9 / (0.8 * 0.9 + 0.1 * 0.1))
    assert low < value < high < 1


def test_intervals_are_never_of_width_zero() -> None:
    for right, of in ((0, 30), (30, 30), (1, 1), (0, 1)):
        for other in (0, 50):
            for value, (low, high) in predict_at((right, of), (other, 50), 0.05).values():
                assert 0 <= low < high <= 1
                assert value is None or low <= value <= high


@pytest.mark.parametrize(
    ("n_with", "n_without", "sensitivity", "specificity", "prevalence"),
    [(60, 150, 0.85, 0.75, 0.1), (10, 50, 0.95, 0.95, 0.1), (5, 20, 0.6, 0.9, 0.1), (200, 800, 0.98, 0.99, 0.05)],
)
def test_they_hold_the_truth(
    n_with: int, n_without: int, sensitivity: float, specificity: float, prevalence: float
) -> None:
    """Of 1,000 with a rate of .93, fewer than 905 hold in 1 of 1,000 cases."""
    rng, hits = np.random.default_rng(0), {"ppv": 0, "npv": 0}
    sick, well = sensitivity * prevalence, specificity * (1 - prevalence)
    truth = {"ppv": sick / (sick + 1 - prevalence - well), "npv": well / (well + prevalence - sick)}
    for _ in range(1000):
        right, cleared = rng.binomial(n_with, sensitivity), rng.binomial(n_without, specificity)
        for key, (_, (low, high)) in predict_at((right, n_with), (cleared, n_without), prevalence).items():
            hits[key] += low <= truth[key] <= high
    assert min(hits.values()) >= 905

"""The interval of a net benefit, by hand and against simulated hospitals."""

import numpy as np
import pytest

from fedmed.fairness.chance.net_benefit import AlertCounts, bound_net_benefit
from fedmed.fairness.chance.proportions import proportion_interval


def test_ends_by_hand() -> None:
    """40 of 50 found, 30 of 150 false, at t = 1/4: 40/200 - 30/200/3 = 0.15. Slopes 1/4, 3/4/3 and 4/5 + 1/5/3."""
    ends = bound_net_benefit(AlertCounts(50, 40, 150, 30), 0.25)
    low, high = proportion_interval(np.array([40, 120, 50]), np.array([50, 150, 200]))
    slopes, shares = np.array([0.25, 0.25, 0.8 + 0.2 / 3]), np.array([0.8, 0.8, 0.25])
    assert ends is not None
    assert ends[0] == pytest.approx(0.15 - np.linalg.norm(slopes * (shares - low)))
    assert ends[1] == pytest.approx(0.15 + np.linalg.norm(slopes * (high - shares)))


def test_where_no_image_is_of_one_kind_there_is_none() -> None:
    assert bound_net_benefit(AlertCounts(0, 0, 10, 3), 0.5) is None
    assert bound_net_benefit(AlertCounts(10, 3, 0, 0), 0.5) is None


@pytest.mark.parametrize("counts", [AlertCounts(1, 1, 1, 0), AlertCounts(5, 0, 20, 0), AlertCounts(5, 5, 20, 20)])
def test_it_has_a_width_and_stays_where_a_net_benefit_can_be(counts: AlertCounts) -> None:
    ends = bound_net_benefit(counts, 0.5)
    assert ends is not None
    assert -1 <= ends[0] < ends[1] - 0.05 < 1


@pytest.mark.parametrize(
    ("size", "prevalence", "sensitivity", "specificity", "threshold", "per_patient"),
    [
        (200, 0.1, 0.9, 0.8, 0.1, 1),
        (60, 0.1, 0.9, 0.9, 0.1, 1),
        (100, 0.5, 0.99, 0.99, 0.5, 1),
        (500, 0.3, 0.9, 0.8, 0.2, 5),
    ],
)
def test_it_holds_the_truth(  # noqa: PLR0917
    size: int, prevalence: float, sensitivity: float, specificity: float, threshold: float, per_patient: int
) -> None:
    """Of 400 hospitals with a rate of .95, fewer than 364 hold in 1 of 1,000 cases; several images have correlation .5.

    A patient's chance of an alert is then of a beta distribution with a + b = 1.
    """
    odds, rng, held, told = threshold / (1 - threshold), np.random.default_rng(size), 0, 0
    truth = prevalence * sensitivity - (1 - prevalence) * (1 - specificity) * odds
    for _ in range(400):
        is_sick = rng.random(size // per_patient) < prevalence
        chance = np.where(is_sick, sensitivity, 1 - specificity)
        if per_patient > 1:
            chance = rng.beta(chance, 1 - chance)
        alerts = rng.binomial(per_patient, chance)
        n_with = int(is_sick.sum()) * per_patient
        counts = AlertCounts(n_with, int(alerts[is_sick].sum()), size - n_with, int(alerts[~is_sick].sum()))
        effect = 1 + 0.5 * (per_patient - 1)
        ends = bound_net_benefit(counts, threshold, (effect, effect, per_patient))
        if ends is not None:
            told, held = told + 1, held + (ends[0] <= truth <= ends[1])
    assert told > 380
    assert 364 / 400 <= held / told <= 0.985

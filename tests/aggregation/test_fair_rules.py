"""Every rule on a small convex problem whose solution is derived by hand.

Site k has the loss ``F_k(w) = h_k (w - c_k)^2 / 2 + e_k`` of one number w, and sends back one step of gradient descent,
``w_k = w - lr h_k (w - c_k)``.
"""

import math
from dataclasses import dataclass

import pytest

from fedmed.aggregation.fair_rules import ascend_simplex, weigh_by_gap_to_local, weigh_by_loss_power
from fedmed.aggregation.group_rules import weigh_by_gap_distance, weigh_groups
from fedmed.aggregation.rule import normalise

LR = 0.05


@dataclass(frozen=True)
class Quadratic:
    centre: float
    curvature: float = 1.0
    floor: float = 0.0

    def loss(self, w):
        return self.curvature * (w - self.centre) ** 2 / 2 + self.floor

    def train(self, w, lr=LR):
        return w - lr * self.curvature * (w - self.centre)


def next_model(w, trained, weights):
    return w - sum(weights[site] * (w - trained[site]) for site in weights)


def losses_at(w, sites):
    return {name: site.loss(w) for name, site in sites.items()}


def train_all(w, sites):
    return {name: site.train(w) for name, site in sites.items()}


@pytest.mark.parametrize("q", [0.0, 0.2, 1.0, 3.0])
def test_q_fedavg_finds_the_minimum_of_its_objective(q):
    """F_a = w^2/2 and F_b = (w-1)^2/2 with shares 3/4 and 1/4.

    The derivative of (3/4 F_a^(q+1) + 1/4 F_b^(q+1)) / (q+1) is 3/4 F_a^q w - 1/4 F_b^q (1-w), and 0 where
    3 w^(2q+1) = (1-w)^(2q+1): w / (1-w) = 3^(-1/(2q+1)). q = 0 gives FedAvg's 1/4.
    """
    sites = {"a": Quadratic(0.0), "b": Quadratic(1.0)}
    w = 0.9
    for _ in range(3000):
        trained = train_all(w, sites)
        norms = {name: abs(w - value) for name, value in trained.items()}
        shares = {"a": 0.75, "b": 0.25}
        weights = weigh_by_loss_power(shares, losses_at(w, sites), norms, q=q, lipschitz=1 / LR)
        w = next_model(w, trained, weights)
    ratio = 3 ** (-1 / (2 * q + 1))
    assert w == pytest.approx(ratio / (1 + ratio), abs=1e-6)


def test_large_q_comes_near_the_minimax():
    """The limit of 3^(-1/(2q+1)) is 1, so w goes to 1/2, where both losses are equal; at q = 10 it is 0.48692."""
    ratio = 3 ** (-1 / 21)
    sites = {"a": Quadratic(0.0), "b": Quadratic(1.0)}
    w = 0.4
    for _ in range(20000):
        trained = train_all(w, sites)
        norms = {name: abs(w - value) for name, value in trained.items()}
        weights = weigh_by_loss_power({"a": 0.75, "b": 0.25}, losses_at(w, sites), norms, q=10, lipschitz=1 / LR)
        w = next_model(w, trained, weights)
    assert w == pytest.approx(ratio / (1 + ratio), abs=1e-6)
    assert w == pytest.approx(0.4869, abs=1e-4)


def test_q_fedavg_by_hand():
    """p = 1/2, F = (1, 4), ||w - w_k|| = (3, 1), q = 1, L = 2: a_k = F_k / (2*9 + 2*1 + 1 + 4)."""
    weights = weigh_by_loss_power({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 1.0}, q=1, lipschitz=2.0)
    assert weights == pytest.approx({"a": 1 / 25, "b": 4 / 25})


def test_q_0_is_fedavg_whatever_the_losses():
    shares = {"a": 0.9, "b": 0.1}
    assert weigh_by_loss_power(shares, {"a": 0.0, "b": 7.0}, {"a": 9.0, "b": 9.0}, q=0, lipschitz=50) == shares


def test_losses_of_zero_and_large_powers_stay_finite():
    weights = weigh_by_loss_power({"a": 0.5, "b": 0.5}, {"a": 0.0, "b": 1e5}, {"a": 1.0, "b": 1.0}, q=10, lipschitz=9.0)
    assert weights["a"] == pytest.approx(0.0)
    assert 0.9 < weights["b"] <= 1.0
    all_zero = weigh_by_loss_power({"a": 0.5, "b": 0.5}, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, q=2, lipschitz=9.0)
    assert sum(all_zero.values()) == pytest.approx(1.0)


def test_agnostic_makes_the_worst_losses_equal():
    """F_a = w^2/2 and F_b = (w-1)^2 are equal where w = sqrt(2) (1-w): w = 2 - sqrt(2).

    There the weighted gradient l w - (1-l) 2 (1-w) is 0 for l/(1-l) = 2 (1-w)/w = sqrt(2): l = 2 - sqrt(2) too.
    """
    sites = {"a": Quadratic(0.0), "b": Quadratic(1.0, curvature=2.0)}
    w, weights = 0.0, {"a": 0.9, "b": 0.1}
    for _ in range(4000):
        weights = ascend_simplex(weights, losses_at(w, sites), 0.1)
        w = next_model(w, train_all(w, sites), weights)
    assert w == pytest.approx(2 - math.sqrt(2), abs=1e-6)
    assert weights["a"] == pytest.approx(2 - math.sqrt(2), abs=1e-5)


def test_agnostic_follows_a_site_that_is_always_worse():
    """F_b = (w-1)^2/2 + 1 is above F_a = w^2/2 everywhere between them, so the minimax is b's own minimum, w = 1."""
    sites = {"a": Quadratic(0.0), "b": Quadratic(1.0, floor=1.0)}
    w, weights = 0.0, {"a": 0.9, "b": 0.1}
    for _ in range(2000):
        weights = ascend_simplex(weights, losses_at(w, sites), 0.1)
        w = next_model(w, train_all(w, sites), weights)
    assert w == pytest.approx(1.0, abs=1e-6)
    assert weights["b"] == pytest.approx(1.0)


def test_a_name_without_a_loss_keeps_its_place_beside_the_mean():
    """exp(step (F - mean)) with F_a = 1, F_b = 3 and equal weights: the mean is 2, the third is multiplied by 1."""
    moved = ascend_simplex({"a": 1.0, "b": 1.0, "c": 2.0}, {"a": 1.0, "b": 3.0}, math.log(2))
    assert moved == pytest.approx(normalise({"a": 0.5, "b": 2.0, "c": 2.0}))


def test_group_minimax_makes_the_worst_groups_equal():
    """Images are numbers x with the loss (w-x)^2/2. Group a: x = 0. Group b: x = 1 and x = 3 in equal parts.

    r_a = w^2/2 and r_b = ((w-1)^2 + (w-3)^2)/4 = (w-2)^2/2 + 1/2 are equal where w^2 = (w-2)^2 + 1: w = 5/4, and that
    lies between their minima. Without weights, 40 images of a and 12 of b give w = 24/52.
    """
    images = {"north": {"a": [0.0] * 30, "b": [1.0] * 6 + [3.0] * 2}, "south": {"a": [0.0] * 10, "b": [3.0] * 4}}
    count = {"a": 40, "b": 12}
    shares = {group: n / 52 for group, n in count.items()}
    w, weights = 0.0, dict(shares)
    for _ in range(6000):
        sums = {g: sum((w - x) ** 2 / 2 for site in images.values() for x in site[g]) for g in count}
        by_image = weigh_groups(weights, shares)
        trained, site_shares = {}, {}
        for site, groups in images.items():
            n = sum(map(len, groups.values()))
            slope = sum(by_image[g] * (w - x) for g, values in groups.items() for x in values) / n
            trained[site], site_shares[site] = w - LR * slope, n / 52
        w = next_model(w, trained, site_shares)
        weights = ascend_simplex(weights, {g: sums[g] / count[g] for g in count}, 0.05)
    assert w == pytest.approx(1.25, abs=1e-6)
    assert sum(shares[g] * weigh_groups(weights, shares)[g] for g in count) == pytest.approx(1.0)


def test_fairfed_ends_at_the_site_whose_gap_is_that_of_all():
    """The gaps between groups are F_k = s_k |w - 1| with s = (1, 2, 3), that of all is F = 2 |w - 1|.

    The distances are (1, 0, 1) |w - 1|, so site b gains until the distances are all 0, which is at w = 1, or until its
    weight is 1, which with its own minimum at 1 ends at w = 1 as well. FedAvg stays at w = (0 + 1 + 5)/3 = 2.
    """
    sites = {"a": Quadratic(0.0), "b": Quadratic(1.0), "c": Quadratic(5.0)}
    slopes = {"a": 1.0, "b": 2.0, "c": 3.0}
    w, weights = 2.0, dict.fromkeys(sites, 1 / 3)
    for _ in range(1000):
        distances = {name: abs(slope * abs(w - 1) - 2 * abs(w - 1)) for name, slope in slopes.items()}
        weights = weigh_by_gap_distance(weights, distances, 0.05)
        w = next_model(w, train_all(w, sites), weights)
    assert w == pytest.approx(1.0, abs=1e-6)
    assert weights["b"] > 0.9


def test_fairfed_by_hand():
    """Mean distance 0.2: 0.5 - 0.5 (0.1 - 0.2) = 0.55, 0.25 - 0.5 (0.3 - 0.2) = 0.2, c stays at 0.25."""
    moved = weigh_by_gap_distance({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 0.1, "b": 0.3}, 0.5)
    assert moved == pytest.approx({"a": 0.55, "b": 0.20, "c": 0.25})


def test_fairfed_stops_at_zero():
    moved = weigh_by_gap_distance({"a": 0.9, "b": 0.1}, {"a": 0.0, "b": 1.0}, 1.0)
    assert moved == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_gap_to_local_in_closed_form(strength):
    """F_a = w^2/2, F_b = (w-1)^2/2, shares 1/2, local losses 0.3 and 0.1; e = 0.2 is their difference.

    g_a - g_b = w - 1/2 - e, and the variance of two gaps with equal shares is (g_a - g_b)^2/4. The objective
    (F_a + F_b)/2 + lambda (w - 1/2 - e)^2/4 has its minimum where w - 1/2 + lambda/2 (w - 1/2 - e) = 0:
    w = 1/2 + lambda e / (2 + lambda). Site a, whose own model is poor, can afford more.
    """
    sites, local = {"a": Quadratic(0.0), "b": Quadratic(1.0)}, {"a": 0.3, "b": 0.1}
    w = 0.0
    for _ in range(2000):
        weights = weigh_by_gap_to_local({"a": 0.5, "b": 0.5}, losses_at(w, sites), local, strength)
        w = next_model(w, train_all(w, sites), weights)
    assert w == pytest.approx(0.5 + strength * 0.2 / (2 + strength), abs=1e-9)


def test_gap_to_local_clips_and_leaves_sites_without_a_gap_alone():
    """Gaps 0 and 4 with shares 3/8 each: mean 2; 1 + 2 (0 - 2) is below 0, 1 + 2 (4 - 2) = 5, c has the factor 1."""
    shares = {"a": 0.375, "b": 0.375, "c": 0.25}
    weights = weigh_by_gap_to_local(shares, {"a": 1.0, "b": 5.0, "c": 9.0}, {"a": 1.0, "b": 1.0}, 1.0)
    assert weights == pytest.approx(normalise({"a": 0.0, "b": 1.875, "c": 0.25}))


def test_gap_to_local_without_any_gap_is_fedavg():
    assert weigh_by_gap_to_local({"a": 3.0, "b": 1.0}, {}, {}, 1.0) == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": math.nan}, {"a": math.inf}])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="must be finite, not negative"):
        normalise(weights)

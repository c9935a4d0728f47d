"""Predictive values and net benefit, against the papers' formulas and against counting."""

import numpy as np
import pytest

from fedmed.clinical.scores import count_scores
from fedmed.clinical.values import THRESHOLDS, draw_curve, net_benefit, predict_at


def test_predictive_values_follow_from_bayes_and_have_the_logit_interval() -> None:
    """Sensitivity 90 of 100, specificity 160 of 200, prevalence 0.1: by hand."""
    found = predict_at((90, 100), (160, 200), 0.1)
    value, (low, high) = found["ppv"]
    assert value == pytest.approx(0.09 / (0.09 + 0.2 * 0.9))
    centre = np.log(0.9 * 0.1 / (0.2 * 0.9))
    width = 1.959964 * np.sqrt(0.1 / (0.9 * 100) + 0.8 / (0.2 * 200))
    assert (low, high) == pytest.approx((1 / (1 + np.exp(-(centre - width))), 1 / (1 + np.exp(-(centre + width)))))
    value, (low, high) = found["npv"]
    assert value == pytest.approx(0.8 * 0.9 / (0.8 * 0.9 + 0.1 * 0.1))
    assert low < value < high < 1


def test_intervals_are_never_of_width_zero() -> None:
    for right, of in ((0, 30), (30, 30)):
        for other in (0, 50):
            for value, (low, high) in predict_at((right, of), (other, 50), 0.05).values():
                assert 0 <= low < high <= 1
                assert value is None or low <= value <= high


def test_coverage_at_a_stated_prevalence() -> None:
    rng = np.random.default_rng(0)
    truth = 0.85 * 0.1 / (0.85 * 0.1 + 0.25 * 0.9)
    hits = 0
    for _ in range(1000):
        low, high = predict_at((rng.binomial(60, 0.85), 60), (rng.binomial(150, 0.75), 150), 0.1)["ppv"][1]
        hits += low <= truth <= high
    assert 0.92 < hits / 1000 < 0.98


def test_net_benefit_equals_counting() -> None:
    rng = np.random.default_rng(1)
    is_alert = rng.random(400) < 0.3
    scores = rng.normal(np.where(is_alert, 0.5, -1.5), 1.2)
    counts = count_scores(scores, is_alert)[..., 0].astype(np.int64)
    curve = draw_curve([counts], is_merged=False)
    assert curve is not None
    for place in (0, 9, 29, 49, 79):
        odds = THRESHOLDS[place] / (1 - THRESHOLDS[place])
        raised = scores >= np.log(odds)
        truth = ((raised & is_alert).sum() - (raised & ~is_alert).sum() * odds) / 400
        assert curve.low[place] - 1e-12 <= truth <= curve.high[place] + 1e-12
        assert curve.value[place] == pytest.approx(truth, abs=0.02)
        assert curve.all[place] == pytest.approx(is_alert.mean() - (~is_alert).mean() * odds)
    assert net_benefit(30, 10, 100, 0.2) == pytest.approx(0.3 - 0.1 / 4)


def test_a_site_without_scores_of_one_kind_has_no_curve() -> None:
    counts = count_scores(np.zeros(20), np.ones(20, bool))[..., 0].astype(np.int64)
    assert draw_curve([counts], is_merged=False) is None

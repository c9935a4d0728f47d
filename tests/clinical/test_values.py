"""Net benefit, against counting."""

import numpy as np
import pytest

from fedmed.clinical.scores import count_scores
from fedmed.clinical.values import THRESHOLDS, KnownPoint, SiteScores, draw_curve, net_benefit


def test_net_benefit_equals_counting() -> None:
    rng = np.random.default_rng(1)
    is_alert = rng.random(400) < 0.3
    scores = rng.normal(np.where(is_alert, 0.5, -1.5), 1.2)
    counts = count_scores(scores, is_alert)[..., 0].astype(np.int64)
    curve = draw_curve([SiteScores(counts)], is_merged=False)
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
    assert draw_curve([SiteScores(counts)], is_merged=False) is None


def test_a_curve_of_merged_bins_goes_through_a_point_that_is_known() -> None:
    rng = np.random.default_rng(2)
    is_alert = rng.random(300) < 0.3
    scores = rng.normal(np.where(is_alert, 1, -1), 2)
    counts = count_scores(scores, is_alert, k_bin=25, k_row=5)[..., 0].astype(np.int64)
    n = np.array([is_alert.sum(), (~is_alert).sum()])
    raised = np.array([(rows & (scores >= -0.3)).sum() for rows in (is_alert, ~is_alert)])
    at = np.array([0.1, 1 / (1 + np.exp(0.3)), 0.8])
    curve = draw_curve([SiteScores(counts, KnownPoint(-0.3, n, raised))], is_merged=True, thresholds_T=at)
    assert curve is not None
    truth = (raised[0] - raised[1] * np.exp(-0.3)) / 300
    assert (curve.low[1], curve.value[1], curve.high[1]) == pytest.approx((truth, truth, truth))
    for place in (0, 2):
        own = [((scores >= np.log(at[place] / (1 - at[place]))) & rows).sum() for rows in (is_alert, ~is_alert)]
        assert curve.low[place] <= (own[0] - own[1] * at[place] / (1 - at[place])) / 300 <= curve.high[place]
    # Of a row of which more is known than is counted, the point says nothing.
    other = draw_curve([SiteScores(counts, KnownPoint(-0.3, n + 1, raised))], is_merged=True, thresholds_T=at)
    assert other is not None
    assert other.low[1] < truth < other.high[1]


def test_a_site_with_images_of_one_kind_is_in_the_curve_of_all() -> None:
    both = np.zeros((2, 240), np.int64)
    both[:, 150] = 10, 20
    one = np.zeros((2, 240), np.int64)
    one[1, 150] = 70
    curve = draw_curve([SiteScores(both), SiteScores(one)], is_merged=False)
    assert curve is not None
    assert curve.all[49] == pytest.approx((10 - 90) / 100)

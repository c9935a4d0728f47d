"""Net benefit, against counting."""

import numpy as np
import pytest

from fedmed.clinical.scores import count_scores
from fedmed.clinical.values import THRESHOLDS, draw_curve, net_benefit


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

"""The alert score, its counts, and the threshold that is chosen from them."""

import numpy as np
import pytest
import torch

from fedmed.clinical.scores import EDGES, NUM_BINS, NUMBER, SUM, WITH, alert_scores, count_scores, find_score_problem
from fedmed.clinical.threshold import ScoreCounts, choose_threshold, count_below
from fedmed.config import OperatingPlan
from fedmed.metrics.rounding import is_rounded

WANTED = OperatingPlan(alert_classes=["mel"], sensitivity=0.9)


def draw(seed: int, n_with: int, n_without: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(1, 2, n_with), rng.normal(-2, 2, n_without)])
    return scores, np.arange(n_with + n_without) < n_with


def test_the_score_is_the_log_odds_of_the_summed_probability_after_the_temperature() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0], [-30.0, 5.0, 1.0, -40.0]])
    shares = (logits.double() / 1.6).softmax(dim=1).numpy()
    own = shares[:, 1] + shares[:, 3]
    np.testing.assert_allclose(alert_scores(logits, [1, 3], 1.6), np.log(own / (1 - own)), rtol=1e-12)
    far = alert_scores(torch.tensor([[800.0, 0.0, 0.0]]), [0])
    np.testing.assert_allclose(far, 800 - np.log(2))


def test_without_merging_the_threshold_is_the_largest_edge_that_reaches_the_sensitivity() -> None:
    """By brute force over all edges."""
    scores, is_alert = draw(0, 57, 140)
    counts = count_scores(scores, is_alert)
    assert counts[..., NUMBER].sum() == 197
    point = choose_threshold([ScoreCounts(counts, False)], WANTED)
    reached = [edge for edge in EDGES.tolist() if (scores[is_alert] >= edge).mean() >= 0.9]
    assert point.threshold == max(reached)
    assert point.most_missed == (scores[is_alert] < max(reached)).sum()
    assert point.most_false_alarms == (scores[~is_alert] >= max(reached)).sum()
    assert point.sensitivity == pytest.approx((scores[is_alert] >= max(reached)).mean())


def test_a_cost_ratio_finds_the_cheapest_edge() -> None:
    scores, is_alert = draw(1, 80, 200)
    wanted = OperatingPlan(alert_classes=["mel"], cost_ratio=8, prevalence=0.1)
    point = choose_threshold([ScoreCounts(count_scores(scores, is_alert), False)], wanted)

    def cost(edge: float) -> float:
        return 8 * 0.1 * (scores[is_alert] < edge).mean() + 0.9 * (scores[~is_alert] >= edge).mean()

    assert point.threshold is not None
    assert cost(point.threshold) == pytest.approx(min(map(cost, EDGES.tolist())))


@pytest.mark.parametrize("seed", range(6))
def test_with_merged_bins_the_stated_sensitivity_is_reached_all_the_same(seed: int) -> None:
    sites, scores, labels = [], [], []
    for site in range(4):
        own, is_alert = draw(10 * seed + site, 15 + 5 * site, 60)
        counts = count_scores(own, is_alert, k_bin=5, k_row=5)
        assert counts[counts[..., NUMBER] > 0][:, NUMBER].min() >= 5
        assert is_rounded(counts[..., SUM])
        assert find_score_problem(counts, len(own)) is None
        sites.append(ScoreCounts(counts, True))
        scores.append(own)
        labels.append(is_alert)
    point, all_scores, is_alert = choose_threshold(sites, WANTED), np.concatenate(scores), np.concatenate(labels)
    assert point.threshold is not None, "merged bins leave a threshold that is of use"
    missed = (all_scores[is_alert] < point.threshold).sum()
    assert missed <= point.most_missed <= 0.1 * is_alert.sum()
    assert (all_scores[~is_alert] >= point.threshold).sum() <= point.most_false_alarms


def test_the_mean_of_a_merged_bin_bounds_what_lies_below() -> None:
    """Five images of mean -2 below the edge 1: below -5, at most 5 * (1 + 2) / (1 + 5) = 2.5 of them."""
    counts = np.zeros((NUM_BINS, 2))
    counts[0] = 5, -10.0
    counts[np.searchsorted(EDGES, 1.0)] = 6, 12.0
    below = count_below(counts, is_merged=True)
    assert below[np.searchsorted(EDGES, -5.0)] == 2
    assert below[np.searchsorted(EDGES, 0.9)] == 5
    assert below[0] == 0


@pytest.mark.parametrize("k_bin", [1, 5, 10])
def test_where_a_merged_bin_begins_the_number_below_is_exact(k_bin: int) -> None:
    scores, is_alert = draw(7, 60, 90)
    counts = count_scores(scores, is_alert, k_bin=k_bin, k_row=5)[WITH]
    places = np.flatnonzero(counts[:, NUMBER])
    assert len(places) > 3
    below = count_below(counts, is_merged=True)
    assert below[places].tolist() == [(scores[is_alert] < EDGES[place]).sum() for place in places.tolist()]


def test_patients_and_not_images_fill_a_bin() -> None:
    scores = np.linspace(-3, 3, 40)
    patients = [str(place // 4) for place in range(40)]
    counts = count_scores(scores, np.ones(40, bool), patients, k_bin=5, k_row=5)
    # The fifth patient begins with the 17th image.
    assert [n for n in counts[WITH, :, NUMBER].tolist() if n] == [
        17,
        23,
    ]
    assert not count_scores(scores, np.ones(40, bool), ["a", "b"] * 20, k_bin=5, k_row=5).any()


def test_few_images_or_a_hopeless_model_give_no_threshold() -> None:
    scores, is_alert = draw(3, 9, 100)
    few = choose_threshold([ScoreCounts(count_scores(scores, is_alert), False)], WANTED)
    assert few.threshold is None
    assert "9 validation images" in str(few.note)
    scores = np.where(np.arange(100) < 20, -12.0, 0.0)
    hopeless = choose_threshold([ScoreCounts(count_scores(scores, np.arange(100) < 50), False)], WANTED)
    assert hopeless.threshold is None
    assert "every image" in str(hopeless.note)


@pytest.mark.parametrize(
    "change", [lambda c: c + 0.5, lambda c: -c, lambda c: c * 10, lambda c: c[:1], lambda c: c * [1, 40]]
)
def test_counts_that_cannot_be_true_are_refused(change: object) -> None:
    scores, is_alert = draw(4, 30, 40)
    counts = count_scores(scores, is_alert)
    assert find_score_problem(counts, 70) is None
    assert find_score_problem(change(counts), 70) is not None  # type: ignore[operator]


def test_a_site_without_enough_of_a_row_tells_nothing_and_lacks_nothing() -> None:
    empty = np.zeros((NUM_BINS, 2))
    assert not count_below(empty, is_merged=True).any()
    assert not count_below(empty, is_merged=False).any()
    scores, is_alert = draw(0, 57, 140)
    few = count_scores(scores[is_alert][:4], np.ones(4, np.bool_), k_bin=5, k_row=5)
    told = count_scores(scores, is_alert, k_bin=5, k_row=5)
    both = choose_threshold([ScoreCounts(told, True), ScoreCounts(few, True)], WANTED)
    assert both == choose_threshold([ScoreCounts(told, True)], WANTED)

"""A site that decides alone from which score on alerts are raised is named."""

import numpy as np
import pytest

from fedmed.clinical.scores import find_score_problem
from fedmed.clinical.threshold import ScoreCounts, choose_threshold
from fedmed.config import OperatingPlan
from server.finish.operating_doubts import find_swayed
from tests.clinical.test_threshold import count_scores, draw

WANTED = OperatingPlan(alert_classes=["mel"], sensitivity=0.9)


def make_honest(num_sites: int = 3) -> dict[str, ScoreCounts]:
    """Sites of one kind with 100 images each, 30 of them of an alert class."""
    return {f"site_{seed}": ScoreCounts(count_scores(*draw(seed, 30, 70)), False) for seed in range(num_sites)}


def make_liar(n_with: int, score: float) -> ScoreCounts:
    counts = count_scores(np.full(n_with, score), np.ones(n_with, np.bool_))
    assert find_score_problem(counts, n_with) is None, "nothing shows that it is not true"
    return ScoreCounts(counts, False)


def find(sites: dict[str, ScoreCounts]) -> list[str]:
    return find_swayed(sites, WANTED, choose_threshold(sites.values(), WANTED))


def test_honest_sites_raise_no_doubt() -> None:
    assert find(make_honest()) == []
    assert find(make_honest(1)) == []


def test_a_site_that_leaves_nobody_with_a_threshold_is_named() -> None:
    doubts = find(make_honest() | {"bad": make_liar(60, -12.0)})
    assert len(doubts) == 1
    assert doubts[0].startswith("There is no operating point for alerts because of bad: without its counts")


@pytest.mark.parametrize("number", [100, 900])
def test_a_site_that_pushes_the_threshold_up_is_named(number: int) -> None:
    sites = make_honest() | {"bad": make_liar(number, 11.9)}
    doubts = find(sites)
    assert any(
        doubt.startswith("The operating point for alerts rests on bad: of the 90 validation") for doubt in doubts
    )


@pytest.mark.parametrize("score", [0.0, 3.0, 6.0])
def test_a_cost_ratio_is_looked_at_by_what_the_others_would_reach(score: float) -> None:
    """Many images without an alert class just below a score make it cheaper to miss the others' alert classes."""
    wanted = OperatingPlan(alert_classes=["mel"], cost_ratio=10)
    liar = ScoreCounts(count_scores(np.full(900, score), np.zeros(900, np.bool_)), False)
    sites = make_honest() | {"bad": liar}
    (doubt,) = find_swayed(sites, wanted, choose_threshold(sites.values(), wanted))
    assert "rests on bad" in doubt
    assert find_swayed(make_honest(), wanted, choose_threshold(make_honest().values(), wanted)) == []

import dataclasses

import numpy as np
import pytest

from fedmed.fairness import GapFigure, compare_groups, flag_attributes
from fedmed.fairness.chance.flags import FLAG_KEYS, adjust_family, find_p_value
from tests.fairness.support.samples import draw_answers, tables_of_groups

NUM_DRAWS = 199  # p-values in steps of 1 / 200 are enough for a level of 5 %
RECALLS = np.array([0.8, 0.6, 0.7])
SHARES = np.array([0.6, 0.3, 0.1])


def share_flagged(num_groups, size, num_reports, gap=0.0):
    """Share of simulated reports with a flag; the last group's recalls are lower by ``gap``."""
    rng = np.random.default_rng(num_groups * size)
    recalls = np.tile(RECALLS, (num_groups, 1))
    recalls[-1] -= gap
    flagged = 0
    for seed in range(num_reports):
        sizes = rng.multinomial(size, SHARES, size=num_groups)
        gaps = compare_groups(tables_of_groups(draw_answers(rng, recalls, sizes)), seed, NUM_DRAWS)
        flagged += any(figure.flagged for figure in flag_attributes({"sex": gaps})["sex"].values())
    return flagged / num_reports


@pytest.mark.parametrize(("num_groups", "size"), [(2, 50), (6, 200)])
def test_equal_groups_are_rarely_flagged(num_groups, size):
    """With a true share of 5 %, more than 11 of 100 reports are flagged in fewer than 1 of 200 attempts."""
    assert share_flagged(num_groups, size, 100) <= 0.11


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_groups", "size"), [(2, 50), (2, 200), (2, 1000), (3, 100), (3, 200), (4, 200), (6, 50), (6, 200)]
)
def test_equal_groups_are_flagged_in_at_most_eight_percent_of_400_reports(num_groups, size):
    assert share_flagged(num_groups, size, 400) <= 0.08


@pytest.mark.parametrize("num_groups", [2, 6])
def test_a_true_gap_is_found(num_groups):
    assert share_flagged(num_groups, 200, 40, gap=0.2) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [2, 3, 4, 6])
def test_a_true_gap_is_found_in_at_least_ninety_percent_of_400_reports(num_groups):
    assert share_flagged(num_groups, 200, 400, gap=0.2) >= 0.9


def test_p_values_by_hand():
    """Draws 1, 2, 3, 4: three of them and the observed 2 are at least 2; 1 and 2 are at most 2."""
    draws = np.array([1.0, 2.0, 3.0, 4.0])
    assert find_p_value(2.0, draws, "down") == 4 / 5
    assert find_p_value(2.0, draws, "up") == 3 / 5
    assert find_p_value(9.0, draws, "down") == 1 / 5


def test_family_p_values_by_hand():
    """Four draws of two figures, the observed one above all of the first and in the middle of the second.

    Of five members the first figure has shares at least as bad of 1/5 (observed), 5/5, 4/5, 3/5, 2/5, the second one
    3/5, 1/5, 2/5, 4/5, 5/5; the smaller ones are 1/5, 1/5, 2/5, 3/5, 2/5. At most 1/5 are two, at most 3/5 all.
    """
    figures = {key: make_gap(key, value) for key, value in (("gap_accuracy", 9.0), ("gap_balanced_accuracy", 3.0))}
    draws = {"gap_accuracy": np.array([1.0, 2, 3, 4]), "gap_balanced_accuracy": np.array([5.0, 4, 2, 1])}
    adjusted = adjust_family(figures, draws)
    assert [figure.family_p for figure in adjusted.values()] == pytest.approx([2 / 5, 1.0])


def test_the_same_figure_twice_costs_nothing():
    draws = np.random.default_rng(0).normal(size=99)
    once = adjust_family({"gap_accuracy": make_gap("gap_accuracy", 1.5)}, {"gap_accuracy": draws})
    keys = ("gap_accuracy", "gap_balanced_accuracy")
    twice = adjust_family({key: make_gap(key, 1.5) for key in keys}, dict.fromkeys(keys, draws))
    assert once["gap_accuracy"].family_p == twice["gap_accuracy"].family_p == find_p_value(1.5, draws, "down")


def make_gap(key, value=0.1, family_p=None):
    return GapFigure(key, value, "down", 100, family_p=family_p)


def flags_of(**family_p):
    gaps = {name: {"gap_accuracy": make_gap("gap_accuracy", family_p=p)} for name, p in family_p.items()}
    return {name: figures["gap_accuracy"].flagged for name, figures in flag_attributes(gaps).items()}


def test_holm_by_hand():
    """Limits 0.05 / 3, 0.05 / 2, 0.05 in order of the p-values, and none after the first that misses."""
    assert flags_of(a=0.016, b=0.024, c=0.049) == {"a": True, "b": True, "c": True}
    assert flags_of(a=0.049, b=0.016, c=0.026) == {"a": False, "b": True, "c": False}
    assert flags_of(a=0.017, b=0.018, c=0.019) == {"a": False, "b": False, "c": False}
    assert flags_of(a=0.05) == {"a": True}
    assert flags_of(a=0.026, b=0.9) == {"a": False, "b": False}


def test_attributes_that_were_not_tested_do_not_count():
    assert flags_of(a=0.04, b=None) == {"a": True, "b": None}


def test_figures_outside_the_family_are_never_flagged():
    counts = [[[95, 5], [5, 95]], [[50, 50], [50, 50]]]
    flagged = flag_attributes({"sex": compare_groups(tables_of_groups(counts), 0)})["sex"]
    assert {key for key, figure in flagged.items() if figure.flagged} == set(FLAG_KEYS)
    assert {key for key, figure in flagged.items() if figure.flagged is None} == set(flagged) - set(FLAG_KEYS)
    assert flagged["std_accuracy"].p_value < 0.01
    without = {key: dataclasses.replace(figure, flagged=None, limit=None) for key, figure in flagged.items()}
    assert without == compare_groups(tables_of_groups(counts), 0)

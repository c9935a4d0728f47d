"""Losses that leave a site: sums by hand, thresholds at their edges, and what the receiver refuses."""

import pytest
import torch

from fedmed.fairness.figures.group_losses import (
    disclose_group_losses,
    disclose_start_loss,
    find_loss_breach,
)
from fedmed.protocol.reports import TrainReport


def make_report(num_images, **told):
    return TrainReport(num_images=num_images, loss=0.5, learning_rate=0.1, train_s=1.0, **told)


LOSSES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_sums_by_group():
    groups = ["b", "a", "b", "unknown", "a", "b"]
    assert disclose_group_losses(LOSSES, groups, 1) == {"a": (2, 7.0), "b": (3, 10.0)}


def test_sums_over_sites_are_those_of_all_images():
    groups = ["a", "b", "a", "b", "a", "b"]
    north, south = disclose_group_losses(LOSSES[:4], groups[:4], 1), disclose_group_losses(LOSSES[4:], groups[4:], 1)
    both = disclose_group_losses(LOSSES, groups, 1)
    assert {name: tuple(north[name][i] + south[name][i] for i in (0, 1)) for name in both} == both


def test_a_group_below_k_is_not_told():
    groups = ["a"] * 4 + ["b"] * 2
    assert disclose_group_losses(LOSSES, groups, 2) == {"a": (4, 10.0), "b": (2, 11.0)}
    # b has 2 < 3 images; 6 - 4 = 2 would give its number away, so a is not told either.
    assert disclose_group_losses(LOSSES, groups, 3) == {}


def test_the_smallest_other_group_goes_with_a_small_one():
    """With k = 3, c has 1 image. Without it 10 - 9 = 1 image follows; a (3 images) goes too, and 4 >= 3 are left."""
    losses, groups = torch.ones(10), ["a"] * 3 + ["b"] * 6 + ["c"]
    assert disclose_group_losses(losses, groups, 3) == {"b": (6, 6.0)}


def test_small_groups_that_are_many_hide_each_other():
    losses, groups = torch.ones(9), ["a"] * 5 + ["b"] * 2 + ["c"] * 2
    assert disclose_group_losses(losses, groups, 3) == {"a": (3, 3.0)}, "5 images, told as 3 of the same mean"


def test_images_of_unknown_group_are_not_given_away_either():
    losses, groups = torch.ones(9), ["a"] * 4 + ["b"] * 4 + ["unknown"]
    assert disclose_group_losses(losses, groups, 3) == {"b": (3, 3.0)}
    assert disclose_group_losses(losses, groups, 1) == {"a": (4, 4.0), "b": (4, 4.0)}


def test_numbers_are_multiples_of_k_and_sums_have_three_digits():
    """Mean of 1.2346 and 2.3457 is 1.79015; 7 of each are told as 6, whose sum is 21.4818."""
    losses = torch.tensor([1.2346, 2.3457] * 7)
    assert disclose_group_losses(losses, ["a"] * 14, 6) == {"a": (12, 21.5)}
    assert disclose_start_loss(losses, 6) == 1.79


@pytest.mark.parametrize(
    ("losses", "problem"),
    [({"a": (7, 1.0)}, "no multiple of k = 6"), ({"a": (6, 1.234)}, "more than 3 digits"), ({"a": (6, 1.23)}, None)],
)
def test_guard_looks_at_the_numbers(losses: dict[str, tuple[int, float]], problem: str | None):
    found = find_loss_breach(make_report(12, group_losses=losses), 6)
    assert found is None if problem is None else problem in str(found)


def test_mean_only_of_k_images():
    assert disclose_start_loss(LOSSES, 6) == 3.5
    assert disclose_start_loss(LOSSES, 7) is None
    assert disclose_start_loss(LOSSES[:0], 1) is None


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_what_is_released_is_no_breach(k):
    groups = ["a", "a", "b", "b", "b", "unknown"]
    losses = disclose_group_losses(LOSSES, groups, k)
    assert find_loss_breach(make_report(6, group_losses=losses), k) is None


@pytest.mark.parametrize(
    "report",
    [
        make_report(2, start_loss=1.0),
        make_report(9, group_losses={"a": (2, 1.0)}),
        make_report(9, group_losses={"a": (7, 1.0)}),
    ],
)
def test_breaches_are_found(report):
    assert find_loss_breach(report, 3) is not None


def test_a_report_without_losses_is_no_breach():
    assert find_loss_breach(make_report(1), 10) is None

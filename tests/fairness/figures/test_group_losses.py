"""Losses that leave a site: sums by hand, thresholds at their edges, and what the receiver refuses."""

import math

import pytest
import torch

from fedmed.fairness.figures.group_losses import (
    find_loss_breach,
    read_group_losses,
    read_start_loss,
    release_group_losses,
    release_start_loss,
)

LOSSES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_sums_by_group():
    groups = ["b", "a", "b", "unknown", "a", "b"]
    assert release_group_losses(LOSSES, groups, 1) == {"a": [2, 7.0], "b": [3, 10.0]}


def test_sums_over_sites_are_those_of_all_images():
    groups = ["a", "b", "a", "b", "a", "b"]
    north, south = release_group_losses(LOSSES[:4], groups[:4], 1), release_group_losses(LOSSES[4:], groups[4:], 1)
    both = release_group_losses(LOSSES, groups, 1)
    assert {name: [north[name][i] + south[name][i] for i in (0, 1)] for name in both} == both


def test_a_group_below_k_is_not_told():
    groups = ["a"] * 4 + ["b"] * 2
    assert release_group_losses(LOSSES, groups, 2) == {"a": [4, 10.0], "b": [2, 11.0]}
    # b has 2 < 3 images; 6 - 4 = 2 would give its number away, so a is not told either.
    assert release_group_losses(LOSSES, groups, 3) == {}


def test_the_smallest_other_group_goes_with_a_small_one():
    """With k = 3, c has 1 image. Without it 10 - 9 = 1 image follows; a (3 images) goes too, and 4 >= 3 are left."""
    losses, groups = torch.ones(10), ["a"] * 3 + ["b"] * 6 + ["c"]
    assert release_group_losses(losses, groups, 3) == {"b": [6, 6.0]}


def test_small_groups_that_are_many_hide_each_other():
    losses, groups = torch.ones(9), ["a"] * 5 + ["b"] * 2 + ["c"] * 2
    assert release_group_losses(losses, groups, 3) == {"a": [5, 5.0]}


def test_images_of_unknown_group_are_not_given_away_either():
    losses, groups = torch.ones(9), ["a"] * 4 + ["b"] * 4 + ["unknown"]
    assert release_group_losses(losses, groups, 3) == {"b": [4, 4.0]}
    assert release_group_losses(losses, groups, 1) == {"a": [4, 4.0], "b": [4, 4.0]}


def test_mean_only_of_k_images():
    assert release_start_loss(LOSSES, 6) == 3.5
    assert release_start_loss(LOSSES, 7) is None
    assert release_start_loss(LOSSES[:0], 1) is None


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_what_is_released_is_no_breach(k):
    groups = ["a", "a", "b", "b", "b", "unknown"]
    report = {"num_images": 6, "group_losses": release_group_losses(LOSSES, groups, k)}
    assert find_loss_breach(report, k) is None


@pytest.mark.parametrize(
    "report",
    [
        {"num_images": 2, "start_loss": 1.0},
        {"start_loss": 1.0},
        {"num_images": 9, "group_losses": {"a": [2, 1.0]}},
        {"num_images": 9, "group_losses": {"a": [7, 1.0]}},
        {"num_images": 9, "group_losses": {"a": [9, "1"]}},
        {"num_images": 9, "group_losses": [9]},
    ],
)
def test_breaches_are_found(report):
    assert find_loss_breach(report, 3) is not None


def test_a_report_without_losses_is_no_breach():
    assert find_loss_breach({"num_images": 1, "loss": 0.5}, 10) is None
    assert find_loss_breach({"missing_model": True}, 10) is None


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e7, 10**400, "1", None, True])
def test_losses_that_cannot_be_are_refused(value):
    with pytest.raises(ValueError, match="no number from 0 to 1e"):
        read_start_loss(value)
    with pytest.raises(ValueError, match="no number from 0 to 2e"):
        read_group_losses({"a": [2, value]}, 5)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1],
        {"": [1, 1.0]},
        {"unknown": [1, 1.0]},
        {"x" * 1000: [1, 1.0]},
        {"a": 1.0},
        {"a": [1.0, 1.0]},
        {"a": [0, 0.0]},
        {"a": [True, 1.0]},
        {"a": [3, 1.0], "b": [3, 1.0]},
        {str(i): [1, 1.0] for i in range(100_000)},
    ],
)
def test_group_losses_that_cannot_be_are_refused(value):
    with pytest.raises(ValueError, match="losses by group"):
        read_group_losses(value, 5)


def test_group_losses_are_read_as_they_were_told():
    assert read_group_losses({"a": [2, 7.0], "b": [3, 10]}, 5) == {"a": (2, 7.0), "b": (3, 10.0)}

"""Weights of patient groups at a hospital: by hand."""

import pytest

from client.answers.group_weights import HIGHEST_WEIGHT, LOWEST_WEIGHT, hold_weights

GROUPS = ["large"] * 20 + ["middle"] * 20 + ["one"]
LABELS = [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10 + [0]


def test_a_group_has_its_own_weight_if_each_of_its_classes_is_large() -> None:
    held = hold_weights({"large": 2.0, "middle": 0.5, "one": 9.0}, GROUPS, LABELS, 10)
    assert held == {"large": 2.0, "middle": 0.5, "one": pytest.approx(1.25)}  # the mean of 20 times 2 and 20 times 0.5


def test_a_group_of_one_stands_out_in_neither_way() -> None:
    """Weight 0 for all others, or none for itself: it weighs as the others do."""
    alone = hold_weights({"large": 0.0, "middle": 0.0, "one": 1.0}, GROUPS, LABELS, 10)
    assert set(alone.values()) == {LOWEST_WEIGHT}
    left_out = hold_weights({"large": 0.0, "middle": 0.0}, GROUPS, LABELS, 10)
    assert left_out == alone
    assert set(hold_weights({"one": 1e6}, GROUPS, LABELS, 10).values()) == {1.0}


def test_a_class_of_few_in_a_large_group_counts() -> None:
    labels = [*LABELS[:-1], 2]
    groups = [*GROUPS[:-1], "large"]
    held = hold_weights({"large": 9.0, "middle": 0.5}, groups, labels, 10)
    assert held == {"large": 0.5, "middle": 0.5}
    assert hold_weights({"middle": 1e6}, groups, labels, 10)["middle"] == HIGHEST_WEIGHT

"""Figures with wrong answers that are not told by class, against all ways in which they may have been."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedmed.fairness.figures.rates import class_rates
from fedmed.metrics.answer_ranges import RANGED, find_ranges
from fedmed.metrics.classification import compute_figures, count_values
from fedmed.metrics.tables import EvaluationTables

COUNTS = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3)
OTHER = st.lists(st.integers(0, 3), min_size=3, max_size=3)


def list_possible(counts, other):
    """Return all tables that may be behind others."""
    ways = []
    for k, number in enumerate(other):
        first, second = [j for j in range(len(other)) if j != k]
        ways.append([[(k, first, part), (k, second, number - part)] for part in range(number + 1)])
    for chosen in itertools.product(*ways):
        table = counts.copy()
        for k, j, number in itertools.chain(*chosen):
            table[k, j] += number
        yield table


@settings(max_examples=100, deadline=None)
@given(COUNTS, OTHER)
def test_ranges_hold_all_that_may_be_and_are_narrow(counts, other):
    counts, other = np.array(counts), np.array(other)
    assume(other.any() and counts.any())
    possible = [count_values(table) for table in list_possible(counts, other)]
    for key, found in find_ranges(counts, other).items():
        values = np.array([values[key].value for values in possible])
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        assert found.low.value <= values.min() + 1e-9
        assert found.high.value >= values.max() - 1e-9
        if key in ("specificity", "kappa"):  # linear: the ends are reached
            assert found.low.value == pytest.approx(values.min())
        if key in ("macro_precision", "macro_f1"):  # between whole numbers at most a little lower
            assert values.min() - found.low.value < 0.12


@settings(max_examples=50, deadline=None)
@given(COUNTS, OTHER)
def test_a_figure_is_at_most_five_points_off(counts, other):
    counts, other = np.array(counts) * 20, np.array(other)
    assume(other.any() and counts.any())
    told = count_values(counts, None, other)
    for table in list_possible(counts, other):
        expected = count_values(table)
        for key in RANGED:
            difference = np.abs(told[key].value - expected[key].value)
            assert np.isnan(difference) or difference <= 0.05 + 1e-9
        for key in ("accuracy", "balanced_accuracy", "worst_class_recall"):
            assert told[key].value == pytest.approx(float(expected[key].value), nan_ok=True)


def test_without_other_wrong_answers_nothing_changes():
    counts = np.random.default_rng(0).integers(0, 20, (4, 5, 5))
    plain, same = count_values(counts), count_values(counts, None, np.zeros((4, 5), np.int64))
    for key, values in plain.items():
        np.testing.assert_array_equal(values.value, same[key].value)


def test_wrong_answers_of_two_classes_are_the_other_one():
    told = count_values(np.array([[5, 0], [0, 7]]), None, np.array([3, 2]))
    complete = count_values(np.array([[5, 3], [2, 7]]))
    for key, values in complete.items():
        assert told[key].value == pytest.approx(float(values.value))
    rates = class_rates(np.array([[[5, 0], [0, 7]]]), np.array([[3, 2]]))
    np.testing.assert_allclose(rates.fpr, class_rates(np.array([[[5, 3], [2, 7]]])).fpr)


def test_too_many_of_them_leave_no_figure_and_the_reason():
    """Of 20 wrong answers all or none may be the first class, of which 3 are right: a precision of 3/23 or 1."""
    counts = np.array([[[3, 0, 0], [0, 30, 0], [0, 0, 60]]])
    many = EvaluationTables.make(("a",), 3, counts=counts, other_wrong=np.array([[0, 20, 0]]))
    figures = compute_figures(many)
    for key in ("macro_precision", "macro_f1"):
        assert figures[key].value is None
        assert figures[key].reason == "too many wrong answers are not told by class"
    assert figures["macro_precision"].by_class == (None, 1.0, None)
    assert figures["accuracy"].value == pytest.approx(93 / 113)
    assert figures["balanced_accuracy"].value == pytest.approx((1 + 0.6 + 1) / 3)
    few = compute_figures(EvaluationTables.make(("a",), 3, counts=counts * 10, other_wrong=np.array([[1, 0, 0]])))
    assert all(few[key].value is not None for key in RANGED)


def test_rates_of_groups_are_left_out_where_a_difference_could_be_off():
    """Of 100 images 2 wrong answers may be of class 2: 0.02 wide, so half of it is .01 and .02 for two groups."""
    counts = np.array([[[48, 0, 0], [0, 40, 0], [0, 0, 10]]] * 2)
    few = class_rates(counts, np.array([[2, 0, 0]] * 2))
    assert few.selection[0, 2] == pytest.approx(0.11)
    assert not np.isnan(few.tpr).any()
    many = class_rates(counts, np.array([[12, 0, 0]] * 2))
    assert np.isnan(many.selection[0, 1:]).all()
    assert many.selection[0, 0] == pytest.approx(48 / 110)  # wrong answers of class 0 are not class 0
    assert not np.isnan(many.tpr).any()

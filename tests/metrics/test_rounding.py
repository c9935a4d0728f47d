import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmed.metrics.rounding import ROUNDING, is_rounded, is_whole, round_digits


def test_three_digits_by_hand():
    values = np.array([[0.0, 1234.0, -0.00123456], [999.6, 1e-300, 12.25]])
    expected = [[0.0, 1230.0, -0.00123], [1000.0, 1e-300, 12.2]]
    assert round_digits(values).tolist() == expected
    assert is_rounded(np.array(expected))
    assert not is_rounded(values)


@given(st.lists(st.floats(-1e12, 1e12), max_size=20))
def test_rounding_again_changes_nothing_and_moves_little(values):
    array = np.array(values, dtype=np.float64)
    rounded = round_digits(array)
    assert is_rounded(rounded)
    assert np.abs(rounded - array).max(initial=0.0) <= ROUNDING * np.abs(array).max(initial=0.0) + 1e-300
    assert not np.signbit(rounded[rounded == 0]).any()


def test_whole_numbers():
    assert is_whole(np.array([0.0, 3.0, 1e9]))
    assert not is_whole(np.array([0.5]))

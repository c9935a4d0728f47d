import math
import os
import re

import numpy as np
import pytest

from fedmed.aggregation import check_num_images, check_update, compare_norms
from fedmed.errors import CheckpointError
from fedmed.storage.tensor_files import TensorFile
from tests.aggregation.support.updates import write_update

GLOBAL = {
    "w": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
    "b": np.zeros(3, np.float16),
    "n": np.array(5, np.int64),
}


def check(tmp_path, changes=(), window=1 << 20):
    tensors = {**GLOBAL, **dict(changes)}
    update = write_update(tmp_path, "site", {name: values for name, values in tensors.items() if values is not None})
    return check_update(update.path, GLOBAL, window=window)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_the_norm_by_hand(tmp_path, window):
    """Differences 3 in w and 4 in b: sqrt(9 + 16) = 5. The counter's 7 steps do not count."""
    changes = {
        "w": np.array([[1, 2], [3, 7]], np.float32),
        "b": np.array([0, 4, 0], np.float16),
        "n": np.array(12, np.int64),
    }
    result = check(tmp_path, changes, window)
    assert result.ok
    assert result.reason is None
    assert result.norm == 5.0


def test_only_measured_tensors_count_for_the_norm_but_all_are_checked(tmp_path):
    changed = {**GLOBAL, "w": np.array([[1, 2], [3, 7]], np.float32), "b": np.array([0, 400, 0], np.float16)}
    update = write_update(tmp_path, "site", changed)
    assert check_update(update.path, GLOBAL, measured={"w"}).norm == 3.0
    broken = write_update(tmp_path, "broken", {**GLOBAL, "b": np.array([0, np.nan, 0], np.float16)})
    assert not check_update(broken.path, GLOBAL, measured={"w"}).ok


def test_the_reference_may_be_a_file(tmp_path):
    reference = TensorFile(write_update(tmp_path, "global", GLOBAL).path)
    update = write_update(tmp_path, "site", {**GLOBAL, "b": np.array([2, 0, 0], np.float16)})
    assert check_update(TensorFile(update.path), reference).norm == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"b": None}, "lacks tensor 'b'"),
        ({"b": None, "n": None}, "lacks 2 tensors, the first being 'b'"),
        ({"extra": np.ones(1)}, "holds tensor 'extra' that the model does not have"),
        ({"w": np.ones((4, 1), np.float32)}, r"'w' has shape \(4, 1\) and should have \(2, 2\)"),
        ({"w": np.ones((2, 2))}, "'w' has type float64 and should have float32"),
        ({"n": np.array(5, np.int32)}, "'n' has type int32"),
        ({"w": np.array([[1, 2], [np.nan, 4]], np.float32)}, "'w' holds NaN: training diverged"),
        ({"b": np.array([0, 0, -np.inf], np.float16)}, "'b' holds an infinite value"),
    ],
)
@pytest.mark.parametrize("window", [1, 100])
def test_what_is_wrong_is_said(tmp_path, changes, words, window):
    result = check(tmp_path, changes, window)
    assert not result.ok
    assert result.norm is None
    assert re.search(words, result.reason)


def test_a_name_of_a_site_cannot_forge_log_lines(tmp_path):
    reason = check(tmp_path, {"x\nround 3: all well" + "y" * 500: np.ones(1)}).reason
    assert "\n" not in reason
    assert len(reason) < 300


def test_unreadable_updates_are_faults_of_the_update(tmp_path):
    path = write_update(tmp_path, "site", GLOBAL).path
    file = TensorFile(path)
    os.truncate(path, path.stat().st_size - 4)
    for update in (path, file, tmp_path / "none"):
        result = check_update(update, {"n": GLOBAL["n"]} if update == tmp_path / "none" else GLOBAL)
        assert not result.ok
        assert "sent again" in result.reason


def test_an_unreadable_reference_is_not_the_sites_fault(tmp_path):
    update = write_update(tmp_path, "site", GLOBAL).path
    path = write_update(tmp_path, "global", GLOBAL).path
    reference = TensorFile(path)
    os.truncate(path, 100)
    with pytest.raises(CheckpointError, match=r"global\.safetensors"):
        check_update(update, reference)


def test_a_norm_beyond_float64_is_not_ok(tmp_path):
    update = write_update(tmp_path, "site", {"w": np.array([1e200, 1e300])})
    result = check_update(update.path, {"w": np.zeros(2)})
    assert not result.ok
    assert "diverged" in result.reason


@pytest.mark.parametrize("value", [240, np.int64(240)])
def test_the_declared_number_of_images_is_good(value):
    assert check_num_images(value, 240) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (240.0, "whole number"),
        (True, "whole number"),
        ("240", "whole number"),
        (None, "whole number"),
        (0, "between 1 and"),
        (-3, "between 1 and"),
        (10**12, "between 1 and"),
        (2400, "declared 240"),
    ],
)
def test_other_numbers_of_images_are_not(value, words):
    assert words in check_num_images(value, 240)


def find(norms, recent=(), ratio=25.0):
    return set(compare_norms(norms, recent, ratio))


def test_one_of_two_sites_with_a_thousandfold_update_is_found_and_the_honest_one_stays():
    assert find({"a": 1.0, "b": 1000.0}) == {"b"}
    assert find({"a": 1000.0, "b": 1.0}) == {"a"}
    assert find({"a": 1.0, "b": 1000.0}, [1.1, 0.9]) == {"b"}


def test_the_limit_itself_is_allowed():
    assert find({"a": 1.0, "b": 25.0}) == set()
    assert find({"a": 1.0, "b": 25.001}) == {"b"}


def test_three_sites_by_hand():
    """For c the others' median is (1 + 2) / 2 = 1.5: 37 is below 25 x 1.5 = 37.5, and 38 above."""
    assert find({"a": 1.0, "b": 2.0, "c": 37.0}) == set()
    assert find({"a": 1.0, "b": 2.0, "c": 38.0}) == {"c"}


def test_a_larger_attack_does_not_hide_a_smaller_one():
    """For b the others are 1 and 1e6, median 5e5; only without c is the yardstick 1."""
    assert find({"a": 1.0, "b": 1000.0, "c": 1e6}) == {"b", "c"}


def test_a_site_alone():
    assert find({"a": 1e9}) == set()
    assert find({"a": 1000.0}, [1.0, 1.2, 0.8]) == {"a"}
    assert find({"a": 20.0}, [1.0, 1.2, 0.8]) == set()


def test_history_helps_a_pair_but_does_not_outvote_it():
    """30 beside 1: with the last norm 29 the median is 15. And 100 and 90 after many ones: (90 + 1) / 2 = 45.5."""
    assert find({"a": 1.0, "b": 30.0}) == {"b"}
    assert find({"a": 1.0, "b": 30.0}, [29.0]) == set()
    assert find({"a": 90.0, "b": 100.0}, [1.0] * 50) == set()


def test_zero_norms_are_no_yardstick():
    assert find({"a": 0.0, "b": 0.0}) == set()
    assert find({"a": 0.0, "b": 3.0}) == set()
    assert find({"a": 0.0, "b": 1.0, "c": 1000.0}) == {"c"}
    assert find({"a": 5.0}, [0.0]) == set()


def test_the_sentence_names_figures_and_the_setting():
    reason = compare_norms({"a": 2.0, "b": 2000.0}, [], 25.0)["b"]
    assert "1e+03 times" in reason
    assert "allowed: 25 times" in reason
    assert "aggregation.max_norm_ratio" in reason


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0])
def test_impossible_norms_and_ratios_are_errors_of_the_caller(norm):
    with pytest.raises(ValueError, match="norm of site 'a'"):
        compare_norms({"a": norm, "b": 1.0}, [], 25.0)
    with pytest.raises(ValueError, match="max_ratio is 1"):
        compare_norms({"a": 1.0}, [], 1)

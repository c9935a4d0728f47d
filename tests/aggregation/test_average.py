import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from fedmed.aggregation import WeightedUpdate, average_updates, site_weights
from fedmed.errors import FederationError
from fedmed.storage.tensor_files import write_tensors
from tests.aggregation.support.updates import write_update


def average(updates, **options):
    return dict(average_updates(updates, **options))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_weighted_mean_by_hand(tmp_path, dtype):
    """(1 * 2 + 3 * 6) / 4 = 5 and (1 * -4 + 3 * 0) / 4 = -1."""
    updates = [
        write_update(tmp_path, "a", {"w": np.array([[2.0, -4.0]], dtype)}, 1),
        write_update(tmp_path, "b", {"w": np.array([[6.0, 0.0]], dtype)}, 3),
    ]
    result = average(updates)["w"]
    assert result.dtype == dtype
    assert result.shape == (1, 2)
    np.testing.assert_array_equal(result, [[5, -1]])


def test_integers_and_truth_values_take_the_middle_one(tmp_path):
    """Counters of 10, 15 and 12 are 12, which a site has really counted, and not 13; of two the lower counts."""
    updates = [
        write_update(tmp_path, "a", {"n": np.array(10, np.int64), "f": [True, False, False]}, 1),
        write_update(tmp_path, "b", {"n": np.array(15, np.int64), "f": [False, False, True]}, 2),
        write_update(tmp_path, "c", {"n": np.array(12, np.int64), "f": [False, False, True]}, 3),
    ]
    result = average(updates)
    assert result["n"].dtype == np.int64
    assert result["n"].shape == ()
    assert result["n"] == 12
    np.testing.assert_array_equal(result["f"], [False, False, True])
    assert average(updates[:2])["n"] == 10


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bits_do_not_depend_on_the_order_of_arrival(tmp_path, dtype):
    rng = np.random.default_rng(1)
    updates = [
        write_update(tmp_path, f"s{i}", {"w": rng.normal(size=500).astype(dtype)}, rng.uniform(0.1, 900))
        for i in range(6)
    ]
    first = average(updates)["w"].tobytes()
    for order in itertools.islice(itertools.permutations(updates), 0, 720, 119):
        assert average(list(order))["w"].tobytes() == first


@pytest.mark.parametrize("window", [1, 7, 64, 1000])
def test_bits_do_not_depend_on_the_window(tmp_path, window):
    rng = np.random.default_rng(2)
    updates = [
        write_update(tmp_path, s, {"w": rng.normal(size=(9, 13)).astype("f4"), "n": np.arange(117)}, i + 0.3)
        for i, s in enumerate("abc")
    ]
    expected, result = average(updates), average(updates, window=window)
    assert all(result[name].tobytes() == expected[name].tobytes() for name in ("w", "n"))


def test_the_mean_is_rounded_once_as_exact_fractions_say(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(5, 40)).astype(np.float32)
    weights = [240, 17, 1003, 88, 5]
    updates = [write_update(tmp_path, f"s{i}", {"w": values[i]}, weights[i]) for i in range(5)]
    exact = [
        float(sum(w * Fraction(float(v)) for w, v in zip(weights, column, strict=True)) / sum(weights))
        for column in values.T
    ]
    np.testing.assert_array_equal(average(updates)["w"], np.array(exact).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_identical_models_stay_identical_bit_for_bit(tmp_path, dtype):
    """Subnormal, largest and ordinary numbers; weights whose products are not exact."""
    info = np.finfo(dtype)
    top = info.max if dtype != np.float64 else 1e300
    rng = np.random.default_rng(4)
    special = [0.0, info.smallest_subnormal, info.tiny, top, -top, 0.1, 1 / 3]
    values = np.concatenate([special, rng.normal(size=3000)]).astype(dtype)
    for num_sites, weights in ((3, [0.1, 0.7, 1 / 3]), (40, rng.uniform(1e-3, 1e4, 40))):
        updates = [write_update(tmp_path, f"s{i:02d}", {"w": values}, float(weights[i])) for i in range(num_sites)]
        assert average(updates)["w"].tobytes() == values.tobytes()


def test_one_site_and_empty_tensors(tmp_path):
    update = write_update(tmp_path, "a", {"w": np.float32([1.1, -2.2]), "none": np.zeros((0, 3), np.float32)}, 0.3)
    result = average([update])
    np.testing.assert_array_equal(result["w"], np.float32([1.1, -2.2]))
    assert result["none"].shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_that_was_not_quarantined_stops_the_round(tmp_path, bad):
    updates = [write_update(tmp_path, s, {"fc.w": np.float32([1, v])}) for s, v in (("a", 0.0), ("b", bad))]
    with pytest.raises(FederationError, match=r"'fc\.w' is not finite"):
        average(updates)


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_weights_must_be_positive_and_finite(tmp_path, weight):
    update = write_update(tmp_path, "a", {"w": np.ones(1)}, weight)
    with pytest.raises(ValueError, match="site 'a' has weight"):
        average([update])


def test_no_updates_the_same_site_twice_and_other_tensors(tmp_path):
    with pytest.raises(ValueError, match="no updates"):
        average([])
    first = write_update(tmp_path, "a", {"w": np.ones(1)})
    with pytest.raises(ValueError, match="twice"):
        average([first, first])
    with pytest.raises(FederationError, match="'a' and 'b'"):
        average([write_update(tmp_path, "b", {"w": np.ones(2)}), first])


def test_memory_does_not_grow_with_the_sites(tmp_path):
    """One tensor of 2 MB, windows of 16k elements: 40 sites need no more than 4, but for the few names."""
    peaks = {}
    write_tensors(
        tmp_path / "one", {f"t{i}": np.ones(4, np.float32) for i in range(50)} | {"w": np.ones(500_000, "f4")}
    )
    for num_sites in (4, 40):
        updates = [WeightedUpdate(f"s{i:02d}", tmp_path / "one", 1.0) for i in range(num_sites)]
        tracemalloc.start()
        for _ in average_updates(updates, window=16_384):
            pass
        peaks[num_sites] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[40] < peaks[4] + 150_000
    assert peaks[40] < 2_000_000 + 16_384 * (4 + 8 + 8) + 400_000


def test_site_weights():
    assert site_weights("images", {"b": 30, "a": 10}) == {"a": 10.0, "b": 30.0}
    assert list(site_weights("equal", {"b": 30, "a": 10}).items()) == [("a", 1.0), ("b", 1.0)]
    with pytest.raises(ValueError, match="'size'; allowed are 'images' and 'equal'"):
        site_weights("size", {"a": 1})
    with pytest.raises(ValueError, match="site 'a' has 0"):
        site_weights("images", {"a": 0})

"""How far sites differ, from BatchNorm statistics, by hand."""

from pathlib import Path

import numpy as np
import pytest

from fedmed.aggregation.norm_bounds import LayerStatistics
from fedmed.aggregation.site_shift import measure_shift, read_shift, save_shift


def layer(mean: list[float], variance: list[float]) -> LayerStatistics:
    return LayerStatistics(np.array(mean), np.array(variance))


def test_numbers_by_hand() -> None:
    """Usual mean (0, 0) and variance (1, 4): site c is 2 and 1 deviations off, with twice the spread in both."""
    usual = layer([0, 0], [4, 4])
    first = {"a": usual, "b": usual, "c": layer([4, 2], [16 + 0.12, 16 + 0.12])}
    found = measure_shift([first])
    assert found["a"] == {"mean_shift": 0.0, "spread_ratio": 1.0, "distance": 0.0}
    assert found["c"]["mean_shift"] == pytest.approx(((4 + 1) / 2) ** 0.5, rel=1e-2)
    assert found["c"]["spread_ratio"] == pytest.approx(2.0)  # (16.12 + .04) / (4 + .04) = 4
    assert found["c"]["distance"] == pytest.approx((2.5 + np.log(2) ** 2) ** 0.5, rel=1e-2)


def test_distance_is_the_mean_over_layers() -> None:
    same, far = layer([0.0], [1.0]), layer([1.0], [1.0])
    found = measure_shift([{"a": same, "b": same, "c": same}, {"a": same, "b": same, "c": far}])
    assert found["c"] == {"mean_shift": 0.0, "spread_ratio": 1.0, "distance": 0.5}


def test_a_dead_channel_does_not_decide() -> None:
    usual = layer([0, 0, 0], [1, 1, 0])
    found = measure_shift([{"a": usual, "b": usual, "c": layer([0, 0, 1e-9], [1, 1, 1e-9])}])
    assert found["c"]["distance"] < 1e-3


def test_one_site_or_no_layer_says_nothing(tmp_path: Path) -> None:
    assert measure_shift([]) == measure_shift([{"a": layer([0], [1])}]) == {}
    save_shift(tmp_path, 1, "updates", [])
    assert read_shift(tmp_path) is None
    pair = {"a": layer([0.0], [1.0]), "b": layer([1.0], [1.0])}
    save_shift(tmp_path, 2, "updates", [pair])
    record = read_shift(tmp_path)
    assert record is not None
    assert (record["round"], record["sites"]["b"]["mean_shift"]) == (2, 0.5)

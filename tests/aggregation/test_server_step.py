"""Steps from the average to the next model: two of each by hand, what they leave alone, and in how much memory."""

import math
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest

from fedmed.aggregation import GlobalModel, make_step
from fedmed.aggregation.server_step import Average, Moments, MomentStep, Values
from fedmed.config import (
    AverageConfig,
    ExtensionStepConfig,
    FedAdamConfig,
    FedAvgMConfig,
    FedYogiConfig,
    ServerStepConfig,
)
from fedmed.config.server_step import StepConfig
from fedmed.errors import FederationError
from fedmed.storage.tensor_files import TensorFile, write_tensors
from tests.aggregation.support.updates import write_update

ADAM = FedAdamConfig(kind="fedadam", lr=2.0, beta1=0.5, beta2=0.75, tau=3.0)
YOGI = FedYogiConfig(kind="fedyogi", lr=2.0, beta1=0.5, beta2=0.75, tau=3.0)
AVGM = FedAvgMConfig(kind="fedavgm", lr=2.0, momentum=0.5)
STEPS = [AVGM, ADAM, YOGI]


def write_model(folder: Path, name: str, tensors: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path: Path = write_update(folder, name, tensors).path
    return path


def step_once(
    config: StepConfig, folder: Path, before: GlobalModel, average: Mapping[str, Any], **options: int
) -> GlobalModel:
    step = make_step(config)
    if options:
        assert isinstance(step, MomentStep)
        step.window = options["window"]
    return step.take(before, write_model(folder, "average", average), {"w"}, folder)


def steps_of(config: StepConfig, folder: Path, *changes: float, dtype: type = np.float64) -> list[GlobalModel]:
    """Begin with w = 1 and take steps in which the average is so far from the model."""
    models = [GlobalModel(write_model(folder, "model", {"w": np.array([1.0], dtype)}))]
    for number, change in enumerate(changes):
        w = TensorFile(models[-1].model).load("w")
        models.append(step_once(config, folder / str(number), models[-1], {"w": (w + change).astype(dtype)}))
    return models


def values_of(model: GlobalModel, name: str = "w") -> list[float]:
    path = model.model if name == "w" else model.moments
    assert path is not None
    values: list[float] = TensorFile(path).load(name).tolist()
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fedavgm_by_hand(tmp_path: Path, dtype: type) -> None:
    """d = 1: m = 1, w = 1 + 2 * 1 = 3. d = 1: m = 0.5 + 1 = 1.5, w = 3 + 2 * 1.5 = 6."""
    _, first, second = steps_of(AVGM, tmp_path, 1.0, 1.0, dtype=dtype)
    assert (values_of(first), values_of(first, "m/w")) == ([3.0], [1.0])
    assert (values_of(second), values_of(second, "m/w")) == ([6.0], [1.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fedadam_by_hand(tmp_path: Path, dtype: type) -> None:
    """v begins with 3^2 = 9, m with 0, and nothing corrects for that.

    d = 13: m = 6.5, v = 0.75 * 9 + 0.25 * 169 = 49, w = 1 + 2 * 6.5 / (7 + 3) = 2.3.
    d = 7: m = 3.25 + 3.5 = 6.75, v = 0.75 * 49 + 0.25 * 49 = 49, w = 2.3 + 2 * 6.75 / 10 = 3.65.
    """
    _, first, second = steps_of(ADAM, tmp_path, 13.0, 7.0, dtype=dtype)
    assert (values_of(first, "m/w"), values_of(first, "v/w")) == ([6.5], [49.0])
    assert values_of(first) == pytest.approx([2.3], rel=1e-7)
    assert values_of(second, "m/w") == pytest.approx([6.75], rel=1e-6)
    assert values_of(second, "v/w") == pytest.approx([49.0], rel=1e-6)
    assert values_of(second) == pytest.approx([3.65], rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fedyogi_by_hand(tmp_path: Path, dtype: type) -> None:
    """v begins with 9.

    d = 8: m = 4, 64 > 9: v = 9 + 0.25 * 64 = 25, w = 1 + 2 * 4 / (5 + 3) = 2.
    d = 2: m = 2 + 1 = 3, 4 < 25: v = 25 - 0.25 * 4 = 24, w = 2 + 2 * 3 / (sqrt(24) + 3).
    """
    _, first, second = steps_of(YOGI, tmp_path, 8.0, 2.0, dtype=dtype)
    assert (values_of(first), values_of(first, "m/w"), values_of(first, "v/w")) == ([2.0], [4.0], [25.0])
    assert (values_of(second, "m/w"), values_of(second, "v/w")) == ([3.0], [24.0])
    assert values_of(second) == pytest.approx([2 + 6 / (math.sqrt(24) + 3)], rel=1e-7)


def test_the_average_is_the_next_model_itself(tmp_path: Path) -> None:
    averaged = write_model(tmp_path, "average", {"w": np.float32([1.5])})
    before = GlobalModel(write_model(tmp_path, "model", {"w": np.float32([1.0])}))
    assert make_step(AverageConfig()).take(before, averaged, {"w"}, tmp_path) == GlobalModel(averaged, None)
    assert isinstance(make_step(AverageConfig()), Average)


def test_momentum_of_nothing_and_a_rate_of_one_are_the_average(tmp_path: Path) -> None:
    """1 + (2.5 - 1) is 2.5 exactly."""
    _, after = steps_of(FedAvgMConfig(kind="fedavgm", momentum=0.0), tmp_path, 1.5)
    assert values_of(after) == [2.5]


@pytest.mark.parametrize("config", STEPS, ids=lambda config: config.kind)
def test_what_is_no_trained_parameter_takes_the_average_bit_for_bit(tmp_path: Path, config: StepConfig) -> None:
    """A running variance is no parameter, and a count is none either, even where somebody names it one."""
    before = {"w": np.float32([1.0]), "var": np.float32([1.0, 4.0]), "n": np.int64(5)}
    average = {"w": np.float32([2.0]), "var": np.float32([0.1, 9.7]), "n": np.int64(15)}
    averaged = write_model(tmp_path, "average", average)
    model = GlobalModel(write_model(tmp_path, "model", before))
    after = make_step(config).take(model, averaged, {"w", "n", "not there"}, tmp_path)
    found = TensorFile(after.model).load_all()
    assert list(found) == ["w", "var", "n"]
    assert found["var"].tobytes() == average["var"].tobytes()
    assert found["n"] == 15
    assert found["n"].dtype == np.int64
    assert found["w"] != average["w"]
    assert after.moments is not None
    assert {name.rpartition("/")[2] for name in TensorFile(after.moments).names} == {"w"}


@pytest.mark.parametrize("config", STEPS, ids=lambda config: config.kind)
@pytest.mark.parametrize("window", [1, 7, 64])
def test_bits_depend_on_the_window_no_more_than_those_of_the_average(
    tmp_path: Path, config: StepConfig, window: int
) -> None:
    rng = np.random.default_rng(1)
    start = GlobalModel(write_model(tmp_path, "model", {"w": rng.normal(size=(9, 13)).astype("f4")}))
    averages = [{"w": rng.normal(size=(9, 13)).astype("f4")} for _ in range(2)]
    found = []
    for name, options in (("whole", {}), ("windows", {"window": window})):
        model = start
        for number, average in enumerate(averages):
            model = step_once(config, tmp_path / f"{name}{number}", model, average, **options)
        assert model.moments is not None
        found.append((model.model.read_bytes(), model.moments.read_bytes()))
    assert found[0] == found[1]


def test_half_precision_is_stepped_with_moments_that_hold_its_squares(tmp_path: Path) -> None:
    """d = 2**-13, whose square is below the smallest float16; beta2 = 0 makes it v: the step is m / sqrt(v) = 1."""
    config = FedAdamConfig(kind="fedadam", lr=0.5, beta1=0.0, beta2=0.0, tau=1e-12)
    before = GlobalModel(write_model(tmp_path, "model", {"w": np.float16([0.0])}))
    after = step_once(config, tmp_path, before, {"w": np.float16([2.0**-13])})
    assert TensorFile(after.model).dtype("w") == np.float16
    assert (values_of(after), values_of(after, "v/w")) == ([0.5], [2.0**-26])


def test_where_nothing_changes_nothing_is_stepped(tmp_path: Path) -> None:
    *_, after = steps_of(ADAM, tmp_path, 0.0, 0.0)
    assert (values_of(after), values_of(after, "m/w")) == ([1.0], [0.0])


def test_a_step_that_is_not_finite_names_the_tensor_and_what_to_do(tmp_path: Path) -> None:
    before = GlobalModel(write_model(tmp_path, "model", {"w": np.float32([0.0])}))
    with pytest.raises(FederationError, match=r"'w' is not finite .* Lower 'server_step\.lr'"):
        step_once(FedAvgMConfig(kind="fedavgm", lr=1e30), tmp_path, before, {"w": np.float32([1e30])})


def test_moments_of_another_step_are_refused(tmp_path: Path) -> None:
    _, after = steps_of(ADAM, tmp_path, 1.0)
    with pytest.raises(FederationError, match=r"'fedadam' so far, .*'server_step\.kind', which is 'fedyogi'\. Set it"):
        step_once(YOGI, tmp_path / "yogi", after, {"w": np.array([2.0])})


@pytest.mark.parametrize(("config", "num_moments"), [(AVGM, 1), (ADAM, 2)], ids=["fedavgm", "fedadam"])
def test_memory_is_one_tensor_of_each_moment_and_windows(tmp_path: Path, config: StepConfig, num_moments: int) -> None:
    """A model of ten tensors of 2 MB: beside those of the moments the one written before, and ten windows."""
    tensors = {f"t{index}": np.ones(500_000, np.float32) for index in range(10)}
    write_tensors(tmp_path / "model", tensors)
    step = make_step(config)
    assert isinstance(step, MomentStep)
    step.window = 16_384
    model = GlobalModel(tmp_path / "model")
    for _ in range(2):  # the second reads moments as well
        folder = tmp_path / f"{model.model.name}.next"
        folder.mkdir()
        tracemalloc.start()
        model = step.take(model, tmp_path / "model", set(tensors), folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (num_moments + 1) * 2_000_000 + 10 * 16_384 * 8
    assert step.num_files == num_moments + 1


EVERY_KIND: list[type[StepConfig]] = [get_args(kind)[0] for kind in get_args(get_args(ServerStepConfig)[0])]
KINDS = [settings for settings in EVERY_KIND if settings is not ExtensionStepConfig]


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings.__name__)
def test_every_kind_of_settings_has_a_step(settings: type[StepConfig]) -> None:
    assert isinstance(make_step.dispatch(settings), type)


def test_a_step_beside_the_others_is_two_classes_and_a_line(tmp_path: Path) -> None:
    class HalfConfig(StepConfig):
        kind: Literal["half"] = "half"

    class Half(MomentStep):
        starts: Mapping[str, float] = {"last": 0.0}
        kind = "half"

        def __init__(self, config: HalfConfig) -> None:
            pass

        def update(self, change: Values, moments: Moments) -> Moments:
            return {"last": change}

        def move(self, moments: Moments) -> Values:
            half: Values = moments["last"] / 2
            return half

    with pytest.raises(AssertionError, match=r"register\(HalfConfig"):
        make_step(HalfConfig())
    make_step.register(HalfConfig, Half)
    assert [values_of(model) for model in steps_of(HalfConfig(), tmp_path, 4.0, 2.0)] == [[1.0], [3.0], [4.0]]

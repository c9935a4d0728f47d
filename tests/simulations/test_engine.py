import os

import pytest

from fedmed.config import RunConfig
from fedmed.errors import ConfigError
from simulations.engine import check_settings, count_workers, share_gpus


def test_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert count_workers(RunConfig(sites=20), 20) == 8
    assert count_workers(RunConfig(sites=20, threads=4), 20) == 2
    assert count_workers(RunConfig(sites=20, threads=16), 20) == 1
    assert count_workers(RunConfig(sites=3), 3) == 3
    assert count_workers(RunConfig(sites=20, workers=5), 20) == 5
    assert count_workers(RunConfig(sites=2, workers=5), 2) == 2


@pytest.mark.parametrize(
    ("num_gpus", "num_workers", "share"),
    [(1, 1, 1.0), (1, 4, 0.25), (2, 3, 0.5), (2, 4, 0.5), (4, 2, 2.0), (4, 3, 1.0)],
)
def test_every_worker_finds_a_place_on_the_gpus(num_gpus: int, num_workers: int, share: float) -> None:
    assert share_gpus(num_gpus, num_workers) == share
    places = num_gpus // share if share >= 1 else num_gpus * int(1 / share)
    assert places >= num_workers


def test_settings_are_built_once_before_a_run() -> None:
    check_settings(RunConfig(sites=2), "file.yaml")
    with pytest.raises(ConfigError, match=r"file\.yaml: model: There is no model 'x'"):
        check_settings(RunConfig.model_validate({"sites": 2, "model": {"name": "x"}}), "file.yaml")
    misspelt = RunConfig.model_validate({"sites": 2, "loss": {"focal": {"weight": 1.0, "gama": 2.0}}})
    with pytest.raises(ConfigError, match=r"file\.yaml: loss: .*gama.*gamma"):
        check_settings(misspelt, "file.yaml")

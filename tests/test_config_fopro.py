"""The section ``fopro``: how it is switched off, what travels of it, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from fedmed.config import RunConfig
from fedmed.config_files import dump_config, load_run_config, validate_settings
from fedmed.errors import ConfigError


def check(**settings: Any) -> RunConfig:
    return validate_settings(RunConfig, {"sites": 2, "classes": ["a", "b"]} | settings, "run.yaml")


@pytest.mark.parametrize("value", [False, None, "off", "none"])
def test_off_is_off(value: object) -> None:
    config = check(fopro=value)
    assert config.fopro is None
    assert config.make_plan().fopro is None


def test_off_in_yaml_and_switched_on_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sites: 2\nfopro: off\n")
    assert load_run_config(file).fopro is None
    config = load_run_config(file, ["fopro.weight=0.5"])
    assert config.fopro is not None
    assert config.fopro.weight == 0.5
    file.write_text(dump_config(config))
    assert load_run_config(file) == config


def test_no_path_of_the_server_travels(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sites: 2\nclasses: [a, b]\nfopro: {teacher: {name: resnet50, source: file, path: weights.pth}}\n")
    config = load_run_config(file)
    assert config.fopro is not None
    assert config.fopro.teacher is not None
    assert config.fopro.teacher.path == str(Path("weights.pth").absolute())
    assert "weights.pth" not in config.make_plan().model_dump_json()


def test_without_a_teacher_the_sites_distil_nothing() -> None:
    plan = check(fopro={"teacher": "none", "proxy": {"source": "phantom"}}).make_plan()
    assert plan.fopro is None


@pytest.mark.parametrize(
    ("fopro", "expected"),
    [
        ({"wieght": 1}, "'fopro.wieght'.*weight"),
        ({"teacher": {"source": "pakage"}}, "'fopro.teacher.source' is 'pakage'"),
        ({"teacher": {"source": "file"}}, "'path' of the teacher goes with 'source: file'"),
        ({"teacher": {"image_size": 16}}, "'fopro.teacher.image_size' is 16"),
        ({"prompt": {"mode": "statc"}}, "'fopro.prompt.mode' is 'statc'.*static"),
        ({"prompt": {"g_max": 1.0}}, "'fopro.prompt.g_max' is 1.0"),
        ({"proxy": {"source": "flder"}}, "'fopro.proxy.source' is 'flder'.*folder"),
        ({"proxy": {"source": "folder", "rot": "x"}}, "'fopro.proxy.rot'.*root"),
    ],
)
def test_wrong_settings_are_explained(fopro: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(fopro=fopro)


@pytest.mark.parametrize(
    ("settings", "expected"), [({"batch_norm": "recalibrate"}, "stays as it is"), ({"fopro": {}}, "Set fopro: off")]
)
def test_frozen_teacher_goes_with_neither(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(model={"name": "frozen_teacher"}, **settings)

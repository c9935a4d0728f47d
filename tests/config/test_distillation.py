"""The section ``fopro``: how it is switched off, what travels of it, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from fedmed.config import Plan, RunConfig
from fedmed.config.files import dump_config, load_run_config, validate_settings
from fedmed.config.server import ServerConfig
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
        ({"exchange": "all"}, "'fopro.exchange' is 'all'.*aux"),
        ({"exchange": "aux", "compression": {}}, "no complete network.*Set exchange: both or main"),
        ({"teacher": "self", "prompt": {"steps": 5}}, "the teacher is 'self' and 'prompt.mode' is 'static'"),
        ({"teacher": {"source": "self", "name": "resnet50"}}, "'self', which goes with no 'name'"),
        ({"proxy": {"source": "flder"}}, "'fopro.proxy.source' is 'flder'.*folder"),
        ({"proxy": {"source": "folder", "rot": "x"}}, "'fopro.proxy.rot'.*root"),
    ],
)
def test_wrong_settings_are_explained(fopro: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(fopro=fopro)


@pytest.mark.parametrize("teacher", ["self", {"source": "self"}])
def test_the_global_model_as_its_own_teacher(teacher: object, tmp_path: Path) -> None:
    config = check(fopro={"teacher": teacher})
    assert config.fopro is not None
    assert config.fopro.teacher is not None
    assert config.fopro.teacher.is_self
    assert (config.fopro.weight, config.fopro.prompt.mode) == (1.0, "none")
    stated = check(fopro={"teacher": teacher, "weight": 0.5}).fopro
    assert stated is not None
    assert stated.weight == 0.5
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config))
    assert load_run_config(file) == config
    plan = config.make_plan()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_real_federation_has_a_model_to_release() -> None:
    settings = {
        "sites": ["north"], "classes": ["a", "b"], "address": "server:9092", "name": "x",
        "fopro": {"exchange": "aux"},
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"'fopro\.exchange' is 'aux'.*no model to release\. Set fopro\.exchange: both"
    ):
        validate_settings(ServerConfig, settings, "server.yaml")
    validate_settings(ServerConfig, settings | {"fopro": {"exchange": "main"}}, "server.yaml")


@pytest.mark.parametrize(
    ("settings", "expected"), [({"batch_norm": "recalibrate"}, "stays as it is"), ({"fopro": {}}, "Set fopro: off")]
)
def test_frozen_teacher_goes_with_neither(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(model={"name": "frozen_teacher"}, **settings)

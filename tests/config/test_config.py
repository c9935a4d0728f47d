from pathlib import Path

import pytest

from fedmed.config import ImageTableData, RunConfig
from fedmed.config.files import apply_override, dump_config, expand_variables, load_run_config
from fedmed.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", ["simulation.yaml", "ham10000_sites.yaml"])
def test_shipped_configs_load(name: str) -> None:
    assert load_run_config(ROOT / "configs" / name).model.name == "adsr_resnet18"


def test_shipped_simulation_explains_every_setting() -> None:
    import yaml

    def keys(section: dict, prefix: str = "") -> set[str]:
        found = set()
        for key, value in section.items():
            found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return found

    shipped = keys(yaml.safe_load((ROOT / "configs" / "simulation.yaml").read_text()))
    everything = keys(RunConfig(sites=4).model_dump(mode="json"))
    not_of_the_phantom = {"classes", "data.partition.alpha", "data.partition.min_images"}
    assert everything - shipped == not_of_the_phantom


def test_round_trip_gives_an_equal_config(tmp_path: Path) -> None:
    config = load_run_config(ROOT / "configs" / "simulation.yaml", ["model.gate=depthwise", "loss.cws={weight: 0.5}"])
    assert config.model.options == {"gate": "depthwise"}
    assert load_run_config(write(tmp_path, dump_config(config))) == config


def test_a_setting_that_had_no_effect_is_opened_and_not_taken_from_set(tmp_path: Path) -> None:
    old = load_run_config(write(tmp_path, "sites: 2\nshare_class_counts: false"))
    assert old == load_run_config(write(tmp_path, "sites: 2"))
    assert message(write(tmp_path, "sites: 2"), "share_class_counts=true").startswith(
        "--set share_class_counts=true: there is no key 'share_class_counts'"
    )


def test_overrides_reach_nested_keys_and_numbers_in_exponent_form(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path, "sites: 2"), ["training.optimizer.lr=1e-3", "data.image_size=32"])
    assert config.training.optimizer.lr == 0.001
    assert config.data.image_size == 32


def test_override_of_one_loss_term_keeps_the_default_others(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path, "sites: 2"), ["loss.cws=0.25"])
    assert config.loss == {"ce": 1.0, "cws": 0.25}


def test_unknown_key_names_file_key_value_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "sites: 2\nrunds: 7\n")
    text = message(path)
    assert str(path) in text
    assert "no key 'runds' (value found: 7). Did you mean 'rounds'?" in text
    assert "Allowed here: aggregation" in text


def test_unknown_key_of_the_data_lists_the_keys_of_its_source(tmp_path: Path) -> None:
    text = message(write(tmp_path, "data: {source: npz, file: x.npz, image_key: a}"))
    assert "'data.image_key'" in text
    assert "Did you mean 'image_size'?" in text or "Did you mean 'images_key'?" in text
    assert "labels_key" in text
    assert "num_classes" not in text


def test_wrong_values_name_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, "sites: 2\nbatch_norm: avrage\ntraining: {optimizer: {lr: -1}}\n")
    text = message(path)
    assert "'batch_norm' is 'avrage'. Did you mean 'average'? Allowed: 'average', 'local' or 'recalibrate'." in text
    assert "'training.optimizer.lr' is -1. Input should be greater than 0." in text


def test_wrong_override_is_reported_as_such(tmp_path: Path) -> None:
    assert message(write(tmp_path, "sites: 2"), "rounds=0").startswith("--set rounds=0: 'rounds' is 0.")


def test_wrong_source_lists_the_sources(tmp_path: Path) -> None:
    text = message(write(tmp_path, "data: {source: npy, file: x}"))
    assert "'data.source' is 'npy'. Did you mean 'npz'? Allowed: class_folders, image_table, npz, phantom." in text


def test_phantom_needs_a_number_of_sites(tmp_path: Path) -> None:
    assert "'sites' must be a number" in message(write(tmp_path, "rounds: 2"))


def test_a_simulation_releases_by_itself(tmp_path: Path) -> None:
    text = message(write(tmp_path, "sites: 2\nrelease: manual\n"))
    assert "'release' is 'manual'" in text
    assert "Allowed in a simulation: automatic" in text


def test_shares_must_leave_room_for_training(tmp_path: Path) -> None:
    text = message(write(tmp_path, "sites: 2\ndata: {source: phantom, split: {validation: 0.5, test: 0.5}}"))
    assert "'data.split'" in text
    assert "at least 0.1" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "the key 'a' is given twice (line 2, column 1)"),
        ("a: b: c", "line 1, column 5"),
        ("- 1\n", "must hold 'key: value' lines"),
    ],
)
def test_broken_yaml_says_where(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(write(tmp_path, text))


def test_missing_file_says_so(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "none.yaml")


@pytest.mark.parametrize("override", ["rounds", "=3", "a..b=1"])
def test_override_must_be_key_and_value(override: str) -> None:
    with pytest.raises(ConfigError, match="--set takes key=value"):
        apply_override({}, override)


def test_override_inside_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'rounds' is a value"):
        apply_override({"rounds": 3}, "rounds.x=1")


def test_variables_are_expanded_and_paths_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.chdir(tmp_path)
    assert expand_variables("${SOME_FOLDER}/x ${NOT_SET:-y}", "here") == f"{tmp_path}/x y"
    with pytest.raises(ConfigError, match="here uses the environment variable NOT_SET, which is not set"):
        expand_variables("${NOT_SET}", "here")
    config = load_run_config(write(tmp_path, "data: {source: image_table, root: ../images}"))
    assert isinstance(config.data, ImageTableData)
    assert config.data.root == str(tmp_path.parent / "images")

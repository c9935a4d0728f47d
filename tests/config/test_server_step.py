"""Settings of the step from the average to the next model."""

from pathlib import Path

import pytest

from fedmed.config import AverageConfig, FedAdamConfig, FedAvgMConfig, RunConfig
from fedmed.config.files import dump_config, load_run_config
from fedmed.errors import ConfigError

SIMULATION = Path(__file__).resolve().parents[2] / "configs" / "simulation.yaml"


def load(*overrides: str) -> RunConfig:
    return load_run_config(SIMULATION, overrides)


def test_the_average_is_the_default() -> None:
    assert load().server_step == RunConfig(sites=2).server_step == AverageConfig(kind="average")
    assert load().server_step.describe() == "average"


def test_a_kind_has_the_numbers_of_its_paper(tmp_path: Path) -> None:
    config = load("server_step.kind=fedadam")
    assert config.server_step == FedAdamConfig(kind="fedadam", lr=0.01, beta1=0.9, beta2=0.99, tau=0.001)
    assert config.server_step.describe() == "fedadam (lr 0.01, beta1 0.9, beta2 0.99, tau 0.001)"
    assert load("server_step={kind: fedavgm}").server_step == FedAvgMConfig(kind="fedavgm", lr=1.0, momentum=0.9)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_run_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["kind=fedadm"],
            "'server_step.kind' is 'fedadm'. Did you mean 'fedadam'? Allowed: average, fedadam, fedavgm,",
        ),
        (["lr=0.1"], "no key 'server_step.lr' (value found: 0.1). Allowed here: kind."),
        (["kind=fedavgm", "beta1=0.5"], "no key 'server_step.beta1'"),
        (["kind=fedyogi", "beta2=1"], "'server_step.beta2' is 1"),
        (["kind=fedyogi", "tau=0"], "'server_step.tau' is 0"),
        (["kind=fedavgm", "lr=-1"], "--set server_step.lr=-1: 'server_step.lr' is -1"),
    ],
)
def test_wrong_settings_say_what_is_allowed(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*(f"server_step.{override}" for override in overrides))
    assert words in str(caught.value)

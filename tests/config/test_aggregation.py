"""Settings of the rules for fairness: what is allowed, and what a wrong one is told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fedmed.config import AgnosticConfig, DivergenceConfig, GroupMinimaxConfig, Plan, RunConfig
from fedmed.config.files import dump_config, load_run_config
from fedmed.errors import ConfigError

SIMULATION = Path(__file__).resolve().parents[2] / "configs" / "simulation.yaml"


def load(*overrides: str) -> RunConfig:
    return load_run_config(SIMULATION, overrides)


def test_no_rule_by_default() -> None:
    assert load().aggregation.fair is None
    assert load("aggregation.fair=null").aggregation.fair is None


def test_a_rule_can_be_set_key_by_key_and_as_a_whole(tmp_path: Path) -> None:
    config = load("aggregation.fair.kind=agnostic", "aggregation.fair.step=0.5")
    assert config.aggregation.fair == AgnosticConfig(kind="agnostic", step=0.5)
    assert load("aggregation.fair={kind: agnostic, step: 0.5}") == config
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_run_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("kind", "losses"),
    [("q_fedavg", "site"), ("agnostic", "site"), ("gap_to_local", "site"), ("fairfed", "none"),
     ("group_minimax", "groups")],
)  # fmt: skip
def test_the_plan_asks_for_what_the_rule_needs(kind: str, losses: str) -> None:
    attribute = ["aggregation.fair.attribute=sex"] if kind in {"fairfed", "group_minimax"} else []
    config = load(f"aggregation.fair.kind={kind}", *attribute)
    plan = config.model_copy(update={"classes": ["a", "b"]}).make_plan()
    assert plan.losses == losses
    assert plan.loss_attribute == ("sex" if attribute else None)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    if kind == "group_minimax":
        assert isinstance(config.aggregation.fair, GroupMinimaxConfig)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["kind=qfedavg"],
            "'aggregation.fair.kind' is 'qfedavg'. Did you mean 'q_fedavg'? Allowed: agnostic, divergence, fairfed, ",
        ),
        (["q=1"], "'aggregation.fair.kind' is 'nothing'"),
        (["kind=q_fedavg", "q=-1"], "--set aggregation.fair.q=-1: 'aggregation.fair.q' is -1"),
        (["kind=q_fedavg", "p=1"], "no key 'aggregation.fair.p' (value found: 1). Allowed here: kind, lipschitz, q."),
        (["kind=fairfed"], "the key 'aggregation.fair.attribute' is missing"),
        (["kind=fairfed", "attribute=sex", "figure=gap_auc"], "'aggregation.fair.figure' is 'gap_auc'"),
    ],
)
def test_wrong_rules_are_explained(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*(f"aggregation.fair.{override}" for override in overrides))
    assert words in str(caught.value)


def test_gap_to_local_needs_the_local_models() -> None:
    with pytest.raises(ConfigError, match=r"'gap_to_local'.*'benefit' is false\. Set benefit: true"):
        load("aggregation.fair.kind=gap_to_local", "benefit=false")


def test_divergence_asks_the_sites_for_one_number() -> None:
    config = load("aggregation.fair.kind=divergence", "fopro.weight=1").model_copy(update={"classes": ["a", "b"]})
    assert config.aggregation.fair == DivergenceConfig(kind="divergence", size_power=0.5, divergence_power=1, floor=20)
    assert config.make_plan().divergence == "plain"
    assert config.make_plan().losses == "none"
    inverse = load("aggregation.fair={kind: divergence, inverse: true}", "fopro.weight=1")
    assert inverse.model_copy(update={"classes": ["a", "b"]}).make_plan().divergence == "inverse"
    assert load().model_copy(update={"classes": ["a", "b"]}).make_plan().divergence == "none"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fopro=off"], "there is no 'fopro' with a teacher. Set fopro: {}"),
        (["fopro.teacher=none"], "there is no 'fopro' with a teacher"),
        (["fopro.weight=0"], "there is 'fopro.weight: 0'"),
        (["fopro.ramp_from=2"], "'fopro.ramp_from' is 2"),
        (["fopro.exchange=main"], "a projector of its own"),
        (["fopro.weight=1", "aggregation.weighting=equal"], "Set aggregation.weighting: images"),
    ],
)
def test_divergence_needs_a_teacher_in_every_round(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("aggregation.fair.kind=divergence", *overrides)
    assert "'aggregation.fair.kind' is 'divergence'" in str(caught.value)
    assert words in str(caught.value)


def test_the_attribute_must_be_one_that_is_told_apart() -> None:
    rule = ["aggregation.fair.kind=fairfed", "aggregation.fair.attribute=sex"]
    with pytest.raises(ConfigError, match=r"'aggregation\.fair\.attribute' is 'sex'\. Allowed .*: age_band"):
        load(*rule, "fairness.attributes=[age_band]")
    assert load(*rule, "fairness.attributes=[sex]").aggregation.attribute == "sex"
    crossed = load(rule[0], "aggregation.fair.attribute=sex x age_band", "fairness.attributes=[age_band, sex]")
    assert crossed.aggregation.attribute == "sex x age_band"


def test_infinite_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        AgnosticConfig(kind="agnostic", step=float("inf"))

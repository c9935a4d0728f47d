"""The seam for rules: each is found by its settings, and a new one is two classes and a line."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import pytest

from fedmed.aggregation import RoundUpdates, Rule, RuleState, Weights, make_rule
from fedmed.aggregation.rule import PlainWeighting
from fedmed.config import ExtensionRuleConfig, FairConfig, LossReport, RuleConfig, TrainingConfig

EVERY_KIND: list[type[RuleConfig]] = [get_args(kind)[0] for kind in get_args(get_args(FairConfig)[0])]
KINDS = [settings for settings in EVERY_KIND if settings is not ExtensionRuleConfig]


@dataclass
class Told:
    site: str
    images: int | None = 10
    update_norm: float | None = 1.0
    start_loss: float | None = None
    group_losses: dict[str, tuple[int, float]] | None = None
    divergence: float | None = None


def make_updates(**losses: float | None) -> RoundUpdates:
    return RoundUpdates(
        round_number=1,
        num_rounds=2,
        training=TrainingConfig(),
        updates=[Told(site, start_loss=loss) for site, loss in losses.items()],
        shares={site: 1 / len(losses) for site in losses},
        tables_before=dict,
        local_losses=dict,
    )


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings.__name__)
def test_every_kind_of_settings_has_a_rule_that_needs_what_they_say(settings: type[RuleConfig]) -> None:
    rule = make_rule.dispatch(settings)
    assert isinstance(rule, type)
    assert rule.losses == settings.losses


def test_no_settings_are_plain_weighting() -> None:
    rule = make_rule(None)
    assert isinstance(rule, PlainWeighting)
    assert rule.losses == "none"
    updates = make_updates(a=1.0, b=None)
    assert rule.weigh(updates, {}) == (updates.shares, {})
    assert rule.to_request({"weights": {"a": 1.0}}) == {}


def test_a_rule_beside_the_others_is_two_classes_and_a_line() -> None:
    class WorstConfig(RuleConfig):
        losses: ClassVar[LossReport] = "site"
        kind: Literal["worst"] = "worst"

    @dataclass(frozen=True)
    class Worst(Rule):
        config: WorstConfig

        def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
            losses = updates.start_losses()
            return {max(losses, key=lambda site: losses[site]): 1.0}, state

    with pytest.raises(AssertionError, match=r"register\(WorstConfig"):
        make_rule(WorstConfig())
    make_rule.register(WorstConfig, Worst)
    rule = make_rule(WorstConfig())
    assert rule.weigh(make_updates(a=1.0, b=3.0, c=None), {}) == ({"b": 1.0}, {})
    assert rule.to_request({}) == {}


def test_a_silent_site_counts_as_the_weighted_mean() -> None:
    assert make_updates(a=1.0, b=3.0, c=None).complete({"a": 1.0, "b": 3.0}) == {"a": 1.0, "b": 3.0, "c": 2.0}

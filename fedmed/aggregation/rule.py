"""The seam for rules that weigh the updates of a round.

A rule is a class beside its formula: :mod:`fedmed.aggregation.fair_rules` has those about sites,
:mod:`fedmed.aggregation.group_rules` those about patient groups, :mod:`fedmed.aggregation.divergence_rule` the one
about a teacher. It is found by the class of its settings. So a new rule is two things: its settings in
``fedmed/config/aggregation.py``, which also say what it needs of the sites, and in one of these files its class with
the line ``make_rule.register(ItsConfig, ItsRule)``.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from fedmed.config import LossReport, RuleConfig, TrainingConfig
from fedmed.metrics.site_tables import SiteTables
from fedmed.protocol.reports import GroupLosses

Weights = dict[str, float]
RuleState = dict[str, dict[str, float]]
"""Tables of numbers by name, all of it JSON: what a rule remembers, and what it adds to a request."""


class SiteUpdate(Protocol):
    """An accepted update as far as it concerns a rule."""

    site: str
    images: int | None
    update_norm: float | None
    """Length of the change of the model's parameters."""
    start_loss: float | None
    """Mean loss of the global model on the site's training images."""
    group_losses: GroupLosses | None
    """Likewise by patient group: number of images and sum of losses."""
    divergence: float | None
    """Of the site's features from the teacher's."""


@dataclass(frozen=True)
class RoundUpdates:
    """The accepted updates of a round, and what else a rule may look at."""

    round_number: int
    """From 1."""
    num_rounds: int
    """Of the whole run."""
    training: TrainingConfig
    """How the sites have trained."""
    updates: Sequence[SiteUpdate]
    """In the order of the sites' names."""
    shares: Weights
    """The sites' weights without any rule, which sum to 1."""
    tables_before: Callable[[], Mapping[str, SiteTables]]
    """Gives the validation tables of the model that the round began with, by site; empty in the first."""
    local_losses: Callable[[], Mapping[str, float]]
    """Gives the loss of each site's own model on its training images."""

    def start_losses(self) -> Weights:
        """Return the losses of the sites that have told theirs."""
        return {u.site: u.start_loss for u in self.updates if u.start_loss is not None}

    def complete(self, told: Mapping[str, float]) -> Weights:
        """Return a number for every site: the weighted mean of the others where a site may not tell its own."""
        mean = weighted_mean({site: self.shares[site] for site in told}, told)
        return {site: told.get(site, mean) for site in self.shares}


class Rule(Protocol):
    """Weighs the updates of a round."""

    losses: ClassVar[LossReport] = "none"
    """The losses that the sites tell. With ``site``, a round in which none does ends the run."""

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Return the weights of the updates and what the rule remembers for the next round.

        Parameters
        ----------
        updates : RoundUpdates
            The round.
        state : dict
            What this function returned in the round before; empty at first.

        Returns
        -------
        weights : dict of str to float
            Not negative; the rest to 1 is that of the global model.
        state : dict
            JSON.

        Raises
        ------
        FederationError
            If no site told what the rule needs.
        """

    def to_request(self, state: RuleState) -> RuleState:
        """Return what goes to the sites with the next request to train; ``group_weights`` is all that they know."""
        return {}


class PlainWeighting(Rule):
    """The weights are the shares: FedAvg, or every site the same."""

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Return the shares."""
        return updates.shares, {}


@functools.singledispatch
def make_rule(config: RuleConfig | None) -> Rule:
    """Return the rule of some settings; None is plain weighting."""
    raise AssertionError(f"make_rule.register({type(config).__name__}, ...) is missing beside the rule")


@make_rule.register
def _make_plain(config: None) -> Rule:
    return PlainWeighting()


def normalise(weights: Mapping[str, float]) -> Weights:
    """Return weights, not negative, scaled to the sum 1, in the order of their names.

    Raises
    ------
    ValueError
        If one is negative or not finite, or none is positive.
    """
    total = math.fsum(weights.values())
    if not all(math.isfinite(value) and value >= 0 for value in weights.values()) or not total > 0:
        raise ValueError(f"the weights are {dict(weights)}; they must be finite, not negative, and one positive")
    return {name: weights[name] / total for name in sorted(weights)}


def weighted_mean(weights: Mapping[str, float], values: Mapping[str, float]) -> float:
    """Return the mean of ``values``, of which each has a weight, not all 0."""
    total = math.fsum(weights.values())
    return math.fsum(weights[name] * values[name] for name in sorted(values)) / total

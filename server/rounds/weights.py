"""The weights of a round's updates: what the sites have told goes into the rule that the settings name."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedmed.aggregation import RoundUpdates, RuleState, WeightedUpdate, Weights, bound_weights, make_rule
from fedmed.aggregation.extension import check_weights, explained_failure
from fedmed.aggregation.rule import normalise
from fedmed.config import (
    ExtensionRuleConfig,
    FederationConfig,
)
from fedmed.errors import FederationError
from fedmed.metrics.site_tables import SiteTables
from server.rounds.session import Session
from server.rounds.updates import UpdateCollector

_GLOBAL = ""
"""In place of a site's name: the global model, of which a short step keeps a part. No site has an empty name."""
_NOTHING = 1e-9


def weigh_updates(
    config: FederationConfig,
    collector: UpdateCollector,
    state: RuleState,
    *,
    round_number: int,
    before: Callable[[], Mapping[str, SiteTables]],
    local_losses: Callable[[], Mapping[str, float]],
) -> tuple[Weights, RuleState]:
    """Return the weights of the accepted updates and what the rule remembers for the next round.

    ``before`` and ``local_losses`` are :attr:`fedmed.aggregation.RoundUpdates.tables_before` and ``local_losses``; they
    are asked only by a rule that needs them.

    Raises
    ------
    FederationError
        If no site told what the rule needs, or a rule from outside fedmed gives weights that cannot be.
    """
    rule = make_rule(config.aggregation.fair)
    updates = RoundUpdates(
        round_number=round_number,
        num_rounds=config.rounds,
        training=config.training,
        updates=collector.accepted(),
        shares=normalise(collector.site_weights(config.aggregation.weighting)),
        tables_before=before,
        local_losses=local_losses,
    )
    if rule.losses == "site" and not updates.start_losses():
        assert config.aggregation.fair is not None, "plain weighting needs no losses"
        raise FederationError(
            f"The rule '{config.aggregation.fair.kind}' needs the sites' losses, and no site told its own in round "
            f"{round_number}. A site with fewer training images than its policy.suppression.k tells none. Choose "
            "another aggregation.fair."
        )
    fair = config.aggregation.fair
    if not isinstance(fair, ExtensionRuleConfig):
        return rule.weigh(updates, state)
    with explained_failure("rule", fair.kind):
        weights, remembered = rule.weigh(updates, state)
        check_weights(fair.kind, weights, updates.shares)
    return weights, remembered


def bound_round(
    session: Session, collector: UpdateCollector, weights: Mapping[str, float], recent_norms: Sequence[float]
) -> Weights:
    """Return the weights within the bounds of the settings; a site at a bound is named, when that begins.

    Parameters
    ----------
    session : Session
        The federation.
    collector : UpdateCollector
        The updates; gets what was cut of each.
    weights : mapping of str to float
        Of the accepted updates.
    recent_norms : sequence of float
        Lengths of earlier updates.
    """
    bounded = bound_weights(session.config.aggregation, weights, collector.lengths(), recent_norms)
    cut = bounded.describe()
    for site, text in cut.items():
        collector.updates[site].limit = text
        if site not in session.limited:  # what goes on is told once
            session.listener.on_note(f"{site}: {text}")
    session.limited = set(cut)
    return bounded.weights


def to_weighted(collector: UpdateCollector, weights: Mapping[str, float], model_file: Path) -> list[WeightedUpdate]:
    """Return the files that are averaged; the global model's among them where the weights do not sum to 1."""
    updates = [WeightedUpdate(site, collector.file_of(site), weight) for site, weight in weights.items() if weight > 0]
    rest = 1 - math.fsum(weights.values())
    return [WeightedUpdate(_GLOBAL, model_file, rest), *updates] if rest > _NOTHING else updates

"""The weights of a round's updates, where the aggregation has a rule for fairness.

Puts the rules of :mod:`fedmed.aggregation.fair_rules` and :mod:`fedmed.aggregation.divergence_rule` to work: what
sites have told goes in, and what a rule remembers is a JSON mapping in the state of the round loop.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedmed.aggregation import WeightedUpdate
from fedmed.aggregation.divergence_rule import weigh_by_divergence
from fedmed.aggregation.fair_rules import (
    Weights,
    ascend_simplex,
    normalise,
    weigh_by_gap_distance,
    weigh_by_gap_to_local,
    weigh_by_loss_power,
    weigh_groups,
)
from fedmed.config import (
    AgnosticConfig,
    DivergenceConfig,
    FairFedConfig,
    FederationConfig,
    GapToLocalConfig,
    GroupMinimaxConfig,
    QFedAvgConfig,
)
from fedmed.errors import FederationError
from fedmed.fairness.figures.gap_figures import compute_gaps
from fedmed.metrics.site_tables import FEDERATED, SiteTables, combine_attribute
from fedmed.training.schedules import learning_rate
from server.rounds.updates import UpdateCollector

State = dict[str, Any]
_GLOBAL = ""
"""In place of a site's name: the global model, of which a short step keeps a part. No site has an empty name."""
_NOTHING = 1e-9


def weigh_updates(
    config: FederationConfig,
    collector: UpdateCollector,
    state: State,
    *,
    round_number: int,
    before: Callable[[], Mapping[str, SiteTables]],
    local_losses: Callable[[], Mapping[str, float]],
) -> tuple[Weights, State]:
    """Return the weights of the accepted updates and what the rule remembers for the next round.

    Parameters
    ----------
    config : FederationConfig
        Its ``aggregation`` names the rule.
    collector : UpdateCollector
        The round's updates.
    state : dict
        What this function returned in the round before; empty at first.
    round_number : int
        From 1.
    before : callable
        Gives the validation tables of the model that the round began with, by site; empty in the first. Asked only by
        the rule that needs them.
    local_losses : callable
        Gives the loss of each site's own model on its training images; likewise.

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
    fair, shares = config.aggregation.fair, normalise(collector.site_weights(config.aggregation.weighting))
    if fair is None:
        return shares, {}
    losses = {u.site: u.start_loss for u in collector.accepted() if u.start_loss is not None}
    if fair.losses == "site" and not losses:
        raise FederationError(
            f"The rule '{fair.kind}' needs the sites' losses, and no site told its own in round {round_number}. A site "
            "with fewer training images than its policy.suppression.k tells none. Choose another aggregation.fair."
        )
    match fair:
        case QFedAvgConfig():
            lipschitz = fair.lipschitz or 1 / max(_step_length(config, collector, shares, round_number), _NOTHING)
            norms = {u.site: u.update_norm or 0.0 for u in collector.accepted()}
            weights = weigh_by_loss_power(shares, _complete(losses, shares), norms, q=fair.q, lipschitz=lipschitz)
        case AgnosticConfig():
            known = {**shares, **state.get("weights", {})}
            moved = ascend_simplex(known, losses, fair.step)
            return normalise({site: moved[site] for site in shares}), {"weights": moved}
        case GroupMinimaxConfig():
            return shares, _move_groups(collector, state, fair)
        case FairFedConfig():
            moved = weigh_by_gap_distance({**shares, **state.get("weights", {})}, _distances(before(), fair), fair.beta)
            return _keep_some(moved, shares), {"weights": moved}
        case GapToLocalConfig():
            weights = weigh_by_gap_to_local(shares, losses, local_losses(), fair.strength)
        case DivergenceConfig():
            weights = _weigh_by_divergence(collector, shares, fair, round_number)
    return weights, {}


def request_values(state: State) -> dict[str, dict[str, float]]:
    """Return what a rule adds to the next request to train."""
    return {"group_weights": state["group_weights"]} if "group_weights" in state else {}


def to_weighted(collector: UpdateCollector, weights: Mapping[str, float], model_file: Path) -> list[WeightedUpdate]:
    """Return the files that are averaged; the global model's among them where the weights do not sum to 1."""
    updates = [WeightedUpdate(site, collector.file_of(site), weight) for site, weight in weights.items() if weight > 0]
    rest = 1 - math.fsum(weights.values())
    return [WeightedUpdate(_GLOBAL, model_file, rest), *updates] if rest > _NOTHING else updates


def _weigh_by_divergence(
    collector: UpdateCollector, shares: Weights, fair: DivergenceConfig, round_number: int
) -> Weights:
    told = {u.site: u.divergence for u in collector.accepted() if u.divergence is not None}
    if not told:
        raise FederationError(
            "The rule 'divergence' needs the sites' distances from the teacher, and no site told its own in round "
            f"{round_number}. A site with images of one class, or fewer training images than its policy.suppression.k, "
            "tells none. Choose another aggregation.fair."
        )
    images = {u.site: u.images for u in collector.accepted() if u.images is not None}
    return weigh_by_divergence(
        images,
        _complete(told, shares),
        size_power=fair.size_power,
        divergence_power=fair.divergence_power,
        floor=fair.floor,
    )


def _move_groups(collector: UpdateCollector, state: State, fair: GroupMinimaxConfig) -> State:
    """Move the groups' weights, and return them with what an image of each group weighs in the next round."""
    told = [losses for u in collector.accepted() for losses in (u.group_losses or {}).items()]
    if not told and not state:
        raise FederationError(
            f"The rule 'group_minimax' needs losses by '{fair.attribute}', and no site told any. Check that the sites "
            f"have an attribute of this name, and groups of at least policy.suppression.k training images."
        )
    images = {group: sum(n for name, (n, _) in told if name == group) for group, _ in told}
    risks = {group: math.fsum(total for name, (_, total) in told if name == group) / images[group] for group in images}
    images = {**state.get("images", {}), **images}
    shares = normalise(images)
    weights = ascend_simplex(normalise({**shares, **state.get("weights", {})}), risks, fair.step)
    return {"weights": weights, "images": images, "group_weights": weigh_groups(weights, shares)}


def _distances(before: Mapping[str, SiteTables], fair: FairFedConfig) -> Weights:
    """Return how far each site's gap between groups is from that of all images; without sites that have no gap."""
    pooled = combine_attribute(before, fair.attribute)
    overall = None if pooled is None else compute_gaps(pooled)[fair.figure].value
    if overall is None:
        return {}
    found = {}
    for site, tables in before.items():
        own = tables.models[FEDERATED].get(fair.attribute)
        value = None if own is None else compute_gaps(own)[fair.figure].value
        if value is not None:
            found[site] = abs(value - overall)
    return found


def _keep_some(moved: Weights, shares: Weights) -> Weights:
    """Return the weights of the sites that are here, or their shares where all of these have the weight 0."""
    here = {site: moved[site] for site in shares}
    return normalise(here if any(here.values()) else shares)


def _complete(losses: Weights, shares: Weights) -> Weights:
    """Return a number for every site: the mean of the others where a site may not tell its own."""
    total = math.fsum(shares[site] for site in losses)
    mean = math.fsum(shares[site] * loss for site, loss in losses.items()) / total
    return {site: losses.get(site, mean) for site in shares}


def _step_length(config: FederationConfig, collector: UpdateCollector, shares: Weights, round_number: int) -> float:
    """Return by how much a round's local training multiplies a gradient, on average over the sites.

    ``rate * steps / (1 - momentum)`` with the rate of the round's last epoch: for one step without momentum the
    learning rate. So (global model - site's model) / length is the mean gradient of the round, which the published
    step of q-FedAvg is derived for; 1 / learning rate alone would take it for many times as long, and hardly move.
    """
    training = config.training
    epochs, optimizer = training.epochs_per_round, training.optimizer
    rate = learning_rate(training.schedule, optimizer.lr, round_number * epochs - 1, config.rounds * epochs)
    momentum = optimizer.momentum if optimizer.name == "sgd" else 0.0
    images = {u.site: u.images or 1 for u in collector.accepted()}
    steps = math.fsum(share * math.ceil(images[site] / training.batch_size) for site, share in shares.items())
    return rate * epochs * steps / (1 - momentum)

"""Aggregation rules that aim at fairness between patient groups; symbols as in :mod:`fedmed.aggregation.fair_rules`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedmed.aggregation.fair_rules import ascend_simplex
from fedmed.aggregation.rule import RoundUpdates, Rule, RuleState, Weights, make_rule, normalise
from fedmed.config import FairFedConfig, GroupMinimaxConfig
from fedmed.errors import FederationError
from fedmed.fairness.figures.gap_figures import compute_gaps, leave_out_unknown
from fedmed.metrics.classification import count_values
from fedmed.metrics.site_tables import FEDERATED, SiteTables, combine_attribute
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import gap_defined, optional_float


def weigh_groups(weights: Mapping[str, float], shares: Mapping[str, float]) -> Weights:
    """Return the weight of an image of each group, ``mu_g / rho_g``.

    Parameters
    ----------
    weights : mapping of str to float
        mu_g, which sum to 1.
    shares : mapping of str to float
        rho_g > 0, the share of each group among the images of all groups, which sum to 1.

    Notes
    -----
    The groups' risks add over the sites: with n_kg images of group g at site k, n_k of all groups there, n in total and
    l_i the loss of an image, the mean over the sites, weighted by their images, of the losses so weighted is

        sum_k (n_k / n) (1 / n_k) sum_i (mu_g(i) / rho_g(i)) l_i = sum_g mu_g r_g,

    because ``rho_g = sum_k n_kg / n`` and ``r_g`` is the mean loss over the group's images at all sites. So no site
    needs to know another's groups, and the mean weight of an image is 1.
    """
    return {group: weights[group] / shares[group] for group in sorted(weights)}


@dataclass(frozen=True)
class GroupMinimax(Rule):
    """FedMinMax: what moves are the weights of patient groups, with which the sites weigh their images."""

    losses = GroupMinimaxConfig.losses
    config: GroupMinimaxConfig

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Leave the sites their shares, and move the groups' weights by the losses that were told."""
        told = [losses for u in updates.updates for losses in (u.group_losses or {}).items()]
        if not told and not state:
            raise FederationError(
                f"The rule '{self.config.kind}' needs losses by '{self.config.attribute}', and no site told any. Check "
                "that the sites have an attribute of this name, and groups of at least policy.suppression.k training "
                "images."
            )
        here = {group: sum(n for name, (n, _) in told if name == group) for group, _ in told}
        risks = {group: math.fsum(total for name, (_, total) in told if name == group) / here[group] for group in here}
        images = {**state.get("images", {}), **here}
        shares = normalise(images)
        weights = ascend_simplex(normalise({**shares, **state.get("weights", {})}), risks, self.config.step)
        return updates.shares, {"weights": weights, "images": images, "group_weights": weigh_groups(weights, shares)}

    def to_request(self, state: RuleState) -> RuleState:
        """Return what an image of each group weighs."""
        return {"group_weights": state["group_weights"]} if state else {}


make_rule.register(GroupMinimaxConfig, GroupMinimax)


def weigh_by_gap_distance(weights: Mapping[str, float], distances: Mapping[str, float], beta: float) -> Weights:
    """Return the next weights of FairFed.

    Ezzeldin, Yan, He, Ferrara and Avestimehr, "FairFed: Enabling Group Fairness in Federated Learning", AAAI 2023.

    Parameters
    ----------
    weights : mapping of str to float
        Weights of the round before; the sites' shares of the images at the start.
    distances : mapping of str to float
        ``|F_k - F|``: how far the gap between groups at a site is from that of all images together. Sites of which it
        is not known are not named and count as the mean.
    beta : float
        From 0, which leaves the weights as they are.

    Returns
    -------
    dict of str to float
        They sum to 1. A site whose weight would be negative has 0; if all had, the weights stay as they were.

    Notes
    -----
    ``w_k`` becomes ``w_k - beta (d_k - mean of d)``, then all are scaled to the sum 1.
    """
    before = normalise(weights)
    mean = math.fsum(distances.values()) / len(distances) if distances else 0.0
    moved = {site: max(0.0, value - beta * (distances.get(site, mean) - mean)) for site, value in before.items()}
    return normalise(moved) if any(moved.values()) else before


@dataclass(frozen=True)
class FairFed(Rule):
    """FairFed with the gaps of the validation images."""

    config: FairFedConfig

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Move the remembered weights, and weigh by those of the sites that are here."""
        known = {**updates.shares, **state.get("weights", {})}
        moved = weigh_by_gap_distance(known, self._distances(updates.tables_before()), self.config.beta)
        here = {site: moved[site] for site in updates.shares}
        return normalise(here if any(here.values()) else updates.shares), {"weights": moved}

    def _distances(self, before: Mapping[str, SiteTables]) -> Weights:
        """Return how far each site's gap between groups is from that of all images; without sites that have no gap."""
        attribute, figure = self.config.attribute, self.config.figure
        pooled = combine_attribute(before, attribute)
        overall = None if pooled is None else _find_gap(pooled, figure)
        if overall is None:
            return {}
        found = {}
        for site, tables in before.items():
            own = tables.models[FEDERATED].get(attribute)
            value = None if own is None else _find_gap(own, figure)
            if value is not None:
                found[site] = abs(value - overall)
        return found


def _find_gap(tables: EvaluationTables, figure: str) -> float | None:
    """Return a gap between groups; of accuracies over all their images, as FairFed has it.

    A report compares accuracies over the classes that all groups have; a rule that steers is no judgement on a group.
    """
    if figure != "gap_accuracy":
        return compute_gaps(tables)[figure].value
    known = leave_out_unknown(tables)
    return optional_float(gap_defined(count_values(known.counts, known.rare, known.other_wrong)["accuracy"].value))


make_rule.register(FairFedConfig, FairFed)

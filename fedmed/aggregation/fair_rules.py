"""Aggregation rules that aim at fairness between sites, as weights of the sites' updates.

With w the global model, w_k the model that site k sends back and a_k the weights, the next global model is

    w - sum_k a_k (w - w_k) = (1 - sum_k a_k) w + sum_k a_k w_k.

Every rule but q-FedAvg has weights that sum to 1. Each formula is a pure function of plain numbers; what a rule
remembers from round to round is a mapping from names to numbers. Losses are mean cross-entropies of the global model on
the training images of a site or a patient group, F_k; p_k are the weights without the rule, which sum to 1.

All of these give more weight to sites or groups for which the model is bad, and it may be bad for reasons that no
weight can mend: noisy labels, another disease, images of poor quality. On images they have doubled the number of sites
that do worse than with a model of their own. The report's part on benefit shows it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedmed.aggregation.rule import RoundUpdates, Rule, RuleState, Weights, make_rule, normalise, weighted_mean
from fedmed.config import AgnosticConfig, GapToLocalConfig, QFedAvgConfig
from fedmed.data import count_batches
from fedmed.training.schedules import learning_rate

_SMALLEST = 1e-12
"""Weights that move on a simplex never become 0, from where some could not return."""
_SHORTEST = 1e-9
"""A step of the local training below it counts as it, so that none is divided by 0."""


def weigh_by_loss_power(
    shares: Mapping[str, float], losses: Mapping[str, float], norms: Mapping[str, float], *, q: float, lipschitz: float
) -> Weights:
    """Return the weights of q-FedAvg.

    Li, Sanjabi, Beirami and Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, algorithm 2.

    Parameters
    ----------
    shares : mapping of str to float
        p_k, which sum to 1.
    losses : mapping of str to float
        F_k, not negative.
    norms : mapping of str to float
        ``||w - w_k||``.
    q : float
        From 0, which gives FedAvg.
    lipschitz : float
        L, a bound on the curvature of the losses; the authors take 1 / learning rate. ``L (w - w_k)`` stands for the
        gradient of F_k.

    Returns
    -------
    dict of str to float
        Their sum is at most 1: the step of large q is a short one.

    Notes
    -----
    The objective is ``sum_k p_k F_k^(q+1) / (q+1)``. With ``D_k = L (w - w_k)`` the step of the paper is
    ``sum_k p_k F_k^q D_k / sum_k p_k (q F_k^(q-1) ||D_k||^2 + L F_k^q)``, so that

        a_k = p_k F_k^q / sum_j p_j (q F_j^(q-1) L ||w - w_j||^2 + F_j^q).

    The paper draws sites with probability p_k; here all take part, weighted by p_k. Only ratios of losses matter for
    large powers, and a loss of 0 has no power below 0, so losses are divided by the largest and kept off 0.
    """
    largest = max(*losses.values(), _SMALLEST)
    # F^q / G^q and F^(q-1) / G^q with G the largest loss; large q would overflow otherwise.
    scaled = {site: max(losses[site] / largest, _SMALLEST) for site in shares}
    power = {site: scaled[site] ** q for site in shares}
    slope = {site: q * scaled[site] ** (q - 1) / largest for site in shares}
    divisor = math.fsum(
        shares[site] * (slope[site] * lipschitz * norms[site] ** 2 + power[site]) for site in sorted(shares)
    )
    return {site: shares[site] * power[site] / divisor for site in sorted(shares)}


@dataclass(frozen=True)
class QFedAvg(Rule):
    """q-FedAvg with the bound on the curvature that a round's local training stands for."""

    losses = QFedAvgConfig.losses
    config: QFedAvgConfig

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Weigh by the power of the losses; a silent site counts as the mean of the others."""
        lipschitz = self.config.lipschitz or 1 / max(step_length(updates), _SHORTEST)
        norms = {u.site: u.update_norm or 0.0 for u in updates.updates}
        losses = updates.complete(updates.start_losses())
        return weigh_by_loss_power(updates.shares, losses, norms, q=self.config.q, lipschitz=lipschitz), {}


make_rule.register(QFedAvgConfig, QFedAvg)


def step_length(updates: RoundUpdates) -> float:
    """Return by how much a round's local training multiplies a gradient, on average over the sites.

    ``rate * steps / (1 - momentum)`` with the rate of the round's last epoch: for one step without momentum the
    learning rate. So (global model - site's model) / length is the mean gradient of the round, which the published
    step of q-FedAvg is derived for; 1 / learning rate alone would take it for many times as long, and hardly move.
    """
    training = updates.training
    epochs, optimizer = training.epochs_per_round, training.optimizer
    last_epoch = updates.round_number * epochs - 1
    rate = learning_rate(training.schedule, optimizer.lr, last_epoch, updates.num_rounds * epochs)
    momentum = optimizer.momentum if optimizer.name == "sgd" else 0.0
    images = {u.site: u.images or 1 for u in updates.updates}
    steps = math.fsum(
        share * count_batches(images[site], training.batch_size) for site, share in updates.shares.items()
    )
    return rate * epochs * steps / (1 - momentum)


def ascend_simplex(weights: Mapping[str, float], losses: Mapping[str, float], step: float) -> Weights:
    """Move weights on the simplex towards what has the larger loss.

    The outer step of agnostic federated learning (Mohri, Sivek and Suresh, "Agnostic Federated Learning", ICML 2019),
    where the weights are those of the sites, and of FedMinMax (Papadaki, Martinez, Bertran, Sapiro and Rodrigues,
    "Minimax Demographic Group Fairness in Federated Learning", FAccT 2022), where they are those of patient groups.

    Parameters
    ----------
    weights : mapping of str to float
        Not negative, one positive.
    losses : mapping of str to float
        Losses of some of the same names, in the same units; what is not named here keeps its weight, relative to the
        mean of the others.
    step : float
        Positive.

    Returns
    -------
    dict of str to float
        They sum to 1.

    Notes
    -----
    ``lambda_k`` becomes proportional to ``lambda_k exp(step F_k)``: exponentiated gradient ascent of the linear
    function ``sum_k lambda_k F_k``. The papers project a plain gradient step on the simplex. Both have the same
    solutions; this one leaves no site or group without any weight.
    """
    middle = weighted_mean({name: weights[name] for name in losses}, losses) if losses else 0.0
    exponents = {name: math.log(max(weight, _SMALLEST)) + step * (losses.get(name, middle) - middle)
                 for name, weight in weights.items()}  # fmt: skip
    largest = max(exponents.values())
    return normalise({name: math.exp(value - largest) for name, value in exponents.items()})


@dataclass(frozen=True)
class Agnostic(Rule):
    """Weights of the sites that climb towards the largest weighted loss."""

    losses = AgnosticConfig.losses
    config: AgnosticConfig

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Move the remembered weights, those of absent sites too, and weigh by those of the sites that are here."""
        known = {**updates.shares, **state.get("weights", {})}
        moved = ascend_simplex(known, updates.start_losses(), self.config.step)
        return normalise({site: moved[site] for site in updates.shares}), {"weights": moved}


make_rule.register(AgnosticConfig, Agnostic)


def weigh_by_gap_to_local(
    shares: Mapping[str, float], losses: Mapping[str, float], local_losses: Mapping[str, float], strength: float
) -> Weights:
    """Return weights that make the sites' gaps to their own local models more alike.

    Parameters
    ----------
    shares : mapping of str to float
        p_k, which sum to 1.
    losses, local_losses : mapping of str to float
        Loss of the global model and of the site's own one on the same images. Sites that lack one are not named there
        and count as the mean.
    strength : float
        lambda, from 0, which gives FedAvg.

    Returns
    -------
    dict of str to float
        They sum to 1.

    Notes
    -----
    With the gaps ``g_k = F_k - F_k(local)`` and ``m = sum_k p_k g_k``, the objective is

        sum_k p_k F_k + lambda sum_k p_k (g_k - m)^2.

    Its gradient is ``sum_k p_k (1 + 2 lambda (g_k - m)) grad F_k``, since the derivative of m drops out, so these are
    the weights. Weights below 0, which would unlearn what a site has taught, are set to 0 and the rest scaled.
    The idea of measuring a site by what it could have alone is that of EAGLE and of other work on the incentive to
    take part.
    """
    gaps = {site: losses[site] - local_losses[site] for site in shares if site in losses and site in local_losses}
    if not gaps:
        return normalise(shares)
    mean = weighted_mean({site: shares[site] for site in gaps}, gaps)
    return normalise(
        {site: max(0.0, share * (1 + 2 * strength * (gaps.get(site, mean) - mean))) for site, share in shares.items()}
    )


@dataclass(frozen=True)
class GapToLocal(Rule):
    """More weight to sites that lose against a model of their own."""

    losses = GapToLocalConfig.losses
    config: GapToLocalConfig

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Compare the losses told with those of the sites' own models."""
        local, strength = updates.local_losses(), self.config.strength
        return weigh_by_gap_to_local(updates.shares, updates.start_losses(), local, strength), {}


make_rule.register(GapToLocalConfig, GapToLocal)

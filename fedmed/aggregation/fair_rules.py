"""Aggregation rules that aim at fairness, as weights of the sites' updates.

With w the global model, w_k the model that site k sends back and a_k the weights, the next global model is

    w - sum_k a_k (w - w_k) = (1 - sum_k a_k) w + sum_k a_k w_k.

Every rule but q-FedAvg has weights that sum to 1. Each is a pure function of plain numbers; what a rule remembers from
round to round is a mapping from names to numbers. Losses are mean cross-entropies of the global model on the training
images of a site or a patient group, F_k; p_k are the weights without the rule, which sum to 1.

All of these give more weight to sites or groups for which the model is bad, and it may be bad for reasons that no
weight can mend: noisy labels, another disease, images of poor quality. On images they have doubled the number of sites
that do worse than with a model of their own. The report's part on benefit shows it.
"""

import math
from collections.abc import Mapping

Weights = dict[str, float]
_SMALLEST = 1e-12
"""Weights that move on a simplex never become 0, from where some could not return."""


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
    middle = _weighted_mean({name: weights[name] for name in losses}, losses) if losses else 0.0
    exponents = {name: math.log(max(weight, _SMALLEST)) + step * (losses.get(name, middle) - middle)
                 for name, weight in weights.items()}  # fmt: skip
    largest = max(exponents.values())
    return normalise({name: math.exp(value - largest) for name, value in exponents.items()})


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
    mean = _weighted_mean({site: shares[site] for site in gaps}, gaps)
    return normalise(
        {site: max(0.0, share * (1 + 2 * strength * (gaps.get(site, mean) - mean))) for site, share in shares.items()}
    )


def _weighted_mean(weights: Mapping[str, float], values: Mapping[str, float]) -> float:
    total = math.fsum(weights.values())
    return math.fsum(weights[name] * values[name] for name in sorted(values)) / total

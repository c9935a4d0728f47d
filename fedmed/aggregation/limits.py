"""How much of the next model one site can be: bounds on its weight and on the length of its update.

Without them, a site that claims a hundred million images is the model, and an update that is as long as the quarantine
allows and points backwards undoes what all others have learnt. A site at a bound is named, and its part that is cut
stays with the others or with the global model. Rules that find out who is wrong would stand here as well.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmed.aggregation.quarantine import find_usual_norm
from fedmed.aggregation.rule import Weights
from fedmed.config import AggregationConfig, MaxShare

FEWEST_FOR_PULL = 3
"""Sites from which on one is held to the pull of the others: of two, nobody knows who is right."""
_SLACK = 1e-9


def find_share_limit(setting: MaxShare, num_sites: int) -> float | None:
    """Return the largest share of the weights that one of some sites may have, None for no limit.

    Parameters
    ----------
    setting : float, "auto" or None
        ``aggregation.max_share``. ``auto``: a half, from four sites on a third.
    num_sites : int
        Accepted updates of the round. A limit below 1 / num_sites, which not all could keep, is 1 / num_sites: all
        sites then count the same. So two sites count the same under ``auto``, and a single one is not limited.
    """
    if setting is None or num_sites < 1:
        return None
    limit = (1 / 3 if num_sites >= 4 else 1 / 2) if setting == "auto" else setting
    return max(limit, 1 / num_sites)


def cap_weights(weights: Mapping[str, float], limit: float | None) -> tuple[Weights, dict[str, float]]:
    """Hold every site's weight to a share of all.

    Parameters
    ----------
    weights : mapping of str to float
        Not negative.
    limit : float, optional
        c, the largest share, from :func:`find_share_limit`.

    Returns
    -------
    weights : dict of str to float
        The same, to the bit, where no share is above the limit.
    capped : dict of str to float
        The share that each site at the limit would have had.

    Notes
    -----
    With the shares ``p_k = w_k / W``, W the sum, the new weights are ``min(c, f p_k) W'`` with the one factor f >= 1
    for which they sum to W': what is above the limit goes to the other sites in proportion to their own weights. W' is
    W where W is at most 1, as after a rule that leaves a part to the global model, and else 1. f is found by capping
    what is above c, scaling the rest to what is left, and again, until nothing is above. Where the other sites have no
    weight at all the excess is left out of the sum, and stays with the global model.
    """
    total = math.fsum(weights.values())
    if limit is None or not total > 0:
        return dict(weights), {}
    shares = {site: weight / total for site, weight in weights.items()}
    at_limit: set[str] = set()
    factor = 1.0
    while found := {site for site in shares if site not in at_limit and factor * shares[site] > limit * (1 + _SLACK)}:
        at_limit |= found
        free = math.fsum(share for site, share in shares.items() if site not in at_limit)
        factor = max(1.0, (1 - limit * len(at_limit)) / free) if free > 0 else 1.0
    if not at_limit:
        return dict(weights), {}
    scale = min(total, 1.0)
    bounded = {site: (limit if site in at_limit else factor * share) * scale for site, share in shares.items()}
    return bounded, {site: shares[site] for site in sorted(at_limit) if shares[site] > limit}


def shorten_updates(
    weights: Mapping[str, float], norms: Mapping[str, float], recent: Sequence[float], max_ratio: float | None
) -> dict[str, float]:
    """Return by what factor, below 1, updates are shortened; sites that are not named count in full.

    Parameters
    ----------
    weights : mapping of str to float
        a_k of the sites, not negative.
    norms : mapping of str to float
        ``n_k``, the lengths of their updates.
    recent : sequence of float
        Lengths that were accepted in earlier rounds, the latest last.
    max_ratio : float, optional
        R, ``aggregation.clip_norm_ratio``; None shortens nothing.

    Notes
    -----
    Update k is shortened to ``min(n_k, R u_k, P_k / a_k)``. u_k is its usual length, as in
    :func:`fedmed.aggregation.compare_norms`: the median over the other sites and as many recent ones.
    ``P_k = sum_j a_j n_j`` over the other sites j is how far all of them together can move the model: no site moves it
    further than that, so that an update that points backwards can hold a round up, and hardly turn it back. The second
    bound needs three sites. A shortened update is ``f w_k + (1 - f) w``, w the global model: its weight is f a_k, and
    the rest of a_k is the global model's.
    """
    if max_ratio is None:
        return {}
    factors = {}
    for site in sorted(norms):
        others = [norms[other] for other in sorted(norms) if other != site]
        usual = find_usual_norm(others, recent)
        if usual is None or not norms[site] > 0:
            continue
        longest = max_ratio * usual
        pull = math.fsum(weights[other] * norms[other] for other in sorted(norms) if other != site)
        if len(norms) >= FEWEST_FOR_PULL and weights[site] > 0 and pull > 0:
            longest = min(longest, pull / weights[site])
        if norms[site] > longest * (1 + _SLACK):
            factors[site] = longest / norms[site]
    return factors


@dataclass(frozen=True)
class Bounded:
    """Weights within the bounds, and what was cut."""

    weights: Weights
    """The rest to 1 is that of the global model."""
    capped: dict[str, float]
    """Site at the limit of its weight to the share that it would have had."""
    shortened: dict[str, float]
    """Site to the factor by which its update is shortened."""

    def describe(self) -> dict[str, str]:
        """Return by site what was cut, as a sentence."""
        told: dict[str, list[str]] = {}
        total = math.fsum(self.weights.values())
        for site, share in self.capped.items():
            now = self.weights[site] / self.shortened.get(site, 1.0) / total if total > 0 else 0.0
            told.setdefault(site, []).append(
                f"its weight would be {share:.1%} of all and is held to {now:.1%} ('aggregation.max_share')"
            )
        for site, factor in self.shortened.items():
            told.setdefault(site, []).append(
                f"its update is shortened to {factor:.3g} of its length ('aggregation.clip_norm_ratio')"
            )
        return {site: " and ".join(parts) + "." for site, parts in sorted(told.items())}


def bound_weights(
    config: AggregationConfig,
    weights: Mapping[str, float],
    norms: Mapping[str, float],
    recent: Sequence[float],
) -> Bounded:
    """Return the weights of a round's updates within the bounds of the settings; the same bits where none is reached.

    Parameters
    ----------
    config : AggregationConfig
        The bounds.
    weights : mapping of str to float
        As the rule gives them.
    norms : mapping of str to float
        Lengths of the same sites' updates.
    recent : sequence of float
        Lengths that were accepted in earlier rounds.
    """
    bounded, capped = cap_weights(weights, find_share_limit(config.max_share, len(weights)))
    factors = shorten_updates(bounded, norms, recent, config.clip_norm_ratio)
    if factors:
        total = math.fsum(bounded.values())
        if total > 1:  # numbers of images; what is cut goes to the global model, so the sum has to be 1
            bounded = {site: weight / total for site, weight in bounded.items()}
        bounded = {site: weight * factors.get(site, 1.0) for site, weight in bounded.items()}
    return Bounded(bounded, capped, factors)

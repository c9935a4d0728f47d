"""Weights of the sites by how far their features are from those of a frozen teacher that all of them share.

Elbatel, Wang, Martí, Fu and Li, "Federated Model Aggregation via Self-Supervised Priors for Highly Imbalanced Medical
Image Classification" (Fed-MAS), arXiv 2307.14959, as in the code that its authors released. With l_i the distance of an
image's features from the teacher's, ``2 - 2 cos`` in [0, 4], site k takes for each class c that it has

    w_kc = mean l_i of the global model before the training, in eval mode,
    v_kc = mean l_i while it trains,

divides each by its sum over these classes, and tells one number, ``r_k = sum_c w_kc v_kc``. The variant ``mas_inv``
takes 1 / v_kc for v_kc first. Neither l_i nor anything by class leaves the site.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmed.aggregation.rule import RoundUpdates, Rule, RuleState, Weights, make_rule, normalise
from fedmed.config import DivergenceConfig
from fedmed.errors import FederationError
from fedmed.protocol.reports import TrainReport

SMALLEST_DISTANCE = 1e-6
"""Distances below it count as it, so that none is divided by 0; float32 cannot tell ``2 - 2 cos`` from 0 there."""

MAS_WEIGHT = "mas_weight"
"""Name of r_k in a site's report, see :class:`fedmed.protocol.reports.TrainReport`."""

ClassMeans = Sequence[float | None]
"""(K,) means by class; None for a class without images."""


def compute_divergence(before: ClassMeans, during: ClassMeans, *, inverse: bool = False) -> float | None:
    """Return r_k of a site.

    Parameters
    ----------
    before, during : sequence of K float or None
        w_kc and v_kc as means of l_i, not yet divided by their sums. Only classes that have both count.
    inverse : bool
        Whether to take 1 / v_kc: ``mas_inv``.

    Returns
    -------
    float or None
        In (0, 1]: 1 for a single class, 1 / K for K classes that are alike. None where no class has both means.
    """
    pairs = [(w, v) for w, v in zip(before, during, strict=True) if w is not None and v is not None]
    if not pairs:
        return None
    first = [max(w, SMALLEST_DISTANCE) for w, _ in pairs]
    second = [max(v, SMALLEST_DISTANCE) for _, v in pairs]
    if inverse:
        second = [1 / v for v in second]
    products = math.fsum(w * v for w, v in zip(first, second, strict=True))
    return min(products / (math.fsum(first) * math.fsum(second)), 1.0)


def weigh_by_divergence(
    images: Mapping[str, int],
    divergences: Mapping[str, float],
    *,
    size_power: float,
    divergence_power: float,
    floor: int = 0,
) -> Weights:
    """Return weights by number of images and divergence.

    Parameters
    ----------
    images : mapping of str to int
        n_k, positive.
    divergences : mapping of str to float
        r_k > 0 of all these sites.
    size_power, divergence_power : float
        a and b. FedAvg is a = 1, b = 0; ``mas`` is a = 0, b = 1.
    floor : int
        Sites with fewer images keep their share of the images: r_k of a few images says little, and without n_k it
        would weigh as much as that of thousands.

    Returns
    -------
    dict of str to float
        They sum to 1.

    Notes
    -----
    Proportional to ``n_k^a r_k^b`` over the sites with ``n_k >= floor``, which share what their images would have had
    in FedAvg. So a = 1, b = 0 is FedAvg whatever the floor.
    """
    large = [site for site in sorted(images) if images[site] >= floor]
    raw = {site: images[site] ** size_power * divergences[site] ** divergence_power for site in large}
    scale = sum(images[site] for site in large) / math.fsum(raw.values()) if large else 1.0
    return normalise({site: raw[site] * scale if site in raw else float(images[site]) for site in images})


@dataclass(frozen=True)
class Divergence(Rule):
    """Weights by the one number that each site tells; a silent site counts as the mean of the others."""

    config: DivergenceConfig

    def weigh(self, updates: RoundUpdates, state: RuleState) -> tuple[Weights, RuleState]:
        """Weigh by number of images and divergence."""
        told = {u.site: u.divergence for u in updates.updates if u.divergence is not None}
        if not told:
            raise FederationError(
                f"The rule '{self.config.kind}' needs the sites' distances from the teacher, and no site told its own "
                f"in round {updates.round_number}. A site with images of one class, or fewer training images than its "
                "policy.suppression.k, tells none. Choose another aggregation.fair."
            )
        images = {u.site: u.images for u in updates.updates if u.images is not None}
        weights = weigh_by_divergence(
            images,
            updates.complete(told),
            size_power=self.config.size_power,
            divergence_power=self.config.divergence_power,
            floor=self.config.floor,
        )
        return weights, {}


make_rule.register(DivergenceConfig, Divergence)


def find_divergence_breach(report: TrainReport, k: int) -> str | None:
    """Return why a site's report must not leave for the sake of r_k, or None: it is of fewer than ``k`` images."""
    if report.mas_weight is not None and report.num_images < k:
        return f"its divergence from the teacher is of fewer than k = {k} images"
    return None

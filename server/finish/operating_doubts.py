"""Whether one site alone decides from which score on alerts are raised.

A site's counts cannot be checked: one that is broken, or lies, could push the threshold so high that every image of an
alert class at the other sites is missed, or leave nobody with one. So each site is left out in turn. What the others
would then have, or miss, is a doubt with the site's name, and a model with a doubt waits for a person.
"""

from collections.abc import Mapping

import numpy as np

from fedmed.clinical.scores import EDGES, WITH
from fedmed.clinical.threshold import FEWEST_IMAGES, OperatingPoint, ScoreCounts, choose_threshold, count_below
from fedmed.config import OperatingPlan
from fedmed.fairness.chance.proportions import proportion_interval


def find_swayed(sites: Mapping[str, ScoreCounts], wanted: OperatingPlan, point: OperatingPoint) -> list[str]:
    """Return sentences on sites without which the operating point would be another one beyond chance.

    Parameters
    ----------
    sites : mapping of str to ScoreCounts
        What the operating point was chosen on.
    wanted : OperatingPlan
        What is stated.
    point : OperatingPoint
        What was chosen.
    """
    doubts = (_leave_out(site, sites, wanted, point) for site in sorted(sites))
    return [doubt for doubt in doubts if doubt is not None]


def _leave_out(site: str, sites: Mapping[str, ScoreCounts], wanted: OperatingPlan, point: OperatingPoint) -> str | None:
    others = [counts for name, counts in sites.items() if name != site]
    own = choose_threshold(others, wanted)
    if min(own.n_with, own.n_without) < FEWEST_IMAGES:
        return None
    if point.threshold is None:
        if own.threshold is None:
            return None
        return (
            f"There is no operating point for alerts because of {site}: without its counts it would be log-odds "
            f"{own.threshold:g}."
        )
    place = int(np.argmin(np.abs(EDGES - point.threshold)))
    missed = float(sum(count_below(one.counts[WITH], is_merged=one.is_merged)[place] for one in others))
    found = own.n_with - missed
    target = _find_target(own, wanted)
    if _interval(found, own.n_with)[1] >= target:
        return None
    return (
        f"The operating point for alerts rests on {site}: of the {own.n_with} validation images of an alert class at "
        f"the other sites a share of {found / own.n_with:.3f} raises an alert, where {target:.3f} is to be reached."
    )


def _find_target(own: OperatingPoint, wanted: OperatingPlan) -> float:
    """Return what is wanted; with a cost ratio the least that the others' own threshold reaches, chance aside."""
    if wanted.sensitivity is not None:
        return wanted.sensitivity
    return 0.0 if own.most_missed is None else _interval(own.n_with - own.most_missed, own.n_with)[0]


def _interval(found: float, n: int) -> tuple[float, float]:
    low, high = proportion_interval(np.array(found), np.array(n))
    return float(low), float(high)

"""How far the images of sites differ, and which sites lie outside the usual range."""

from collections.abc import Callable, Mapping

import numpy as np

from fedmed.metrics.values import Array
from fedmed.report.content import ReportContent
from fedmed.report.schema.shift import ShiftedSite, ShiftEntry, ShiftRange
from fedmed.seeding import make_rng

FEWEST_SITES = 4
"""From which on there is a usual range."""
_REACH = 3 * 1.4826
"""Median absolute deviations; 1.4826 of them are the standard deviation of a normal distribution."""
_NUM_DRAWS = 4000
_MOST_DRAWN = 200
_SCALES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "mean_shift": (np.asarray, np.asarray),
    "spread_ratio": (np.log, np.exp),  # half as wide is as far off as twice as wide
    "distance": (np.asarray, np.asarray),
}


def describe_shift(content: ReportContent) -> ShiftEntry | None:
    """Return the numbers of all sites with their usual ranges; None where nothing is known.

    Notes
    -----
    A number is outside beyond the median of the sites plus or minus 3 x 1.4826 median absolute deviations, from 4 sites
    on; the ratio of spreads on the scale of its logarithm. With few sites the deviation is uncertain, and equal sites
    are marked often: ``by_chance`` says how often, by drawing normal numbers.
    """
    record = content.shift
    if record is None or len(record["sites"]) < 2:
        return None
    sites = sorted(record["sites"])
    ranges = {key: find_range({site: record["sites"][site][key] for site in sites}, key) for key in _SCALES}  # type: ignore[literal-required]
    described: dict[str, ShiftedSite] = {}
    for site in sites:
        numbers = record["sites"][site]
        outside = [key for key, usual in ranges.items() if _is_outside(numbers[key], usual)]  # type: ignore[literal-required]
        described[site] = {**numbers, "outside": outside}
    return {
        "round": record["round"],
        "source": record["source"],
        "ranges": ranges,
        "sites": described,
        "outside": [site for site in sites if described[site]["outside"]],
        "by_chance": _find_chance(len(sites), content.seed),
    }


def find_range(values: Mapping[str, float], key: str) -> ShiftRange:
    """Return the median over the sites and the usual range around it."""
    into, back = _SCALES[key]
    scaled = into(np.array(list(values.values()), dtype=np.float64))
    middle = np.median(scaled)
    median = float(back(middle))
    if len(scaled) < FEWEST_SITES:
        return {"median": median, "low": None, "high": None}
    reach = _REACH * np.median(np.abs(scaled - middle))
    return {"median": median, "low": float(back(middle - reach)), "high": float(back(middle + reach))}


def _is_outside(value: float, usual: ShiftRange) -> bool:
    low, high = usual["low"], usual["high"]
    return low is not None and high is not None and not low - 1e-12 <= value <= high + 1e-12


def _find_chance(num_sites: int, seed: int) -> float | None:
    if num_sites < FEWEST_SITES:
        return None
    drawn = make_rng(seed, "shift").standard_normal((_NUM_DRAWS, len(_SCALES), min(num_sites, _MOST_DRAWN)))
    off = np.abs(drawn - np.median(drawn, axis=-1, keepdims=True))
    outside = off > _REACH * np.median(off, axis=-1, keepdims=True)
    return round(float(outside.any(axis=(1, 2)).mean()), 2)

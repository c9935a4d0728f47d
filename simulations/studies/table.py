"""The numbers of a study: means of the arms, and paired differences against the baseline.

Letters: R seeds, S sites.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from simulations.studies.figures import (
    ClassGroups,
    check_class_groups,
    explain_absence,
    find_direction,
    read_figure,
    read_sites,
)
from simulations.studies.results import CellResult
from simulations.studies.study import Progress, Study

_LEVEL = 0.95
_NO_SPREAD = 1e-9


class Estimate(TypedDict):
    """A mean over seeds; null where there is none."""

    value: float | None
    interval: list[float] | None
    n: int
    """Seeds."""


class CrossedEstimate(Estimate):
    """A mean over seeds and sites."""

    num_sites: int


class SiteDifference(CrossedEstimate):
    """Arm minus baseline, by seed and site."""

    verdict: str


class Difference(Estimate):
    """Arm minus baseline."""

    verdict: str
    sites: SiteDifference | None


class ArmTable(TypedDict):
    """What the table says of one arm."""

    description: str
    seeds: list[int]
    """Those that are done."""
    figures: dict[str, Estimate]
    differences: dict[str, Difference]
    """Empty for the baseline."""
    wall_s: float


class Front(TypedDict):
    """Which figures are drawn against each other."""

    x: str
    y: list[str]


class Table(TypedDict):
    """What ``table.json`` holds."""

    name: str
    description: str
    cells_done: int
    cells_planned: int
    complete: bool
    wall_s: float
    failed: dict[str, str]
    """Cell -> reason."""
    stale: list[str]
    synthetic: bool
    not_defined: dict[str, dict[str, str]]
    """Figure -> cell -> reason."""
    baseline: str
    seeds: list[int]
    class_groups: dict[str, list[str]]
    figures: list[str]
    front: Front | None
    better: dict[str, str | None]
    """Figure -> ``up`` or ``down``, null before the first cell is done."""
    arms: dict[str, ArmTable]


def build_table(study: Study, progress: Progress) -> Table:
    """Return everything that a study's table and page show, as plain JSON.

    Parameters
    ----------
    study : Study
        Its settings.
    progress : Progress
        Its results so far.

    Notes
    -----
    ``arms.<arm>.figures.<figure>`` is the mean over the seeds with a t interval (R - 1 degrees of freedom).
    ``differences`` are arm minus baseline, paired by seed: of the pooled figure, with a t interval over the seeds; and,
    where the figure is known by site, ``sites``: the mean over sites and seeds, paired by both, with the interval of
    :func:`estimate_crossed`. Only seeds that are done in both arms are compared; where there are none, the verdict is
    ``missing``. No interval is adjusted for the number of arms and figures. ``not_defined`` says why figures of class
    groups are n/a in a cell.

    Raises
    ------
    ConfigError
        If a class group names a class that a cell did not have.
    """
    config = study.config
    for (arm, seed), result in progress.results.items():
        check_class_groups(config.class_groups, result.get("classes", ()), f"{study.source}: cell {arm}-{seed}")
    better = {figure: find_direction(progress.results.values(), figure) for figure in config.all_figures}
    arms: dict[str, ArmTable] = {}
    for arm, settings in config.arms.items():
        results = {seed: progress.results[arm, seed] for seed in config.seeds if (arm, seed) in progress.results}
        arms[arm] = {
            "description": settings.description,
            "seeds": sorted(results),
            "figures": {figure: estimate_mean(_read_all(results, figure, config.class_groups)) for figure in better},
            "differences": {
                figure: _compare(progress, study, arm, figure, better[figure])
                for figure in better
                if arm != config.baseline
            },
            "wall_s": sum(result["wall_s"] for result in results.values()),
        }
    return {
        "name": config.name,
        "description": config.description,
        "cells_done": len(progress.results),
        "cells_planned": progress.planned,
        "complete": progress.is_complete,
        "wall_s": progress.wall_s,
        "failed": {f"{arm}-{seed}": reason for (arm, seed), reason in progress.failed.items()},
        "stale": progress.stale,
        "synthetic": any(result.get("synthetic") for result in progress.results.values()),
        "not_defined": _list_not_defined(progress, study),
        "baseline": config.baseline,
        "seeds": config.seeds,
        "class_groups": config.class_groups,
        "figures": config.figures,
        "front": {"x": config.front.x, "y": config.front.y} if config.front else None,
        "better": better,
        "arms": arms,
    }


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with its t interval.

    Returns
    -------
    Estimate
        Without values ``value`` is null. One value has no interval, nor have values
        that are all equal, such as small counts: they do not show how much further ones would vary.
    """
    x_R = np.asarray(values, dtype=np.float64)
    if not x_R.size:
        return {"value": None, "interval": None, "n": 0}
    if x_R.size == 1:
        return {"value": float(x_R[0]), "interval": None, "n": 1}
    half = _t_quantile(x_R.size - 1) * float(x_R.std(ddof=1)) / math.sqrt(x_R.size)
    return _make_estimate(float(x_R.mean()), half, x_R.size)


def estimate_crossed(values_RS: npt.NDArray[np.float64]) -> CrossedEstimate:
    """Return the mean of values by seed and site, with an interval over both.

    Parameters
    ----------
    values_RS : ndarray of float64, shape (R,S)
        One value for each seed and site.

    Returns
    -------
    CrossedEstimate
        Without values its ``value`` is null.

    Notes
    -----
    The model is ``y_rs = m + a_r + b_s + e_rs`` with random effects of the seed and the site: the interval speaks of
    further seeds and further sites of the same kind. With the mean squares of the two-way analysis of variance,

        Var(mean) = (MS_seed + MS_site - MS_rest) / (R S),

    with Satterthwaite's degrees of freedom (Searle, Casella and McCulloch, "Variance Components", 1992). That
    difference can come out too small, so the interval is at least as wide as that of the seeds alone, ``MS_seed`` with
    R - 1 degrees of freedom, and that of the sites alone. A bootstrap over three seeds would be far too narrow.
    """
    R, S = values_RS.shape
    if min(R, S) == 0:
        return {"value": None, "interval": None, "n": R, "num_sites": S}
    mean = float(values_RS.mean())
    seeds_R, sites_S = values_RS.mean(axis=1), values_RS.mean(axis=0)
    ms_seed = S * float(seeds_R.var(ddof=1)) if R > 1 else 0.0
    ms_site = R * float(sites_S.var(ddof=1)) if S > 1 else 0.0
    halves = [_t_quantile(count - 1) * math.sqrt(ms) for ms, count in ((ms_seed, R), (ms_site, S)) if count > 1]
    if R > 1 and S > 1:
        rest_RS = values_RS - seeds_R[:, None] - sites_S[None, :] + mean
        df_rest = (R - 1) * (S - 1)
        ms_rest = float(np.square(rest_RS).sum()) / df_rest
        both = ms_seed + ms_site - ms_rest
        spread = ms_seed**2 / (R - 1) + ms_site**2 / (S - 1) + ms_rest**2 / df_rest
        if both > 0 and spread > 0:
            # Where mean squares cancel, the formula's degrees of freedom mean nothing.
            halves.append(_t_quantile(max(both**2 / spread, min(R, S) - 1)) * math.sqrt(both))
    half = max(halves) / math.sqrt(R * S) if halves else None
    return {**_make_estimate(mean, half, R), "num_sites": S}


def judge(interval: Sequence[float] | None, better: str | None) -> str:
    """Return ``better``, ``worse`` or ``undecided``: on which side of 0 a difference lies."""
    if interval is None or better is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if (interval[0] > 0) == (better == "up") else "worse"


def _compare(progress: Progress, study: Study, arm: str, figure: str, better: str | None) -> Difference:
    config = study.config
    pairs = [
        (progress.results[arm, seed], progress.results[config.baseline, seed])
        for seed in config.seeds
        if (arm, seed) in progress.results and (config.baseline, seed) in progress.results
    ]
    values = [tuple(read_figure(result, figure, config.class_groups) for result in pair) for pair in pairs]
    pooled = estimate_mean([one - other for one, other in values if one is not None and other is not None])
    sites = estimate_crossed(
        _subtract_sites([tuple(read_sites(result, figure, config.class_groups) for result in pair) for pair in pairs])
    )
    return {
        **pooled,
        "verdict": judge(pooled["interval"], better) if pairs else "missing",
        "sites": None if sites["value"] is None else {**sites, "verdict": judge(sites["interval"], better)},
    }


def _subtract_sites(pairs: Sequence[tuple[Mapping[str, float], ...]]) -> npt.NDArray[np.float64]:
    """Return arm minus baseline by seed and site (R,S), for the sites that have the figure in all seeds of both."""
    common = sorted(set.intersection(*(set(one) & set(other) for one, other in pairs))) if pairs else []
    differences = [[one[site] - other[site] for site in common] for one, other in pairs]
    return np.array(differences, dtype=np.float64).reshape(len(pairs), len(common))


def _list_not_defined(progress: Progress, study: Study) -> dict[str, dict[str, str]]:
    """Return why figures of class groups are not defined: figure -> cell -> reason."""
    found: dict[str, dict[str, str]] = {}
    for figure in study.config.all_figures:
        for (arm, seed), result in progress.results.items():
            reason = explain_absence(result, figure, study.config.class_groups)
            if reason is not None:
                found.setdefault(figure, {})[f"{arm}-{seed}"] = reason
    return found


def _read_all(results: Mapping[int, CellResult], figure: str, class_groups: ClassGroups) -> list[float]:
    values = (read_figure(results[seed], figure, class_groups) for seed in sorted(results))
    return [value for value in values if value is not None]


def _t_quantile(df: float) -> float:
    return float(stdtrit(df, 0.5 + _LEVEL / 2))


def _make_estimate(value: float, half: float | None, n: int) -> Estimate:
    interval = [value - half, value + half] if half is not None and half > _NO_SPREAD else None
    return {"value": value, "interval": interval, "n": n}

"""How far the images of sites differ, from what they send already: the statistics of their BatchNorm layers.

The mean and the variance of what a layer gets are a summary of the images that a site trains on. Those of the first
layer are of colours and edges as the device has taken them; those of later layers also depend on which diseases there
are. Nothing is asked for in addition, and only three numbers a site are kept, in ``tables/shift.json``.

Letters: C channels of a layer, S sites.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedmed.aggregation.norm_bounds import LayerStatistics
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.records import ShiftNumbers, ShiftRecord, ShiftSource
from fedmed.storage.tensor_files import Array, TensorFile
from fedmed.training.batch_norm_policy import NormBuffers

SHIFT_FILE = "shift.json"
_FEWEST_FOR_MEDIAN = 3
_DEAD = 0.01
"""Share of the usual variance that is added on both sides of a ratio, so that a dead channel does not decide."""
_DIGITS = 3


def read_layers(files: Mapping[str, TensorFile], norms: Sequence[NormBuffers]) -> Iterator[dict[str, LayerStatistics]]:
    """Yield the statistics that updates hold, one layer at a time, by site; of layers whose statistics travel."""
    for norm in norms:
        if all({norm.mean, norm.variance} <= set(file.layout) for file in files.values()):
            yield {
                site: LayerStatistics(*(file.read(name).astype(np.float64) for name in (norm.mean, norm.variance)))
                for site, file in files.items()
            }


def measure_shift(layers: Iterable[Mapping[str, LayerStatistics]]) -> dict[str, ShiftNumbers]:
    """Return how far each site is from the usual one.

    Parameters
    ----------
    layers : iterable of mapping of str to LayerStatistics
        Of each layer, in the order of the network, the statistics by site.

    Returns
    -------
    dict of str to ShiftNumbers
        Empty with fewer than two sites, or without a layer. Three significant digits.

    Notes
    -----
    With means m and variances v of a site, and m0 and v0 their medians over the sites (with two sites their means),
    channel by channel, and u the larger of v0 and its median over the channels:

    * ``mean_shift`` = root mean square over the channels of ``(m - m0) / sqrt(u)``, of the first layer
    * ``spread_ratio`` = geometric mean over the channels of ``sqrt((v + .01 u) / (v0 + .01 u))``, of the first layer
    * ``distance`` = mean over all layers of the root of the mean over the channels of the squares of both, the
      logarithm of the ratio taken
    """
    sites: list[str] = []
    first: tuple[Array, Array] | None = None
    distances: list[Array] = []  # of one layer at a time, since a large federation has many statistics
    for layer in layers:
        sites = sorted(layer)
        if len(sites) < 2 or not len(layer[sites[0]].mean):
            continue
        shift_SC, spread_SC = _compare(layer, sites)
        if first is None:
            first = np.sqrt(np.mean(shift_SC**2, axis=1)), np.exp(np.mean(spread_SC, axis=1))
        distances.append(np.sqrt(np.mean(shift_SC**2 + spread_SC**2, axis=1)))
    if first is None:
        return {}
    distance_S: Array = np.stack(distances).mean(axis=0)
    return {
        site: {
            "mean_shift": _shorten(float(first[0][place])),
            "spread_ratio": _shorten(float(first[1][place])),
            "distance": _shorten(float(distance_S[place])),
        }
        for place, site in enumerate(sites)
    }


def save_shift(
    folder: Path, round_number: int, source: ShiftSource, layers: Iterable[Mapping[str, LayerStatistics]]
) -> None:
    """Write what the report shows in place of an earlier round's; nothing where nothing can be said."""
    sites = measure_shift(layers)
    told = [value for own in sites.values() for value in (own["mean_shift"], own["spread_ratio"], own["distance"])]
    if told and np.isfinite(told).all():
        record: ShiftRecord = {"round": round_number, "source": source, "sites": sites}
        write_atomically(folder / SHIFT_FILE, json.dumps(record).encode())


def read_shift(folder: Path) -> ShiftRecord | None:
    """Return what :func:`save_shift` has written; None where there is nothing that can be read."""
    try:
        record: ShiftRecord = json.loads((folder / SHIFT_FILE).read_text())
    except (OSError, ValueError):
        return None
    return record


def _compare(layer: Mapping[str, LayerStatistics], sites: Sequence[str]) -> tuple[Array, Array]:
    """Return the shifts and the logarithms of the ratios of deviations, both (S, C)."""
    mean_SC, variance_SC = (np.stack([getattr(layer[site], name) for site in sites]) for name in ("mean", "variance"))
    variance_SC = np.maximum(variance_SC, 0.0)
    middle = np.median if len(sites) >= _FEWEST_FOR_MEDIAN else np.mean
    usual_mean, usual_variance = middle(mean_SC, axis=0), middle(variance_SC, axis=0)
    typical = np.maximum(np.maximum(usual_variance, np.median(usual_variance)), np.finfo(np.float64).tiny)
    ratio = (variance_SC + _DEAD * typical) / (usual_variance + _DEAD * typical)
    return (mean_SC - usual_mean) / np.sqrt(typical), np.log(ratio) / 2


def _shorten(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")

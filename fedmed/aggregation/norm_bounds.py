"""Bounds on what is averaged but not trained: BatchNorm's statistics, its counters, and other buffers.

The length of an update says nothing of them (see :func:`fedmed.aggregation.check_update`), and one absurd running
variance makes a whole model blind: its outputs no longer depend on the image.

Letters: S sites, C channels of a layer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmed.storage.tensor_files import Array, TensorFile
from fedmed.training.batch_norm_policy import NormBuffers

LARGEST_FACTOR = 1e3
"""Between a running variance and the usual one; honest ones of hospitals with other devices differ a hundredfold."""
MOST_DEVIATIONS = 1e2
"""Between a running mean and the usual one, in standard deviations."""
FEWEST_FOR_MEDIAN = 3
"""Sites from which on one of them cannot move their median beyond the others."""
_ADVICE = "Look for images of another scale at this site, or training that diverges."


@dataclass(frozen=True)
class LayerStatistics:
    """Mean and variance of one layer, both float64 (C,)."""

    mean: Array
    variance: Array


def find_implausible_buffers(
    updates: Mapping[str, TensorFile],
    reference: TensorFile,
    norms: Sequence[NormBuffers],
    measured: Iterable[str] = (),
) -> dict[str, str]:
    """Find updates whose BatchNorm statistics, or other buffers, cannot be those of an honest training.

    Parameters
    ----------
    updates : mapping of str to TensorFile
        The updates of a round that are sound otherwise, by site.
    reference : TensorFile
        The global model that they started from.
    norms : sequence of NormBuffers
        The BatchNorms, found by type; those whose buffers do not travel are left out.
    measured : iterable of str
        Names of trained parameters, which :func:`fedmed.aggregation.compare_norms` looks after.

    Returns
    -------
    dict of str to str
        Site to reason, for those to leave out.

    Notes
    -----
    With v and m a site's running variance and mean, v0 and m0 the usual ones, e the layer's epsilon, and u the larger
    of v0 and of v0's median over the layer's channels, an update is refused where

    * a variance is negative,
    * ``v + e > 1e3 (u + e)`` in any channel,
    * the median over the channels of ``(v + e) / (v0 + e)`` is below 1e-3, or
    * ``|m - m0| > 1e2 sqrt(u + e)`` in any channel.

    From three sites on the usual values are the element-wise medians over the sites, which a single one cannot move
    beyond the others'. With one or two they are the global model's, and the other site's: a layer is refused if it is
    far from both, because in the first round the global model has seen no image yet.

    u and the median over the channels are there for channels that are dead at some sites, whose variance falls towards
    0 without any fault. A single channel that falls at one site cannot do harm: in the average it keeps at least the
    other sites' share of its variance.

    Of any other buffer of floating point the largest absolute value may be 1e3 times the largest of 1, the global
    model's and the median of the sites'.
    """
    reasons: dict[str, str] = {}
    layout = reference.layout
    known = {*measured}
    for norm in norms:
        known |= {norm.mean, norm.variance}
        if norm.mean in layout and norm.variance in layout:
            for site, reason in _check_layer(norm, updates, reference).items():
                reasons.setdefault(site, reason)
    for name, spec in layout.items():
        if spec.dtype.kind == "f" and name not in known:
            for site, reason in _check_other(name, updates, reference).items():
                reasons.setdefault(site, reason)
    return reasons


def _check_layer(norm: NormBuffers, updates: Mapping[str, TensorFile], reference: TensorFile) -> dict[str, str]:
    return compare_statistics(norm, {site: _read(norm, file) for site, file in updates.items()}, _read(norm, reference))


def compare_statistics(
    norm: NormBuffers, found: Mapping[str, LayerStatistics], reference: LayerStatistics
) -> dict[str, str]:
    """Find sites whose statistics of one layer are too far from the usual ones.

    Parameters
    ----------
    norm : NormBuffers
        The layer.
    found : mapping of str to LayerStatistics
        By site.
    reference : LayerStatistics
        Of the global model.

    Returns
    -------
    dict of str to str
        Site to reason; see :func:`find_implausible_buffers`.
    """
    reasons = {}
    for site, own in found.items():
        others = [found[other] for other in sorted(found) if other != site]
        usual = [_take_median([own, *others])] if len(found) >= FEWEST_FOR_MEDIAN else [reference, *others]
        problems = [_compare(norm, own, one) for one in usual]
        if all(problems):
            reasons[site] = str(problems[0])
    return reasons


def _read(norm: NormBuffers, file: TensorFile) -> LayerStatistics:
    return LayerStatistics(file.read(norm.mean).astype(np.float64), file.read(norm.variance).astype(np.float64))


def _take_median(sites: Sequence[LayerStatistics]) -> LayerStatistics:
    return LayerStatistics(
        np.median([one.mean for one in sites], axis=0), np.median([one.variance for one in sites], axis=0)
    )


def _compare(norm: NormBuffers, own: LayerStatistics, usual: LayerStatistics) -> str | None:
    """Return what is wrong with a layer's statistics, as a sentence, or None."""
    if not own.variance.size:
        return None
    if (own.variance < 0).any():
        lowest = own.variance.min()
        return f"The running variance of the BatchNorm layer {norm.layer!r} is negative ({lowest:.4g}). {_ADVICE}"
    typical = np.maximum(usual.variance, np.median(usual.variance)) + norm.eps
    ratios = (own.variance + norm.eps) / typical
    if ratios.max() > LARGEST_FACTOR:
        return (
            f"The running variance of the BatchNorm layer {norm.layer!r} is up to {ratios.max():.3g} times the usual "
            f"one; allowed: {LARGEST_FACTOR:g} times. {_ADVICE}"
        )
    falls = np.median((own.variance + norm.eps) / (usual.variance + norm.eps))
    if falls < 1 / LARGEST_FACTOR:
        return (
            f"The running variance of the BatchNorm layer {norm.layer!r} is {falls:.3g} times the usual one; allowed: "
            f"{1 / LARGEST_FACTOR:g} times. {_ADVICE}"
        )
    deviations = (np.abs(own.mean - usual.mean) / np.sqrt(typical)).max()
    if deviations > MOST_DEVIATIONS:
        return (
            f"The running mean of the BatchNorm layer {norm.layer!r} is {deviations:.3g} standard deviations from the "
            f"usual one; allowed: {MOST_DEVIATIONS:g}. {_ADVICE}"
        )
    return None


def _check_other(name: str, updates: Mapping[str, TensorFile], reference: TensorFile) -> dict[str, str]:
    largest = {site: _find_largest(file, name) for site, file in updates.items()}
    usual = max(1.0, _find_largest(reference, name))
    if len(largest) >= FEWEST_FOR_MEDIAN:
        usual = max(usual, float(np.median(list(largest.values()))))
    return {
        site: f"The tensor {name!r}, which is not trained, holds the value {value:.4g}; allowed: "
        f"{LARGEST_FACTOR * usual:.4g}. {_ADVICE}"
        for site, value in largest.items()
        if value > LARGEST_FACTOR * usual
    }


def _find_largest(file: TensorFile, name: str) -> float:
    return float(np.abs(file.read(name).astype(np.float64)).max(initial=0.0))


def replace_counters(
    averaged: Iterable[tuple[str, Array]], reference: TensorFile, norms: Sequence[NormBuffers], num_batches: int
) -> Iterator[tuple[str, Array]]:
    """Set BatchNorm's counts of batches to what the server knows: no site's own count goes into a model.

    Parameters
    ----------
    averaged : iterable of (name, array)
        Of :func:`fedmed.aggregation.average_updates`.
    reference : TensorFile
        The global model before the round.
    norms : sequence of NormBuffers
        Whose counters are meant.
    num_batches : int
        Batches of the round at the site that has had most.

    Yields
    ------
    name : str
        As in ``averaged``.
    values : array
        The same, and of a counter the one before the round with ``num_batches`` more.
    """
    counters = {norm.counter for norm in norms}
    for name, values in averaged:
        if name not in counters:
            yield name, values
            continue
        before = reference.load(name)
        top = np.iinfo(before.dtype).max - num_batches
        yield name, np.minimum(before, top) + np.asarray(num_batches, before.dtype)

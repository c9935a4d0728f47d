"""The weighted mean of the sites' updates: exact, ordered, and in memory that does not grow with the sites.

Federated averaging is McMahan et al. 2017, https://arxiv.org/abs/1602.05629. Two things differ from the usual code. The
sum runs in the order of the sites' names, in float64, so that its bits do not depend on who answered first. And
integers are not averaged: BatchNorm's count of batches, 10 at one site and 15 at another, has no mean that any site has
counted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedmed.errors import FederationError
from fedmed.storage.tensor_files import Array, TensorFile, TensorSpec

WINDOW_ELEMENTS = 1 << 18
"""Elements that are read at once from one site; 2 MiB in float64, which a core's cache holds."""


@dataclass(frozen=True)
class WeightedUpdate:
    """One accepted update.

    Attributes
    ----------
    site : str
        Name of the site; the order of the sum.
    path : Path
        Tensor file with the site's weights after its local training.
    weight : float
        Positive and finite; only the ratios between sites matter.
    """

    site: str
    path: Path
    weight: float


def site_weights(weighting: Literal["images", "equal"], images: Mapping[str, int]) -> dict[str, float]:
    """Return the weight of every site, in the order of their names.

    Parameters
    ----------
    weighting : {"images", "equal"}
        ``images``: the number of training images, as in FedAvg. ``equal``: 1 for every site.
    images : mapping of str to int
        Training images of the accepted sites.

    Raises
    ------
    ValueError
        If the weighting is unknown or a site has no images.
    """
    if weighting not in ("images", "equal"):
        raise ValueError(f"weighting is {weighting!r}; allowed are 'images' and 'equal'")
    for site, count in images.items():
        if count <= 0:
            raise ValueError(f"site {site!r} has {count} training images; only sites with images can be averaged")
    return {site: float(images[site]) if weighting == "images" else 1.0 for site in sorted(images)}


def average_updates(updates: Sequence[WeightedUpdate], *, window: int = WINDOW_ELEMENTS) -> Iterator[tuple[str, Array]]:
    """Average the updates tensor by tensor.

    Parameters
    ----------
    updates : sequence of WeightedUpdate
        The accepted updates, in any order, at least one. They must have passed
        :func:`fedmed.aggregation.check_update`.
    window : int
        Elements that are read at once.

    Yields
    ------
    name : str
        Name of a tensor, in the order of the first site's file.
    values : array
        Its average, in the tensor's own shape and type.

    Raises
    ------
    ValueError
        If there are no updates, a site appears twice, or a weight is not positive and finite.
    FederationError
        If the files do not hold the same tensors, or a mean is not finite.

    Notes
    -----
    For floating point, ``sum_s w_s x_s / sum_s w_s`` with float64 sums in the order of the sites' names, rounded once
    to the tensor's type. Peak memory is one tensor and a few windows, whatever the number of sites.

    If all sites send the same float16 or float32 tensor, the average is that tensor bit for bit: the sum's relative
    error is below ``(2 S + 1) 2**-53`` for S sites, far under half a step of float32, ``2**-25``. For float64 the mean
    is clipped to the range of the sites' values, where every mean lies, and the same holds.

    Integers and truth values take the element-wise median over the sites, of two middle ones the lower: a value that
    some site really has, and that none can choose alone where there are three.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    _check_weights(ordered)
    assert window > 0, "a window has at least one element"
    files = _open_alike(ordered)
    weights = [float(update.weight) for update in ordered]
    for name, spec in files[0].layout.items():
        combine = _Mean(weights, spec, window) if spec.dtype.kind == "f" else _take_middle
        result = np.empty(spec.size, spec.dtype)
        buffer = np.empty(min(window, spec.size), spec.dtype)
        for start in range(0, spec.size, window):
            stop = min(start + window, spec.size)
            values = (file.read(name, start, stop, out=buffer) for file in files)
            combine(values, result[start:stop])
            if not np.isfinite(result[start:stop]).all():
                raise FederationError(
                    f"The average of tensor {name!r} is not finite, although every update was checked. Lower the "
                    "learning rate or clip gradients with 'training.clip_norm'."
                )
        yield name, result.reshape(spec.shape)


Combine = Callable[[Iterator[Array], Array], None]


def _check_weights(updates: Sequence[WeightedUpdate]) -> None:
    if not updates:
        raise ValueError("there are no updates to average")
    if len({update.site for update in updates}) < len(updates):
        raise ValueError("a site appears twice among the updates")
    for update in updates:
        if not (math.isfinite(update.weight) and update.weight > 0):
            raise ValueError(f"site {update.site!r} has weight {update.weight}; it must be positive and finite")


def _open_alike(updates: Sequence[WeightedUpdate]) -> list[TensorFile]:
    files: list[TensorFile] = []
    for update in updates:
        file = TensorFile(update.path, like=files[0] if files else None)
        files.append(file)
        if file.layout != files[0].layout:
            raise FederationError(
                f"The updates of sites {updates[0].site!r} and {update.site!r} do not hold the same tensors."
            )
    return files


class _Mean:
    """Weighted mean of one window over the sites, with buffers that are used again for the next window."""

    def __init__(self, weights: Sequence[float], spec: TensorSpec, window: int) -> None:
        self.weights = weights
        self.total = math.fsum(weights)
        self.sum = np.empty(min(window, spec.size), np.float64)
        self.product = np.empty_like(self.sum)
        # Only float64 can show the sum's rounding; see the notes of average_updates.
        self.bounded = spec.dtype == np.float64

    def __call__(self, values: Iterator[Array], out: Array) -> None:
        total, product = self.sum[: out.size], self.product[: out.size]
        total.fill(0.0)
        low = np.full(out.size, np.inf) if self.bounded else None
        high = np.full(out.size, -np.inf) if self.bounded else None
        with np.errstate(over="ignore", invalid="ignore"):
            for value, weight in zip(values, self.weights, strict=True):
                np.multiply(value, weight, out=product, dtype=np.float64)
                total += product
                if low is not None and high is not None:
                    np.minimum(low, value, out=low)
                    np.maximum(high, value, out=high)
            total /= self.total
        if low is not None and high is not None and np.isfinite(total).all():
            np.clip(total, low, high, out=total)
        out[:] = total


def _take_middle(values: Iterator[Array], out: Array) -> None:
    """Element-wise lower median over the sites; all of their buffers are the same one, hence the copies."""
    of_sites = np.stack([value.copy() for value in values])
    out[:] = np.sort(of_sites, axis=0)[(len(of_sites) - 1) // 2]

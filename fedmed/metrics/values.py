"""What a figure is, and the arithmetic of figures that may be undefined.

Functions on arrays take any number of leading axes D, so that a thousand bootstrap draws cost one call. Inside them NaN
stands for "cannot be computed"; a :class:`Figure` has ``None`` and a reason instead, never 0.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    Attributes
    ----------
    key : str
        Its name in reports.
    value : float or None
        ``None`` if it cannot be computed.
    n : int
        Number of images behind it.
    better : {"up", "down"}
        Which direction is an improvement.
    interval : (float, float), optional
        Lower and upper end.
    by_class : tuple of K (float or None), optional
        The figure of each class; ``None`` for a class for which it cannot be computed.
    by_class_interval : tuple of K ((float, float) or None), optional
        Likewise.
    reason : str, optional
        Why ``value`` is ``None``.
    n_withheld : int
        Rows (site, group, true class) that are not told, which the figure lacks.
    bound : float, optional
        How far the value may be off, of an AUC from histograms.
    within_sites : bool
        Whether only images of the same site were compared with each other, of an AUC.
    classes : tuple of int, optional
        Classes over which a mean over the classes was taken, where images of some class are not told.
    """

    key: str
    value: float | None
    n: int
    better: Literal["up", "down"]
    interval: tuple[float, float] | None = None
    by_class: tuple[float | None, ...] | None = None
    by_class_interval: tuple[tuple[float, float] | None, ...] | None = None
    reason: str | None = None
    n_withheld: int = 0
    bound: float | None = None
    within_sites: bool = False
    classes: tuple[int, ...] | None = None


class Values(NamedTuple):
    """A figure of many tables at once: shape (D,), and (D,K) by class where there is one; NaN where undefined."""

    value: Array
    by_class: Array | None = None


def divide_defined(numerator: Any, denominator: Any) -> Array:
    """Return the quotient, NaN where the denominator is 0; the arguments broadcast."""
    result = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result


def mean_defined(by_class: Array) -> Array:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(by_class)
    return divide_defined(np.where(defined, by_class, 0.0).sum(axis=-1), defined.sum(axis=-1))


def min_defined(values: Array) -> Array:
    """Return the minimum over the last axis of what is not NaN; NaN where nothing is."""
    lowest: Array = np.fmin.reduce(values, axis=-1, initial=np.nan)
    return lowest


def max_defined(values: Array) -> Array:
    """Return the maximum over the last axis of what is not NaN; NaN where nothing is."""
    highest: Array = np.fmax.reduce(values, axis=-1, initial=np.nan)
    return highest


def gap_defined(values: Array) -> Array:
    """Return maximum - minimum over the last axis of what is not NaN; NaN where there are fewer than two."""
    return _if_two(values, max_defined(values) - min_defined(values))


def std_defined(values: Array) -> Array:
    """Return the standard deviation (of a population, ddof 0) over the last axis, likewise."""
    return _if_two(values, np.sqrt(mean_defined(np.square(values - mean_defined(values)[..., None]))))


def _if_two(values: Array, result: Array) -> Array:
    return np.where((~np.isnan(values)).sum(axis=-1) >= 2, result, np.nan)


def optional_float(value: Any) -> float | None:
    """Return a number, or ``None`` for NaN."""
    return None if np.isnan(value) else float(value)

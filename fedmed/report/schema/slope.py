"""The part of ``report.json`` on the slope and the intercept of calibration."""

from typing_extensions import TypedDict


class EstimateEntry(TypedDict):
    """A coefficient."""

    value: float
    standard_error: float
    interval: tuple[float, float]
    """Of 95 %."""


class SlopeEntry(TypedDict):
    """A fit: :class:`fedmed.fairness.figures.calibration_slope.CalibrationSlope`."""

    n: int
    """Images of the bins that are told."""
    bins: int
    slope: EstimateEntry | None
    intercept: EstimateEntry | None
    in_the_large: EstimateEntry | None
    """The intercept where the slope is held at 1."""
    reason: str | None
    """Why something is None."""


class SlopesEntry(TypedDict):
    """The fits of the model as it is released, of all images together, by site, and by group where bins are told."""

    pooled: SlopeEntry
    sites: dict[str, SlopeEntry]
    groups: dict[str, dict[str, SlopeEntry]]
    """By attribute; groups whose bins are not told are left out."""

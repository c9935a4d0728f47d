"""What a study keeps of a cell, as its JSON file holds it."""

from typing import TypedDict, final


class Part(TypedDict, total=False):
    """A figure of some images; what is null in the report is left out here and in the other figures."""

    value: float
    interval: list[float]
    n: int


class SiteFigure(Part, total=False):
    """A figure of one site's images."""

    by_class: dict[str, float | None]


class Figure(Part, total=False):
    """A figure of all images."""

    better: str
    """Which direction is: ``up`` or ``down``."""
    by_class: dict[str, float | None]


class Gap(TypedDict, total=False):
    """What tells groups apart: a gap, a spread, or the figure of the worst group."""

    value: float
    interval: list[float]
    mean: float
    better: str
    p_value: float
    chance: float
    flagged: bool
    worst_group: str


class BenefitDifference(TypedDict, total=False):
    """By how much the common model differs from another one at a site."""

    value: float
    interval: list[float]
    p_value: float
    verdict: str


class SiteBenefit(TypedDict):
    """What a site gains from the common model."""

    verdict: str | None
    differences: dict[str, dict[str, BenefitDifference]]
    """Other model -> figure -> difference."""


class ShortReport(TypedDict):
    """What :func:`simulations.studies.cell.shorten_report` makes of a ``report.json``."""

    finished: str
    versions: dict[str, str]
    synthetic: bool
    classes: list[str]
    """Cells of older studies have none."""
    rounds: int
    chosen_round: int
    figures: dict[str, Figure]
    sites: dict[str, dict[str, SiteFigure]]
    groups: dict[str, dict[str, dict[str, Part]]]
    """Attribute -> group -> figure."""
    gaps: dict[str, dict[str, Gap]]
    """Attribute -> figure."""
    benefit: dict[str, SiteBenefit]
    benefit_summary: dict[str, list[str]]
    """Verdict -> sites."""


class CellResult(ShortReport):
    """What a finished cell found."""

    wall_s: float


class CellFailure(TypedDict):
    """Why a cell did not finish."""

    failed: str


class _Head(TypedDict, total=False):
    study: str
    arm: str
    seed: int
    digest: str
    """Of the settings that the result depends on."""


@final
class FinishedFile(CellResult, _Head):
    """The file of a finished cell."""


@final
class FailedFile(CellFailure, _Head):
    """The file of a cell that did not finish."""

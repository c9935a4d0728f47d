"""The part of ``report.json`` about alerts: the operating point, and what it does to the test images."""

from typing import NotRequired

from typing_extensions import TypedDict

from fedmed.report.schema.figures import Drawn, Interval, Part


class AlertFigure(Drawn):
    """A figure of alerts with its interval, or why it has no value."""

    reason: NotRequired[str]


class MissedEntry(TypedDict):
    """Images of one alert class without an alert."""

    n: int
    missed: int
    share: Drawn


class AlertEntry(TypedDict):
    """How alerts do on the images of all sites, of a site or of a group; what is not defined has the value None."""

    n_with: int
    """Images of an alert class, as far as its alerts are told."""
    n_without: int
    alerts: int
    classes: list[str]
    """Alert classes that are counted here."""
    left_out: list[str]
    """Classes of the study of which nothing is told here."""
    not_told: NotRequired[list[str]]
    """Classes of which images are not told here, or not by every site; absent in reports of earlier versions."""
    prevalence: float | None
    """Of the counted images."""
    sensitivity: AlertFigure
    specificity: AlertFigure
    ppv: AlertFigure
    """Share of alerts that are right, at the prevalence of these images."""
    npv: AlertFigure
    ppv_stated: AlertFigure | None
    """At the stated prevalence; None where none is stated, or images of either kind are missing."""
    npv_stated: AlertFigure | None
    net_benefit: float | None
    """At the operating point."""
    net_benefit_reason: NotRequired[str]
    """Why there is none."""
    net_benefit_all: NotRequired[float | None]
    """Of an alert for every image, at the same threshold."""
    net_benefit_interval: NotRequired[Interval | None]
    """Absent in reports of earlier versions."""
    by_class: dict[str, MissedEntry]


class CurveEntry(TypedDict):
    """Net benefit at each threshold."""

    value: list[float]
    low: list[float]
    """What merged bins leave open."""
    high: list[float]
    all: list[float]
    """Of an alert for every image."""


class ValidationEntry(TypedDict):
    """What the threshold was chosen on."""

    n_with: int
    n_without: int
    sensitivity: float | None
    """At least."""
    specificity: float | None


class CurveImages(TypedDict):
    """How many images a decision curve rests on."""

    n_with: int
    n_without: int


class ClinicalPart(TypedDict):
    """The whole part."""

    alert_classes: list[str]
    stated_sensitivity: float | None
    cost_ratio: float | None
    prevalence: float | None
    threshold: float | None
    """Log-odds of the alert classes' probability."""
    probability: float | None
    """The same as a probability."""
    note: str | None
    validation: ValidationEntry
    part: Part
    whole: NotRequired[AlertEntry]
    sites: dict[str, AlertEntry]
    groups: dict[str, dict[str, AlertEntry]]
    curve_thresholds: list[float]
    curve: NotRequired[CurveEntry]
    curves: dict[str, CurveEntry]
    """By site, of those with a net benefit at the operating point."""
    curve_images: NotRequired[CurveImages]
    """Of all sites together. Absent in reports of earlier versions, as is the next one."""
    curve_sites: NotRequired[list[str]]
    """Sites that tell alert scores."""


class ClinicalHolder(TypedDict):
    """Where it stands in ``report.json``."""

    clinical: NotRequired[ClinicalPart]
    """Alerts, where the study has alert classes; absent in reports of earlier versions."""

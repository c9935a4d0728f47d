"""The parts of ``report.json`` that hold figures of merit: groups, gaps, benefit and calibration."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from fedmed.report.schema.slope import SlopesEntry
from fedmed.storage.history import Number
from fedmed.storage.records import TemperatureRecord

Part = Literal["test", "validation"]
Better = Literal["up", "down"]
SiteVerdict = Literal["worse", "better", "undecided", "unknown"]
Interval = tuple[float, float]
"""Lower and upper end."""


class Drawn(TypedDict):
    """What a figure, a gap and a difference have in common: what can be drawn."""

    value: float | None
    interval: Interval | None
    """Of 95 %."""


class ClassFigure(TypedDict):
    """A figure of one class."""

    value: float | None
    interval: Interval | None
    reason: NotRequired[str]


class FigureEntry(TypedDict):
    """A figure of merit."""

    value: float | None
    interval: Interval | None
    """Of 95 %."""
    n: int | None
    """Images behind it; None where that may not be shown."""
    n_withheld: int | None
    """Rows (site, group, class) that are held back, which the figure lacks."""
    better: Better
    reason: NotRequired[str]
    by_class: NotRequired[dict[str, ClassFigure]]
    bound: NotRequired[float]
    """How far an AUC from histograms may be off."""
    within_sites: NotRequired[bool]
    """Whether an AUC compares images of the same site only; absent for no."""
    over_classes: NotRequired[list[str]]
    """Classes over which the mean is, where not all are told; absent for all."""
    pooled: NotRequired[float | None]
    """Of a site or a group: the figure of all images of these classes together."""
    patients: NotRequired[int]
    """Patients behind it, where they are told. Who has images of several classes counts once for each."""


FigureEntries = dict[str, FigureEntry]


class ClassGap(TypedDict):
    """A gap in one class."""

    value: float | None


class GapEntry(TypedDict):
    """A disparity between groups: :class:`fedmed.fairness.figures.gap_figures.GapFigure`."""

    value: float | None
    better: Better
    n: int
    mean: float | None
    interval: Interval | None
    skipped: int
    reason: str | None
    p_value: float | None
    chance: float | None
    flagged: bool | None
    worst_group: str | None
    best_group: str | None
    mean_interval: Interval | None
    chance_mean: float | None
    family_p: float | None
    worst_class: str | None
    left_out: list[str]
    n_withheld: int
    by_class: NotRequired[dict[str, ClassGap]]
    over_classes: NotRequired[list[str]]
    """Classes over which all groups are compared, of means over the classes."""
    overall: NotRequired[float | None]
    """The figure of all compared groups together, over the same classes."""
    lacking: NotRequired[dict[str, list[str]]]
    """Of rates, by class: groups that lack it and are left out for it."""
    limit: NotRequired[float | None]
    """The adjusted p-value up to which it is flagged."""


class FindingEntry(TypedDict):
    """What the gaps of one attribute say together."""

    flagged: bool | None
    """None if no gap could be tested."""
    figure: str | None
    """The gap to name."""
    flagged_figures: list[str]


class AlarmEntry(TypedDict):
    """What a person should know of a group in a round."""

    round: int
    kind: str
    attribute: str
    group: str
    figure: NotRequired[str]
    value: NotRequired[Number]
    reference: NotRequired[Number]
    reference_round: NotRequired[int | None]
    p_value: NotRequired[float | None]
    text: NotRequired[str]


class FairnessPart(TypedDict):
    """What a report says about groups."""

    fairness_part: Part
    groups: dict[str, dict[str, FigureEntries]]
    """By attribute and group."""
    hidden_groups: dict[str, dict[str, str]]
    """Reasons, likewise."""
    gaps: dict[str, dict[str, GapEntry]]
    """By attribute and figure."""
    findings: dict[str, FindingEntry]
    alarms: list[AlarmEntry]


class DifferenceEntry(TypedDict):
    """A figure of one model minus that of another on the same images."""

    value: float | None
    interval: Interval | None
    p_value: float | None
    n: int
    verdict: Literal["better", "worse", "undecided"]
    reason: str | None
    family_p: NotRequired[float | None]
    """The p-value, adjusted for the other figure of the same comparison."""


class ComparedEntry(TypedDict):
    """Models on the same images: figures of each, and by model the differences from it."""

    models: dict[str, FigureEntries]
    differences: dict[str, DifferenceEntry]


class BenefitEntry(TypedDict):
    """Whether one hospital is better off with the federated model."""

    models: dict[str, FigureEntries]
    differences: dict[str, dict[str, DifferenceEntry]]
    """By the other model and figure."""
    verdict: SiteVerdict
    decided_by: str | None
    """Key of the figure."""
    reason: NotRequired[str]
    """Why nothing is known."""
    disagree: NotRequired[bool]
    """Whether accuracy and balanced accuracy do not point the same way, or only one of them is more than chance."""
    images_by_class: NotRequired[dict[str, int]]
    """Test images behind the comparison with the site's own model."""
    patients: NotRequired[int]
    """Patients behind it, where they are told."""


class BenefitPart(TypedDict):
    """What a report says about benefit."""

    benefit: dict[str, BenefitEntry]
    benefit_summary: dict[SiteVerdict, list[str]]
    benefit_pooled: NotRequired[dict[str, DifferenceEntry]]
    """By figure: the federated model against the sites' own ones over the test images of all sites together."""


class Reliability(TypedDict):
    """The points of a reliability diagram: one for each bin of confidence, None for an empty bin."""

    n: list[float]
    confidence: list[float | None]
    accuracy: list[float | None]


class ReliabilityPair(TypedDict):
    """A reliability diagram before and after the temperature."""

    before: Reliability | None
    after: Reliability | None


class GroupCalibration(TypedDict):
    """Calibration before and after the temperature; ``before`` is None where only one form was scored."""

    before: FigureEntries | None
    after: FigureEntries
    reliability: ReliabilityPair


class CalibrationEntry(GroupCalibration):
    """Calibration of all images and, by attribute, of each group."""

    temperature: TemperatureRecord | None
    groups: dict[str, dict[str, GroupCalibration]]
    slopes: NotRequired[SlopesEntry]
    """Slope and intercept; absent in reports of before."""

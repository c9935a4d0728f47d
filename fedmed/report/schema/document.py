"""The whole of ``report.json``: how the run went, its small network, and the figures."""

from typing import NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict

from fedmed.report.schema.clinical import ClinicalHolder
from fedmed.report.schema.figures import (
    BenefitPart,
    CalibrationEntry,
    ComparedEntry,
    FairnessPart,
    FigureEntries,
    Part,
    Reliability,
)
from fedmed.report.schema.flow import DataFlow
from fedmed.report.schema.pooled_auc import PooledAucEntry
from fedmed.report.schema.shift import ShiftEntry
from fedmed.storage.history import Number
from fedmed.storage.records import (
    CheckRecord,
    CompressionKind,
    CompressionStatus,
    Distance,
    EarlierDistillation,
    GainBand,
    NetworkSize,
)


class PhaseEntry(TypedDict):
    """What a phase of the compression took."""

    phase: str
    seconds: float


class DistilledStep(TypedDict):
    """The course of a distillation."""

    step: float | None
    round: int | None
    train_loss: float | None
    held_out_loss: float | None
    agreement: float | None


class LearnedPrompt(TypedDict):
    """How the prompt of the proxy images, a reconstruction, was learned."""

    first_loss: float | None
    last_loss: float | None
    bands: list[GainBand]


class SmallTraining(TypedDict):
    """How the small network was trained."""

    num_proxy_images: int | None
    best_step: int | None
    num_members: int | None
    history: list[DistilledStep]
    prompt: LearnedPrompt
    not_copied: int | None
    notes: list[str]


class CompressionComparison(TypedDict):
    """The small against the large network on the same images of a part, by attribute and group."""

    part: NotRequired[Part | None]
    comparison: dict[str, dict[str, ComparedEntry]]


class CompressionEntry(CompressionComparison):
    """The compression into a small network; what was not judged has no numbers."""

    status: CompressionStatus
    kind: CompressionKind
    reason: str
    checks: list[CheckRecord]
    phases: NotRequired[list[PhaseEntry]]
    seconds: NotRequired[float]
    sizes: NotRequired[dict[str, NetworkSize]]
    training: NotRequired[SmallTraining]
    earlier: NotRequired[list[EarlierDistillation]]
    distance: NotRequired[Distance | None]
    num_images: NotRequired[int]


class Band(TypedDict):
    """A band of frequencies, in shares of the Nyquist frequency."""

    low: float
    high: float


class SiteDistance(TypedDict):
    """What a site has told of its distillation in a round."""

    ekd: float | None
    gains: list[float | None] | None


class DistillationRound(SiteDistance):
    """The distillation of a round."""

    round: int
    sites: dict[str, SiteDistance]


class DistillationEntry(TypedDict):
    """The distillation from a teacher at the sites."""

    teacher: dict[str, JsonValue]
    """Settings."""
    weight: float | None
    mode: str | None
    """Of the prompt, a reconstruction."""
    bands: list[Band] | None
    rounds: list[DistillationRound]


class RoundCourse(TypedDict):
    """Validation figures of groups, and gaps between them, in one round, by attribute."""

    groups: dict[str, dict[str, dict[str, Number]]]
    gaps: dict[str, dict[str, Number]]


class RoundValidation(RoundCourse):
    """Validation figures of one round."""

    pooled: dict[str, Number]
    sites: dict[str, dict[str, Number]]


class RoundEntry(TypedDict):
    """A round."""

    round: int
    loss: float | None
    learning_rate: float | None
    wall_s: float
    coverage_images: float
    accepted_sites: int
    validation: RoundValidation


class LeftOut(TypedDict):
    """Why a site was left out of some rounds."""

    status: str
    reason: str
    rounds: list[int]


class SiteParticipation(TypedDict):
    """A site's part in all rounds."""

    accepted_rounds: int
    missed_rounds: int
    mean_share: float
    update_bytes: int
    statuses: list[str]
    """By round."""
    reasons: list[LeftOut]


class ParticipationEntry(TypedDict):
    """Who took part."""

    rounds: list[int]
    bytes_to_sites: int
    bytes_from_sites: int
    sites: dict[str, SiteParticipation]


class SiteEntry(TypedDict):
    """A site and its figures."""

    train_images: int | None
    test: FigureEntries
    validation: FigureEntries


class Thresholds(TypedDict):
    """Fewest patients of a group, of a class in a group and of a bin, below which a site withholds its tables."""

    k: int
    k_row: int
    k_bin: NotRequired[int]
    unit: NotRequired[str]
    """What they count: ``patients``, ``images`` where the data has no ids, or ``patients or images`` by site."""


class ImageCounts(TypedDict):
    """How many test images there were."""

    total: int
    by_class: dict[str, int]


class Confusion(TypedDict):
    """Images by true class (rows) and predicted class."""

    pooled: list[list[int]]
    sites: dict[str, list[list[int]]]
    other_pooled: NotRequired[list[int]]
    """Wrong answers by true class of which the predicted class is not told; in no other cell."""
    other_sites: NotRequired[dict[str, list[int]]]


class RocCurve(TypedDict):
    """The points of a curve."""

    fpr: list[float]
    tpr: list[float]


class Document(FairnessPart, BenefitPart, ClinicalHolder):
    """The whole of ``report.json``."""

    format: NotRequired[int]
    """Number of this form, :data:`fedmed.formats.REPORT`; version 0.1.0 wrote none."""
    title: str
    synthetic: bool
    classes: list[str]
    chosen_round: int
    rounds: int
    choose_by: str
    choose_attribute: str
    course_figure: str
    seed: int
    thresholds: Thresholds
    figures: FigureEntries
    """Of the chosen model on the test images of all sites."""
    validation: FigureEntries
    test_images: ImageCounts
    sites: dict[str, SiteEntry]
    compression: CompressionEntry | None
    calibration: CalibrationEntry
    shift: NotRequired[ShiftEntry | None]
    """How far the sites' images differ; None where nothing is known."""
    pooled_auc: NotRequired[PooledAucEntry | None]
    """Of a simulation: the exact AUC over all sites' test images; None where nobody holds them all."""
    history: list[RoundEntry]
    participation: ParticipationEntry
    composition: dict[str, dict[str, dict[str, int]]] | None
    """Images by site, part and class."""
    distillation: DistillationEntry | None
    confusion: Confusion
    roc: dict[str, RocCurve | None]
    reliability: Reliability
    flow: NotRequired[DataFlow]
    """Which images and patients went where; earlier versions wrote none."""
    config: dict[str, JsonValue]
    environment: dict[str, JsonValue]
    notes: list[str]
    command: str

"""The forms of the JSON records that a run leaves on the disk about its temperature and its small network.

They say what is written. What is read may come from another version of fedmed, so a key that not all versions have
written is ``NotRequired``.
"""

from typing import Literal, NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict

CompressionStatus = Literal["accepted", "rejected", "skipped"]
CompressionKind = Literal["proxy", "co_distillation", "skip"]


class TemperatureRecord(TypedDict):
    """The temperature of the chosen model."""

    temperature: float
    n: int
    """Validation images."""
    nll_before: float | None
    nll_after: float | None


class OperatingRecord(TypedDict):
    """The operating point of the chosen model: ``tables/operating_point.json``."""

    format: int
    model_sha256: str
    alert_classes: list[str]
    stated_sensitivity: float | None
    cost_ratio: float | None
    prevalence: float | None
    """Stated one."""
    threshold: float | None
    """Alert score, log-odds after the temperature; None where none could be chosen."""
    n_with: int
    """Validation images of an alert class."""
    n_without: int
    sensitivity: float | None
    """Reached on them, at least."""
    specificity: float | None
    note: str | None
    sites: list[str]
    doubts: list[str]
    """Sentences on sites that decide alone, for which the model waits for a person."""


class PhaseRecord(TypedDict):
    """What the record of every phase names: the model before it, and the one that it gave."""

    from_sha256: str
    model_sha256: str


class GainBand(TypedDict):
    """The mean gain of a prompt, a reconstruction, in a band of frequencies (shares of the Nyquist frequency)."""

    low: float
    high: float
    gain: float | None


class ExploredRecord(TypedDict):
    """What one learning phase of a prompt did: :class:`fedmed.distillation.ExploreResult`."""

    losses: list[float]
    mismatches: list[float]
    outside: float
    bands: list[GainBand]


class DistilledLine(TypedDict):
    """The course of a distillation: at the server an evaluation (``step``), at the sites a round (``round``)."""

    train_loss: float | None
    step: NotRequired[float]
    held_out_loss: NotRequired[float]
    agreement: NotRequired[float]
    round: NotRequired[int]
    sites: NotRequired[list[str]]
    seconds: NotRequired[float]


class DistilledPart(TypedDict):
    """How a small network came about, as the decision on it repeats it."""

    round: NotRequired[int]
    target: NotRequired[str]
    members: NotRequired[list[str] | None]
    num_proxy_images: int | None
    not_copied: list[str] | None
    history: list[DistilledLine]
    best_step: int | None
    explored: ExploredRecord | None
    mismatch: float | None
    notes: list[str]
    model_sha256: str


class DistilledRecord(DistilledPart):
    """``record.json`` of a distillation, a :class:`PhaseRecord`."""

    from_sha256: str
    phases: dict[str, float]
    """Seconds of each phase."""


class DistilRoundRecord(PhaseRecord):
    """``record.json`` of a closed round of a distillation at the sites."""

    history: list[DistilledLine]


class EarlierDistillation(TypedDict):
    """A distillation between the rounds."""

    round: int
    seconds: float
    agreement: float | None


class Distance(TypedDict):
    """How far images are from the large network's BatchNorm statistics."""

    proxy: float
    sites: float
    """Mean over the sites."""
    warning: str | None


class NetworkSize(TypedDict):
    """How large a network is in train form, and merged as it is deployed."""

    name: str
    parameters: int
    bytes: NotRequired[int]
    deployed_parameters: int | None
    deployed_mib: float | None
    """In float32."""


class SupportRecord(TypedDict):
    """On how few images a condition of the gate rests."""

    label: str
    group: str | None
    num_images: int
    limit_images: float


class CheckRecord(TypedDict):
    """One condition of the gate; where a group may not be shown, a report has None in place of the figures."""

    name: str
    subject: str
    teacher: float | None
    student: float | None
    loss: float | None
    limit: float
    passed: bool
    p_value: float | None
    rests_on: NotRequired[SupportRecord | None]


class DecisionRecord(TypedDict):
    """What the gate decided."""

    accepted: bool
    checks: list[CheckRecord]
    reason: str
    num_images: int


class LimitsRecord(TypedDict):
    """How much worse the small network may be: :class:`fedmed.distillation.GateLimits`."""

    balanced_accuracy: float
    worst_class: float
    gap: float
    level: float


class CompressionPart(TypedDict):
    """What was decided about a small network, and, of one that was judged, all numbers."""

    kind: CompressionKind
    status: CompressionStatus
    reason: str
    phases: dict[str, float]
    distilled: NotRequired[DistilledPart]
    earlier: NotRequired[list[EarlierDistillation]]
    distance: NotRequired[Distance | None]
    decision: NotRequired[DecisionRecord]
    limits: NotRequired[LimitsRecord]
    gate_sites: NotRequired[list[str]]
    sizes: NotRequired[dict[str, NetworkSize]]
    model: NotRequired[dict[str, JsonValue]]
    """Settings of the small network."""
    model_file: NotRequired[str]
    """In the run's folder."""
    model_sha256: NotRequired[str]


class CompressionRecord(CompressionPart):
    """``tables/compression.json``."""

    round: int
    from_sha256: str


class PooledAucRecord(TypedDict):
    """Content of ``tables/pooled_auc.json`` of a simulation: exact areas over the test images of all sites."""

    model_sha256: str
    n: int
    """Test images; more than ``limit`` are not scored again."""
    limit: int
    by_class: list[float | None] | None
    """K areas; None where there are too many images."""


ShiftSource = Literal["updates", "recalibration"]
"""``updates``: running statistics of the last round's updates. ``recalibration``: of one model at all sites."""


class ShiftNumbers(TypedDict):
    """How far a site's images are from the usual ones, see :func:`fedmed.aggregation.site_shift.measure_shift`."""

    mean_shift: float
    spread_ratio: float
    distance: float


class ShiftRecord(TypedDict):
    """Content of ``tables/shift.json``."""

    round: int
    source: ShiftSource
    sites: dict[str, ShiftNumbers]

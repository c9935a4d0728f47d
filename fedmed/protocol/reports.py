"""What a site answers, as it travels: one class for each kind of message, whose fields are all that may leave with it.

Tensors, tables and sums travel beside the report. A site that lacks the model answers any request with
:class:`MissingModel`.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from fedmed.metrics.limits import LONGEST_NAME, MOST_ATTRIBUTES, MOST_GROUPS, UNKNOWN
from fedmed.protocol.reading import SAME_VERSION, Count, MessageForm, Sha256

LARGEST_LOSS = 1e6
"""A mean loss above this is taken for a fault."""
SMALLEST_DIVERGENCE = 1e-12
"""No site with fewer than thousands of classes comes near it; the powers of what is smaller would be lost."""
MOST_BANDS = 8
"""Of a prompt, that are told."""
LARGEST_MISMATCH = 1e12
_LARGEST_GAIN = 1e6
_LARGEST_NUMBER = 1e30
_LARGEST_DIFFERENCE = 1e39
"""float32, in which the forms compute, ends below it; more is told as infinite."""
_LONGEST_TEXT = 1000
_LARGEST_WHOLE = 10**12
"""Far above what is plausible, which is checked with better words, and far below what overflows."""
_MOST_CLASSES = 100_000
_LONGEST_PROBLEM = 500
_DIVERGENCE = "The divergence from the teacher ('mas_weight') is no number above 0 and at most 1."
_GROUP_LOSSES = (
    f"The losses by group are no mapping of at most {MOST_GROUPS} groups to a number of images and the sum of their "
    f"losses, from 0 to {LARGEST_LOSS:g} an image."
)

_MALFORMED = f"The comparison that arrived is malformed. {SAME_VERSION}"

Part = Literal["train", "validation", "test"]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Text = Annotated[str, Field(max_length=_LONGEST_TEXT)]
Number = Annotated[float, Field(gt=-_LARGEST_NUMBER, lt=_LARGEST_NUMBER)]
"""One that is only shown."""
Loss = Annotated[float, Field(ge=0, le=LARGEST_LOSS)]
GroupLoss = Annotated[
    tuple[Annotated[int, Field(ge=1, lt=_LARGEST_WHOLE)], Annotated[float, Field(ge=0)]], Field(strict=False)
]
"""Number of images and sum of their losses. JSON has lists alone, hence not strict; its two numbers are."""
GroupLosses = dict[Name, GroupLoss]


def _require_yes(value: bool) -> bool:
    if not value:
        raise ValueError(f"A report says 'false' where it has nothing to say. {SAME_VERSION}")
    return value


Yes = Annotated[bool, AfterValidator(_require_yes)]


class Report(MessageForm):
    """What a site answers."""

    what: ClassVar[str] = "The report"


class MissingModel(Report):
    """The site lacks the model that it is asked about: it must be sent."""

    missing_model: Yes


class Thresholds(Report):
    """Below how many images a site holds its tables back."""

    k: Count
    k_row: Count
    k_bin: Count = 1
    """1 from a site whose version knew none."""


class TeacherDescription(Report):
    """What sites must have in common for their teacher's features to be comparable."""

    name: Text
    source: Text
    sha256: Text
    image_size: Count


class SiteDescription(Report):
    """Who a site is, how many images it has, what it allows and which versions it runs."""

    site: Text
    versions: dict[Text, Text] = Field(
        max_length=MOST_ATTRIBUTES,
        description="It does not say which versions it runs. Install the same version of fedmed on both sides.",
    )
    model_digest: Text
    """Of the model's definition there."""
    num_images: dict[Part, Count] = Field(
        min_length=3, description="Its numbers of images are missing or no plausible counts."
    )
    teacher: TeacherDescription | None = Field(
        description="It does not say which teacher it has. Install the same version of fedmed on both sides."
    )
    """None where there is none, or where it is the global model itself."""
    thresholds: Thresholds = Field(description="Its thresholds for small numbers are no plausible counts.")
    validation_scores: bool = Field(description="It does not say whether validation scores may leave.")
    """Whether histograms of validation scores may leave."""
    validation_tables: bool = False
    """Whether tables of validation images may leave; a site of before there was a choice does not say so."""
    show_alone: bool = Field(description="It does not say whether groups may be shown alone.")
    """Whether patient groups may be shown that are this site's alone."""
    attributes: list[Name] = Field(
        max_length=MOST_ATTRIBUTES, description=f"Its attributes are no list of at most {MOST_ATTRIBUTES} names."
    )
    """What its images can be told apart by."""
    class_counts: dict[Part, Annotated[list[Count], Field(max_length=_MOST_CLASSES)]] | None = Field(
        min_length=3, description="Its class counts do not have one plausible count for every class and part."
    )
    """Images by class, where they may be told."""
    synthetic: bool
    """Whether its images are drawn and not taken."""
    unit: Literal["patients", "images"] = "images"
    """What its thresholds count: patients where its data has their ids. A site of before there were ids counts images.
    """


class DistilReport(Report):
    """What a site tells about one round of training, beside its update."""

    num_images: int = Field(gt=-_LARGEST_WHOLE, lt=_LARGEST_WHOLE, description=f"a whole number below {_LARGEST_WHOLE}")
    """Training images."""
    loss: Number
    """Mean loss per image over the round."""
    learning_rate: Number
    """Of the round's last epoch."""
    train_s: Number
    """Seconds of training."""


class TrainReport(DistilReport):
    """The same with what a fair aggregation and a distillation from a teacher need; None is not told."""

    start_loss: Loss | None = Field(
        None, description=f"A loss before the training is no number from 0 to {LARGEST_LOSS:g}."
    )
    """Mean loss of the global model on the site's training images."""
    group_losses: GroupLosses | None = Field(None, max_length=MOST_GROUPS, description=_GROUP_LOSSES)
    """Likewise by patient group."""
    mas_weight: float | None = Field(None, ge=SMALLEST_DIVERGENCE, le=1, description=_DIVERGENCE)
    """r_k of :mod:`fedmed.aggregation.divergence_rule`."""
    ekd: Number | None = None
    """Mean distance of features from the teacher's over the round, before its weight."""
    prompt_bands: list[Annotated[float, Field(gt=0, lt=_LARGEST_GAIN)] | None] | None = Field(
        None, min_length=1, max_length=MOST_BANDS, description=f"1 to {MOST_BANDS} gains above 0"
    )
    """Gain of the site's prompt, a reconstruction, by band of frequencies; None for a band without any."""

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        losses = self.group_losses or {}
        if UNKNOWN in losses or any(total > LARGEST_LOSS * n for n, total in losses.values()):
            raise ValueError(_GROUP_LOSSES)
        if sum(n for n, _ in losses.values()) > self.num_images:
            raise ValueError("The losses by group are of more images than the site has.")
        return self

    def to_values(self) -> dict[str, JsonValue]:
        """Return the JSON values that travel."""
        return self.model_dump(mode="json", exclude_none=True)


class Declined(Report):
    """The site trains no model of its own, as its policy says."""

    declined: Yes


class LocalReport(Report):
    """How far a site's own model is, which never leaves."""

    rounds_done: int = Field(
        ge=1, lt=_LARGEST_WHOLE, description="It does not say how many rounds of its own model are trained."
    )
    loss: Loss | None = Field(None, description=f"0 to {LARGEST_LOSS:g}")
    """Of its best state on the training images; where the aggregation needs that, and not told otherwise."""
    train_s: Number

    def to_values(self) -> dict[str, JsonValue]:
        """Return the JSON values that travel."""
        return self.model_dump(mode="json", exclude_none=True)


class ScoreReport(Report):
    """Beside evaluation tables: which model they are of."""

    model_sha256: Sha256
    mismatch: float | None = Field(
        None, ge=0, lt=LARGEST_MISMATCH, description=f"none, or a distance from 0 to {LARGEST_MISMATCH:g}"
    )
    """How far the site's images are from a network's BatchNorm statistics; not told unless it is asked for."""


Rate = Annotated[float, Field(ge=0, le=1)]


class FigureReport(Report):
    """How good a model is on a site's validation images of the classes of which it has enough patients.

    The classes are the same for the whole run. Both figures have 3 significant digits.
    """

    model_sha256: Sha256
    n: Count
    """Images, rounded down to a multiple of the site's k; 0 where there are too few to tell anything."""
    accuracy: Rate | None = Field(None, description="none, or 0 to 1")
    balanced_accuracy: Rate | None = Field(None, description="none, or 0 to 1")
    """Mean over these classes."""

    @model_validator(mode="after")
    def _check_figures(self) -> Self:
        given = [figure is not None for figure in (self.accuracy, self.balanced_accuracy)]
        if given != [self.n > 0] * len(given):
            raise ValueError(f"The report has figures without images, or images without figures. {SAME_VERSION}")
        return self

    def to_values(self) -> dict[str, JsonValue]:
        """Return the JSON values that travel."""
        return self.model_dump(mode="json", exclude_none=True)


class NormSumsReport(Report):
    """Beside the sums of BatchNorm's inputs: which model they are of."""

    model_sha256: Sha256


class TemperatureReport(Report):
    """Beside the sums for the temperature: which model they are of, and of how many images."""

    model_sha256: Sha256
    n: Count


class AlertReport(Report):
    """Beside counts of alert scores: which model they are of, and of how many images, rounded down."""

    model_sha256: Sha256
    n: Count


def _refuse_whole(value: object) -> object:
    """Refuse a whole number: a difference is always written with a point, and nothing else has to be understood."""
    if isinstance(value, int):
        raise ValueError(_MALFORMED)
    return value


Difference = Annotated[float, Field(ge=0, le=_LARGEST_DIFFERENCE), BeforeValidator(_refuse_whole)]


class FormDifference(Report):
    """How far one form of a model is from its train form, see :class:`fedmed.reparameterization.Comparison`."""

    precision: Literal["float32"]
    max_abs_error: Difference | None
    """None: infinite."""
    largest_logit: Difference | None
    max_probability_error: Difference | None = None
    """Of a probability; None: infinite. Not set by an earlier version."""
    num_images: Count
    num_ties: Count
    num_agreeing: Count


class FormsCompared(Report):
    """A comparison of a model's forms on a site's test images."""

    deploy: FormDifference
    onnx: FormDifference
    paired: Annotated[list[Annotated[list[Count], Field(min_length=4, max_length=4)]], Field(max_length=_MOST_CLASSES)]
    """By true class, see :class:`fedmed.export.compare.FormComparison`."""

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        num_images = sum(map(sum, self.paired))
        for form in (self.deploy, self.onnx):
            if not form.num_ties + form.num_agreeing <= form.num_images == num_images:
                raise ValueError(_MALFORMED)
        return self


class FormsProblem(Report):
    """Why a site cannot compare the forms, in words about what it was sent."""

    problem: Annotated[str, Field(max_length=_LONGEST_PROBLEM)]


class FormsReport(Report):
    """What a site found before a release, and about which model and artefact."""

    model_sha256: Sha256
    artefact_sha256: Sha256 | None
    comparison: FormsCompared | FormsProblem = Field(description=_MALFORMED)

"""What of a released ``manifest.json`` is read at a site, and within which bounds.

Whatever is not named here is not read. Keys that an older or newer server writes beside these do no harm.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from fedmed.protocol.reading import Count, Sha256
from fedmed.protocol.release import PLAIN_NAME

Text = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(max_length=500)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=4096)]
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]
Colours = Annotated[list[Number], Field(min_length=3, max_length=3)]
Bytes = Annotated[int, Field(ge=0, le=2**40)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


class ResizeForm(_Form):
    """How an image gets its size."""

    kind: Literal["exact", "shorter_side"]
    size: Side
    then: Text = ""
    filter: Text = ""


class PreprocessingForm(_Form):
    """How a file becomes the network's input."""

    image_size: Side
    recipe: Name = ""
    decode: Text = ""
    resize: ResizeForm
    colour: Text = ""
    mean: Colours
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    layout: Text = ""


class ExpectedForm(_Form):
    """What images are expected to be like."""

    basis: Text | None = None
    width: Pair | None = None
    height: Pair | None = None
    mean: Pair | None = None
    std: Pair | None = None
    colour: Literal["grey", "colour", "both"] | None = None


class CalibrationForm(_Form):
    """How the temperature was fitted."""

    n: Count
    nll_before: Number | None
    nll_after: Number | None


class ReachedForm(_Form):
    """What the operating point was chosen on."""

    n_with: Count
    n_without: Count
    sensitivity: Share | None
    specificity: Share | None


class OperatingForm(_Form):
    """From which score on an alert is raised."""

    alert_classes: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
    threshold: Annotated[float, Field(ge=-100, le=100)]
    probability: Share
    stated_sensitivity: Share | None
    cost_ratio: Positive | None
    prevalence: Share | None
    validation: ReachedForm


class OriginForm(_Form):
    """Who decided."""

    kind: Name = "automatic"
    by: Name | None = None
    time: Name | None = None
    doubts: Annotated[list[Text], Field(max_length=20)] = []


class TeacherForm(_Form):
    """Which frozen network the sites learned from."""

    name: Name = "unknown"
    source: Name = "unknown"
    sha256: Name | None = None
    image_size: Side | None = None


class ErrorsForm(_Form):
    """How far a form is from the trained network."""

    max_abs_error: Number
    largest_logit: Number
    max_probability_error: Number | None = None
    num_images: Count
    num_ties: Count
    num_agreeing: Count


class PooledForm(_Form):
    """What all sites together found."""

    num_sites: Count
    num_images: Count
    deploy_form: ErrorsForm | None = None
    onnx: ErrorsForm | None = None
    paired: list[Annotated[list[Count], Field(min_length=4, max_length=4)]] | None = None
    num_silent: Count = 0


class ProofForm(_Form):
    """The proof in short."""

    images: Text
    merged_places: Count
    kept_norms: Count = 0
    blocks_max_relative_error: Number = 0.0
    end_to_end: dict[Name, Number] = {}
    deploy_form: ErrorsForm
    onnx: ErrorsForm
    details: Name
    sites: PooledForm | None = None


class SizeForm(_Form):
    """How large and how fast a form is."""

    parameters: Annotated[int, Field(ge=0, le=2**40)] | None = None
    bytes: Bytes
    latency_ms: Number


class MachineForm(_Form):
    """On what the times depend."""

    processor: Name
    threads: Count
    images_at_a_time: Count = 1


class SizesForm(_Form):
    """Of all forms."""

    train_form: SizeForm
    deploy_form: SizeForm
    onnx: SizeForm
    machine: MachineForm


class FileForm(_Form):
    """A file of the release."""

    sha256: Sha256
    bytes: Bytes


class SiteComparisonForm(_Form):
    """What one site compared."""

    sha256: dict[Name, Sha256]
    num_images: Count
    max_abs_error: Number | None = None


class ManifestForm(_Form):
    """A released manifest."""

    format: Literal[1, 2]
    form: Literal["train", "deploy"]
    title: Name = "A federated image classifier"
    classes: Annotated[list[Name], Field(min_length=2, max_length=10_000)]
    preprocessing: PreprocessingForm
    expected: ExpectedForm = ExpectedForm()
    temperature: Positive = 1.0
    calibration: CalibrationForm | None = None
    operating_point: OperatingForm | None = None
    chosen_round: Count
    batch_norm: Name
    site: None = None
    """A released model is of no single site."""
    release: OriginForm = OriginForm()
    fopro: Name | None = None
    teacher: TeacherForm | None = None
    plan: dict[str, JsonValue]
    proof: ProofForm | None = None
    sizes: SizesForm | None = None
    sha256: dict[Name, Sha256]
    trained_sha256: Sha256 | None = None
    run_id: Annotated[str, Field(pattern=f"^{PLAIN_NAME.pattern}$")]
    released: Name = ""
    model_sha256: Sha256
    files: Annotated[dict[Name, FileForm], Field(max_length=1000)]
    compared: dict[Name, SiteComparisonForm] = {}

"""``manifest.json``: what it says, and how it is made and read."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from pydantic import JsonValue

from fedmed.clinical.entry import OperatingEntry
from fedmed.config import Plan
from fedmed.data import normalisation
from fedmed.protocol.release import MANIFEST_FILE
from fedmed.reparameterization import Comparison
from fedmed.storage.atomic_files import encode_json, hash_file
from fedmed.storage.environment import Distillation, TeacherOrigin

if TYPE_CHECKING:  # both import the ONNX runtime, which is needed once, at the end of a run
    from fedmed.export.measure import Sizes
    from fedmed.export.ranges import Expected
from fedmed.storage.records import TemperatureRecord

FORMAT = 2
"""Of an artefact; a folder in train form has 1."""
NOTICE = "Research software, not a medical device."


class ResizeRule(TypedDict):
    """How an image gets its size."""

    kind: str
    """``exact`` or ``shorter_side``."""
    size: int
    then: str
    filter: str


class Preprocessing(TypedDict):
    """How a file becomes the network's input, in words and numbers that ``predict.py`` follows."""

    image_size: int
    recipe: str
    decode: str
    resize: ResizeRule
    colour: str
    mean: list[float]
    std: list[float]
    layout: str


class Calibration(TypedDict):
    """How the temperature was fitted."""

    n: int
    nll_before: float | None
    nll_after: float | None


class Calibrated(TypedDict):
    """What a manifest says of the temperature."""

    temperature: float
    """By which whoever uses the model divides its outputs before the softmax, 1 where none was fitted."""
    calibration: Calibration | None


class ReleaseOrigin(TypedDict, total=False):
    """Who decided that the model may be used."""

    kind: str
    """``automatic``, ``manual`` or ``two_persons``."""
    by: str
    time: str
    doubts: list[str]
    """Why it was not released by itself, as sentences."""
    signatures: list[dict[str, str]]
    """Of ``two_persons``: by whom, when, for what, and the signature."""


class PlanContent(TypedDict):
    """A plan as JSON: what is read of it without :class:`fedmed.config.Plan`; all of it is in the manifest."""

    seed: int
    rounds: int
    model: dict[str, JsonValue]
    """``name``, and the network's options."""
    study: str
    approval: str | None
    benefit: NotRequired[bool]


class FormErrors(TypedDict):
    """How far a form is from the trained network."""

    max_abs_error: float
    largest_logit: float
    max_probability_error: float | None
    num_images: int
    num_ties: int
    num_agreeing: int


class PooledComparison(TypedDict):
    """What all sites together found before the release; see :func:`fedmed.export.release_form.pool`."""

    num_sites: int
    num_images: int
    deploy_form: NotRequired[FormErrors]
    onnx: NotRequired[FormErrors]
    paired: NotRequired[list[list[int]]]
    num_silent: NotRequired[int]
    """Sites that gave no comparison."""


class SiteProof(TypedDict):
    """The part of the proof that is made at the sites."""

    sites: PooledComparison


class ProofSummary(TypedDict):
    """The proof in short; ``proof.json`` has the details."""

    images: str
    merged_places: int
    kept_norms: int
    blocks_max_relative_error: float
    end_to_end: dict[str, float]
    deploy_form: FormErrors
    onnx: FormErrors
    details: str
    sites: NotRequired[PooledComparison]


class ReleasedFile(TypedDict):
    """A file of a release."""

    sha256: str
    bytes: int


class SiteComparison(TypedDict):
    """What one site compared before the release; of a model in train form: which it tested."""

    sha256: dict[str, str]
    """See :func:`fedmed.protocol.release.name_compared`."""
    num_images: int
    max_abs_error: float | None
    """Of a logit of deploy form or ONNX file; None where there is no deploy form."""


class ModelManifest(TypedDict):
    """Content of ``manifest.json``, of a model in either form; keys that are not known here stay in the file."""

    format: int
    form: str
    """``deploy`` or ``train``."""
    notice: NotRequired[str]
    """Here and below, what a manifest always has may be filled in later: its order on the disk stays as it is."""
    classes: list[str]
    preprocessing: Preprocessing
    temperature: NotRequired[float]
    calibration: NotRequired[Calibration | None]
    operating_point: NotRequired[OperatingEntry]
    """Absent where no alert is raised, and in manifests of earlier versions."""
    chosen_round: int
    batch_norm: str
    fopro: NotRequired[str]
    teacher: NotRequired[TeacherOrigin | None]
    plan: NotRequired[PlanContent]
    sha256: NotRequired[dict[str, str]]
    """Hash of every other file in the folder; the last that an artefact gets."""

    limits: NotRequired[str]
    """Of the train form alone."""

    title: NotRequired[str]
    """This and the following of the deploy form alone."""
    expected: "NotRequired[Expected]"
    site: NotRequired[str | None]
    release: NotRequired[ReleaseOrigin]
    plan_sha256: NotRequired[str]
    proof: NotRequired[ProofSummary]
    sizes: "NotRequired[Sizes]"
    trained_sha256: NotRequired[str]
    """Of the train form."""

    run_id: NotRequired[str]
    """This and the following once the model is released."""
    released: NotRequired[str]
    model_sha256: NotRequired[str]
    files: NotRequired[dict[str, ReleasedFile]]
    compared: NotRequired[dict[str, SiteComparison]]
    """By site."""


class ManifestChanges(TypedDict, total=False):
    """What becomes known after an artefact was made."""

    trained_sha256: str
    release: ReleaseOrigin
    proof: SiteProof


def read_manifest(folder: Path) -> ModelManifest:
    """Return the content of a model's manifest.

    Raises
    ------
    OSError, ValueError
        If there is none, or it is not JSON.
    """
    manifest: ModelManifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    return manifest


def describe_plan(plan: Plan) -> PlanContent:
    """Return a plan as the manifest holds it."""
    content: dict[str, JsonValue] = plan.model_dump(mode="json")
    return cast("PlanContent", content)  # its fields are those of the plan


def describe_preprocessing(recipe: str, image_size: int) -> Preprocessing:
    """Return how a file becomes the network's input, in words and numbers that ``predict.py`` follows.

    Parameters
    ----------
    recipe : str
        Training recipe, see :mod:`fedmed.data.transforms`; what counts here is its evaluation form.
    image_size : int
        S, pixels.
    """
    mean, std = normalisation(recipe)
    rule: ResizeRule = {
        "kind": "exact",
        "size": image_size,
        "then": "nothing: the aspect ratio is not kept",
        "filter": "bilinear with antialiasing, in integers, as torch.nn.functional.interpolate does for uint8",
    }
    if recipe == "hifuse":
        middle = f"cut out the middle {image_size} x {image_size}, offsets rounded to even"
        rule |= {"kind": "shorter_side", "size": round(image_size * 256 / 224), "then": middle}
    return {
        "image_size": image_size,
        "recipe": recipe,
        "decode": "JPEG or PNG; EXIF orientation applied; grey repeated over the channels; palette and CMYK converted; "
        "transparent pixels on black; 16-bit grey divided by 257 and rounded; colour profiles ignored",
        "resize": rule,
        "colour": "RGB, scaled to 0..1",
        "mean": list(mean),
        "std": list(std),
        "layout": "float32 (batch, 3, height, width), (value / 255 - mean) / std",
    }


def find_changed_files(folder: Path, manifest: ModelManifest) -> list[str]:
    """Return the files of a model's folder whose hash is not the one that its manifest names.

    Raises
    ------
    OSError
        If a file is missing or cannot be read.
    KeyError, TypeError, ValueError
        If the manifest names no hashes.
    """
    return [name for name, digest in dict(manifest["sha256"]).items() if hash_file(folder / name) != digest]


def describe_temperature(fitted: TemperatureRecord | None) -> Calibrated:
    """Return what a manifest says of the temperature.

    Parameters
    ----------
    fitted : TemperatureRecord, optional
        As :meth:`fedmed.storage.run_folder.RunFolder.read_temperature` gives it.
    """
    if fitted is None:
        return {"temperature": 1.0, "calibration": None}
    told: Calibration = {"n": fitted["n"], "nll_before": fitted["nll_before"], "nll_after": fitted["nll_after"]}
    return {"temperature": float(fitted["temperature"]), "calibration": told}


def read_temperature(manifest: ModelManifest) -> TemperatureRecord | None:
    """Return what :func:`describe_temperature` was given; None also where it is silent."""
    told = manifest.get("calibration")
    if told is None:
        return None
    return {
        "temperature": float(manifest["temperature"]),
        "n": told["n"],
        "nll_before": told["nll_before"],
        "nll_after": told["nll_after"],
    }


def read_distillation(manifest: ModelManifest) -> Distillation:
    """Return what a manifest says of what the sites learned from beside the labels."""
    told = Distillation()
    if "fopro" in manifest:
        told["fopro"] = manifest["fopro"]
    if "teacher" in manifest:
        told["teacher"] = manifest["teacher"]
    return told


def add_distillation(manifest: ModelManifest, told: Distillation) -> None:
    """Write into a manifest what :func:`read_distillation` reads."""
    if "fopro" in told:
        manifest["fopro"] = told["fopro"]
    if "teacher" in told:
        manifest["teacher"] = told["teacher"]


def describe_errors(comparison: Comparison) -> FormErrors:
    """Return a comparison as the manifest holds it."""
    return {
        "max_abs_error": comparison.max_abs_error,
        "largest_logit": comparison.largest_logit,
        "max_probability_error": comparison.max_probability_error,
        "num_images": comparison.num_images,
        "num_ties": comparison.num_ties,
        "num_agreeing": comparison.num_agreeing,
    }


def digest_plan(plan: Plan) -> str:
    """Return the SHA-256 of everything that defines the training."""
    return hashlib.sha256(encode_json(plan.model_dump(mode="json")).encode()).hexdigest()

"""The artefact: a folder from which a hospital can use the model, without this library and without PyTorch.

=====================  ===========================================================================
``model.onnx``         deploy form, any batch size; what ``predict.py`` runs
``model.safetensors``  deploy form for PyTorch, and ``load_model.py``, which reads it
``manifest.json``      classes, preprocessing, expected images, hashes of all files, proof, sizes
``proof.json``         the complete proof that train and deploy form are the same function
``model_card.md``      what the model is for, how well it does at each site, and its limits
``predict.py``         classifies files, with ``predict_tables.py`` and ``predict_watch.py``;
                       ``requirements.txt`` names all that they need
=====================  ===========================================================================
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmed import predict, predict_tables, predict_watch
from fedmed.clinical.entry import describe_operating_point
from fedmed.config import Plan
from fedmed.export import torch_loader
from fedmed.export.compare import FormComparison, choose_batch_size, compare_outputs
from fedmed.export.manifest import (
    FORMAT,
    NOTICE,
    ModelManifest,
    ProofSummary,
    ReleaseOrigin,
    add_distillation,
    describe_errors,
    describe_plan,
    describe_preprocessing,
    describe_temperature,
    digest_plan,
)
from fedmed.export.measure import Sizes, describe_sizes
from fedmed.export.model_card import ReportData, write_model_card
from fedmed.export.onnx_file import ExportError, release_memory, write_onnx
from fedmed.export.ranges import Expected
from fedmed.protocol.release import (
    CARD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    ONNX_FILE,
    PROOF_FILE,
    REQUIREMENTS_FILE,
)
from fedmed.protocol.tensors import pack_tensors
from fedmed.reparameterization import Place, Proof, convert, verify, verify_blocks
from fedmed.seeding import seeded_torch
from fedmed.storage.atomic_files import atomic_folder, hash_file, write_atomically, write_text_atomically
from fedmed.storage.environment import Distillation
from fedmed.storage.records import OperatingRecord, TemperatureRecord

PROGRAMS = {
    "predict.py": predict,
    "predict_tables.py": predict_tables,
    "predict_watch.py": predict_watch,
    "load_model.py": torch_loader,
}
SEEDED_IMAGES = 16
_RUNTIME = ("numpy", "pillow", "onnxruntime")
_GROSS = 0.01
"""Largest difference on noise, in largest logits."""


@dataclass(frozen=True)
class ProofImages:
    """Images on which the forms are compared."""

    pixels: torch.Tensor
    """Normalised float32 (N, 3, S, S)."""
    labels: torch.Tensor
    """int64 (N,)."""
    source: str
    """What they are, in words: ``96 test images of 4 sites``."""


@dataclass(frozen=True)
class ArtefactSettings:
    """What an artefact says beside what can be computed from the model."""

    plan: Plan
    chosen_round: int
    title: str = "A federated image classifier"
    report: ReportData | None = None
    """Content of ``report.json``: the figures of the model card."""
    expected: Expected = field(default_factory=Expected)
    """Ranges of the images, see :func:`fedmed.export.ranges.describe_range`."""
    release: ReleaseOrigin = field(default_factory=lambda: ReleaseOrigin(kind="automatic"))
    """Who decided that the model may be used."""
    temperature: TemperatureRecord | None = None
    """By what the outputs are divided, and how it was fitted; see
    :meth:`fedmed.storage.run_folder.RunFolder.read_temperature`."""
    operating: OperatingRecord | None = None
    """From which score on it raises an alert; see :func:`fedmed.storage.operating_records.read_operating_point`."""
    site: str | None = None
    """The only site whose model this is, where BatchNorm or the last layer stays at the sites."""
    distillation: Distillation = field(default_factory=Distillation)
    """``fopro`` and ``teacher``, as :meth:`fedmed.storage.run_folder.RunFolder.read_distillation` gives them."""


def build_artefact(
    model: nn.Module, settings: ArtefactSettings, folder: Path, images: ProofImages | None = None
) -> ModelManifest:
    """Merge a copy of a trained model, prove that it is the same function, and write the artefact.

    Parameters
    ----------
    model : nn.Module
        Train form, on the CPU; is set to evaluation mode, with channels last, and else unchanged.
    settings : ArtefactSettings
        What the artefact says.
    folder : Path
        Appears complete or not at all; an older one is replaced.
    images : ProofImages, optional
        Real images for the proof. Without them it is made block by block on seeded inputs in float64, and of the whole
        network on seeded noise.

    Returns
    -------
    ModelManifest
        Content of ``manifest.json``.

    Raises
    ------
    ExportError, ReparameterizationError
        If the model cannot be exported or a form is not equal to the train form; nothing is written then.
    CheckpointError
        If the disk is full or cannot be written.
    """
    with atomic_folder(folder) as partial:
        return _fill(partial, model.eval(), settings, images)


def _fill(folder: Path, model: nn.Module, settings: ArtefactSettings, images: ProofImages | None) -> ModelManifest:
    plan = settings.plan
    shown = images or _make_noise(plan)
    conversion = convert(model, fold_bn=True, example=shown.pixels[:2])
    deploy = conversion.model.to(memory_format=torch.contiguous_format)
    if images is None:
        proof = verify_blocks(model, deploy, places=conversion.places)
    else:
        batch_size = choose_batch_size(plan.image_size)
        proof = verify(model, deploy, images.pixels, images.labels, places=conversion.places, batch_size=batch_size)
    proof.require()
    release_memory()
    write_text_atomically(folder / PROOF_FILE, proof.to_json())
    write_atomically(folder / MODEL_FILE, pack_tensors(deploy.state_dict()))
    write_onnx(deploy, plan.image_size, folder / ONNX_FILE)
    release_memory()
    try:
        session = predict.open_session(folder / ONNX_FILE, torch.get_num_threads())
    except predict.PredictionError as error:
        raise ExportError(f"The ONNX file that was written cannot be run: {error}") from error
    comparison = _compare(model, deploy, session, shown, len(plan.classes))
    _check_comparison(comparison, on_noise=images is None)
    sizes = describe_sizes(model, deploy, folder / ONNX_FILE, session, plan.image_size)
    for name, module in PROGRAMS.items():
        write_atomically(folder / name, Path(str(module.__file__)).read_bytes())
    write_text_atomically(folder / REQUIREMENTS_FILE, make_requirements())
    manifest = _describe(settings, _summarise(proof, conversion.places, comparison, shown.source), sizes)
    write_text_atomically(folder / CARD_FILE, write_model_card(manifest, settings.report))
    manifest["sha256"] = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    write_text_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=2, ensure_ascii=False))
    return manifest


def _make_noise(plan: Plan) -> ProofImages:
    with seeded_torch(plan.seed, "export"):
        x_NCHW = torch.randn(SEEDED_IMAGES, 3, plan.image_size, plan.image_size)
    return ProofImages(x_NCHW, torch.zeros(SEEDED_IMAGES, dtype=torch.int64), "seeded noise, no real images")


def _compare(
    model: nn.Module, deploy: nn.Module, session: Any, images: ProofImages, num_classes: int
) -> FormComparison:
    """Compare the forms, one image in the last batch so that another batch size than the exporter's is met."""
    sizes = [len(images.pixels) - 1, 1] if len(images.pixels) > 1 else [1]
    most = choose_batch_size(images.pixels.shape[-1])
    batches = (batch for part in torch.split(images.pixels, sizes) for batch in torch.split(part, most))
    return compare_outputs(model, deploy, session, batches, images.labels, num_classes)


def _check_comparison(comparison: FormComparison, *, on_noise: bool) -> None:
    """Refuse an export that is not what was trained; on noise only a gross difference, since images decide later."""
    failures = comparison.failures()
    if on_noise:
        worst = max(one.max_abs_error / max(one.largest_logit, 1e-30) for one in (comparison.deploy, comparison.onnx))
        failures = failures if worst > _GROSS else []
    if failures:
        raise ExportError(
            f"What was exported is not equal to what was trained, so it is not kept. {' '.join(failures)}"
        )


def _summarise(proof: Proof, places: Sequence[Place], comparison: FormComparison, source: str) -> ProofSummary:
    return {
        "images": source,
        "merged_places": sum(place.merged for place in places),
        "kept_norms": sum(not place.merged for place in places),
        "blocks_max_relative_error": max((block.relative_error for block in proof.blocks), default=0.0),
        "end_to_end": {one.precision: one.max_abs_error for one in proof.comparisons},
        "deploy_form": describe_errors(comparison.deploy),
        "onnx": describe_errors(comparison.onnx),
        "details": PROOF_FILE,
    }


def make_requirements(*more: str) -> str:
    """Return ``requirements.txt``: the versions here of what ``predict.py`` needs, and of further packages."""
    lines = [f"{package}=={metadata.version(package)}" for package in (*_RUNTIME, *more)]
    head = "# The versions that this model was checked with, Python 3.11 or newer. Others are likely to work; compare."
    return "\n".join([head, *lines, ""])


def _describe(settings: ArtefactSettings, proof: ProofSummary, sizes: Sizes) -> ModelManifest:
    plan = settings.plan
    calibrated = describe_temperature(settings.temperature)
    manifest: ModelManifest = {
        "format": FORMAT,
        "form": "deploy",
        "title": settings.title,
        "notice": NOTICE,
        "classes": plan.classes,
        "preprocessing": describe_preprocessing(plan.augmentation, plan.image_size),
        "expected": settings.expected,
        "temperature": calibrated["temperature"],
        "calibration": calibrated["calibration"],
        "chosen_round": settings.chosen_round,
        "batch_norm": plan.batch_norm,
        "site": settings.site,
        "release": settings.release,
    }
    point = describe_operating_point(settings.operating)
    if point is not None:
        manifest["operating_point"] = point
    add_distillation(manifest, settings.distillation)
    manifest |= {
        "plan": describe_plan(plan),
        "plan_sha256": digest_plan(plan),
        "proof": proof,
        "sizes": sizes,
    }
    return manifest

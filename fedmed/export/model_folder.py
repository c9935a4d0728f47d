"""The weights of a run in a folder, with a manifest that says how to use them.

A folder in train form holds ``model.safetensors`` and ``manifest.json`` (classes in order, preprocessing, hashes). A
folder in deploy form is an artefact (:mod:`fedmed.export.artefact`). ``load_model`` reads both.
"""

import json
from pathlib import Path

from torch import nn

from fedmed.clinical.entry import describe_operating_point
from fedmed.config import Plan
from fedmed.distillation.network import strip_packed
from fedmed.errors import CheckpointError
from fedmed.export import torch_loader
from fedmed.export.manifest import (
    NOTICE,
    ModelManifest,
    add_distillation,
    describe_plan,
    describe_preprocessing,
    describe_temperature,
    read_manifest,
)
from fedmed.protocol.release import MANIFEST_FILE, MODEL_FILE
from fedmed.storage.atomic_files import hash_file, write_atomically
from fedmed.storage.environment import Distillation
from fedmed.storage.records import OperatingRecord, TemperatureRecord
from fedmed.training.network import Network


def write_model(
    folder: Path,
    model_file: Path,
    plan: Plan,
    *,
    chosen_round: int,
    temperature: TemperatureRecord | None = None,
    operating: OperatingRecord | None = None,
    distillation: Distillation | None = None,
) -> None:
    """Write a model in train form.

    Parameters
    ----------
    folder : Path
        Made if absent; its files are replaced.
    model_file : Path
        Tensors of the chosen round.
    plan : Plan
        What was trained.
    chosen_round : int
        Where the tensors come from.
    temperature : TemperatureRecord, optional
        See :func:`fedmed.export.manifest.describe_temperature`.
    operating : OperatingRecord, optional
        From which score on it raises an alert.
    distillation : Distillation, optional
        ``fopro`` and ``teacher``, as :meth:`fedmed.storage.run_folder.RunFolder.read_distillation` gives them.
    """
    folder.mkdir(exist_ok=True)
    write_atomically(folder / MODEL_FILE, strip_packed(model_file.read_bytes(), plan))
    calibrated = describe_temperature(temperature)
    manifest: ModelManifest = {
        "format": 1,
        "form": "train",
        "classes": plan.classes,
        "preprocessing": describe_preprocessing(plan.augmentation, plan.image_size),
        "temperature": calibrated["temperature"],
        "calibration": calibrated["calibration"],
        "chosen_round": chosen_round,
        "batch_norm": plan.batch_norm,
    }
    point = describe_operating_point(operating)
    if point is not None:
        manifest["operating_point"] = point
    add_distillation(manifest, distillation or Distillation())
    manifest |= {
        "plan": describe_plan(plan.plain()),
        "sha256": {MODEL_FILE: hash_file(folder / MODEL_FILE)},
        "notice": NOTICE,
    }
    if plan.batch_norm == "local":
        manifest["limits"] = "BatchNorm stays at the sites: this file lacks it, and each site adds its own."
    elif plan.is_personal:
        manifest["limits"] = (
            "The last layer stays at the sites: this file lacks it, and is no model without a site's own."
        )
    write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=2).encode())


def load_model(folder: Path) -> tuple[nn.Module, ModelManifest]:
    """Read a model, in train or deploy form.

    Parameters
    ----------
    folder : Path
        As :func:`write_model` or :func:`fedmed.export.build_artefact` wrote it.

    Returns
    -------
    model : nn.Module
        In evaluation mode, (B, 3, S, S) normalised float32 to logits (B, K).
    manifest : ModelManifest
        Content of ``manifest.json``.

    Raises
    ------
    CheckpointError
        If a file is missing or does not have the hash of the manifest.
    """
    try:
        manifest = read_manifest(folder)
        found = hash_file(folder / MODEL_FILE)
        expected = manifest["sha256"][MODEL_FILE]
        plan = Plan.model_validate(manifest["plan"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{folder}' is no complete model folder: {error}.") from None
    if found != expected:
        raise CheckpointError(
            f"'{folder / MODEL_FILE}' has been changed: its SHA-256 is {found[:16]}..., the manifest says "
            f"{expected[:16]}.... Copy the folder again from where it came."
        )
    if manifest.get("form") == "deploy":
        return torch_loader.build_model(manifest, folder / MODEL_FILE), manifest
    network = Network(plan)
    network.fill((folder / MODEL_FILE).read_bytes(), {})
    return network.model.eval(), manifest

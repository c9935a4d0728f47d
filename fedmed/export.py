"""The model folder of a run: weights, and a manifest that says how to use them.

The folder holds ``model.safetensors`` and ``manifest.json`` (classes in order, preprocessing, hashes). ``load_model``
builds the network from the two files alone.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from fedmed.atomic_files import hash_file
from fedmed.checkpoint import write_atomically
from fedmed.config import Plan
from fedmed.data import normalisation
from fedmed.errors import CheckpointError
from fedmed.network import Network

MODEL_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"


def write_model(folder: Path, model_file: Path, plan: Plan, *, chosen_round: int) -> None:
    """Write the model folder.

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
    """
    folder.mkdir(exist_ok=True)
    write_atomically(folder / MODEL_FILE, model_file.read_bytes())
    mean, std = normalisation(plan.augmentation)
    manifest: dict[str, Any] = {
        "format": 1,
        "form": "train",
        "classes": plan.classes,
        "preprocessing": {
            "image_size": plan.image_size,
            "recipe": plan.augmentation,
            "colour": "RGB, scaled to 0..1",
            "mean": list(mean),
            "std": list(std),
        },
        "chosen_round": chosen_round,
        "batch_norm": plan.batch_norm,
        "plan": plan.model_dump(mode="json"),
        "sha256": {MODEL_FILE: hash_file(folder / MODEL_FILE)},
        "notice": "Research software, not a medical device.",
    }
    if plan.batch_norm == "local":
        manifest["limits"] = "BatchNorm stays at the sites: this file lacks it, and each site adds its own."
    write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=2).encode())


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read a model folder.

    Parameters
    ----------
    folder : Path
        As :func:`write_model` wrote it.

    Returns
    -------
    model : nn.Module
        In evaluation mode, (B, 3, S, S) normalised float32 to logits (B, K).
    manifest : dict
        Content of ``manifest.json``.

    Raises
    ------
    CheckpointError
        If a file is missing or does not have the hash of the manifest.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text())
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
    network = Network(plan)
    network.fill((folder / MODEL_FILE).read_bytes(), {})
    return network.model.eval(), manifest

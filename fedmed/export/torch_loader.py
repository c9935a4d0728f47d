"""Load an exported model into PyTorch.

    python load_model.py        in the folder of the model: prints the network and checks its weights

>>> from load_model import load_model
>>> model = load_model("folder of the model")   # normalised float32 (B, 3, S, S) to logits (B, K)

This file is copied into every exported model. Other than ``predict.py`` it needs fedmed, which knows the network.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fedmed.models import create_model
from fedmed.reparameterization import reparameterize


def load_model(folder: str | Path) -> nn.Module:
    """Return the deploy form of a network, in evaluation mode.

    Parameters
    ----------
    folder : str or Path
        With ``manifest.json`` and ``model.safetensors``.

    Raises
    ------
    ValueError
        If the weights do not have the hash of the manifest.
    """
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    weights = Path(folder) / "model.safetensors"
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != manifest["sha256"][weights.name]:
        raise ValueError(f"'{weights}' has been changed: its SHA-256 is not the one in the manifest.")
    return build_model(manifest, weights)


def build_model(manifest: Mapping[str, Any], weights: Path) -> nn.Module:
    """Return the network that a manifest describes, with the weights of a file.

    The network is built as it was trained and merged, which makes the modules that the weights belong to.
    """
    options = dict(manifest["plan"]["model"])
    size = int(manifest["preprocessing"]["image_size"])
    trained = create_model(options.pop("name"), len(manifest["classes"]), **options)
    model = reparameterize(trained, fold_bn=True, example=torch.zeros(2, 3, size, size))
    model.load_state_dict(safetensors.torch.load_file(weights))
    return model.eval()


if __name__ == "__main__":
    print(load_model(Path(__file__).resolve().parent))

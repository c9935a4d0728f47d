"""Load an exported model into PyTorch.

    python load_model.py        in the folder of the model: prints the network and checks its weights; after it the
                                import paths of code from outside fedmed, where the network needs it

>>> from load_model import load_model
>>> model = load_model("folder of the model")   # normalised float32 (B, 3, S, S) to logits (B, K)

This file is copied into every exported model. Other than ``predict.py`` it needs fedmed, which knows the network.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import nn

from fedmed.config import Plan
from fedmed.extensions import check_installed, is_path
from fedmed.models import create_model
from fedmed.reparameterization import reparameterize

if TYPE_CHECKING:  # it imports this file
    from fedmed.export.manifest import ModelManifest


def load_model(folder: str | Path, extensions: Sequence[str] = ()) -> nn.Module:
    """Return the deploy form of a network, in evaluation mode.

    Parameters
    ----------
    folder : str or Path
        With ``manifest.json`` and ``model.safetensors``.
    extensions : sequence of str
        Import paths of code from outside fedmed that may be run. A network that was built by such code needs its own
        here, and the same code installed.

    Raises
    ------
    ValueError
        If the weights do not have the hash of the manifest, or its network is built by code that is not allowed.
    """
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    weights = Path(folder) / "model.safetensors"
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != manifest["sha256"][weights.name]:
        raise ValueError(f"'{weights}' has been changed: its SHA-256 is not the one in the manifest.")
    needed = Plan.model_validate(manifest["plan"]).extensions
    name = str(manifest["plan"]["model"]["name"])
    if is_path(name) and name not in extensions:
        raise ValueError(
            f"The network is built by '{name}', code from outside fedmed. Once you have read that code, type: "
            f"load_model(folder, extensions=['{name}'])."
        )
    check_installed(one for one in needed if one.path == name)
    return build_model(manifest, weights)


def build_model(manifest: "ModelManifest", weights: Path) -> nn.Module:
    """Return the network that a manifest describes, with the weights of a file.

    The network is built as it was trained and merged, which makes the modules that the weights belong to.
    """
    options = {**manifest["plan"]["model"]}
    name = str(options.pop("name"))
    size = int(manifest["preprocessing"]["image_size"])
    trained = create_model(name, len(manifest["classes"]), **options)
    model = reparameterize(trained, fold_bn=True, example=torch.zeros(2, 3, size, size))
    model.load_state_dict(safetensors.torch.load_file(weights))
    return model.eval()


if __name__ == "__main__":
    print(load_model(Path(__file__).resolve().parent, extensions=sys.argv[1:]))

"""What ``manifest.json`` says: names, preprocessing, versions."""

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from fedmed.config import Plan
from fedmed.data import normalisation
from fedmed.storage.atomic_files import encode_json, hash_file
from fedmed.storage.records import TemperatureRecord

FORMAT = 2
"""Of an artefact; a folder in train form has 1."""
NOTICE = "Research software, not a medical device."
_RUNTIME = ("numpy", "pillow", "onnxruntime")


def describe_preprocessing(recipe: str, image_size: int) -> dict[str, Any]:
    """Return how a file becomes the network's input, in words and numbers that ``predict.py`` follows.

    Parameters
    ----------
    recipe : str
        Training recipe, see :mod:`fedmed.data.transforms`; what counts here is its evaluation form.
    image_size : int
        S, pixels.
    """
    mean, std = normalisation(recipe)
    rule: dict[str, Any] = {"kind": "exact", "size": image_size, "then": "nothing: the aspect ratio is not kept"}
    if recipe == "hifuse":
        middle = f"cut out the middle {image_size} x {image_size}, offsets rounded to even"
        rule = {"kind": "shorter_side", "size": round(image_size * 256 / 224), "then": middle}
    return {
        "image_size": image_size,
        "recipe": recipe,
        "decode": "JPEG or PNG; EXIF orientation applied; grey repeated over the channels; palette and CMYK converted; "
        "transparent pixels on black; 16-bit grey divided by 257 and rounded; colour profiles ignored",
        "resize": rule
        | {"filter": "bilinear with antialiasing, in integers, as torch.nn.functional.interpolate does for uint8"},
        "colour": "RGB, scaled to 0..1",
        "mean": list(mean),
        "std": list(std),
        "layout": "float32 (batch, 3, height, width), (value / 255 - mean) / std",
    }


def find_changed_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the files of a model's folder whose hash is not the one that its manifest names.

    Raises
    ------
    OSError
        If a file is missing or cannot be read.
    KeyError, TypeError, ValueError
        If the manifest names no hashes.
    """
    return [name for name, digest in dict(manifest["sha256"]).items() if hash_file(folder / name) != digest]


def describe_temperature(fitted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a manifest says of the temperature.

    Parameters
    ----------
    fitted : mapping, optional
        As :meth:`fedmed.storage.run_folder.RunFolder.read_temperature` gives it.

    Returns
    -------
    dict
        ``temperature``, by which whoever uses the model divides its outputs before the softmax, 1 where none was
        fitted; and ``calibration``, how it was fitted.
    """
    if fitted is None:
        return {"temperature": 1.0, "calibration": None}
    told = {key: fitted[key] for key in ("n", "nll_before", "nll_after")}
    return {"temperature": float(fitted["temperature"]), "calibration": told}


def read_temperature(manifest: Mapping[str, Any]) -> TemperatureRecord | None:
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


def digest_plan(plan: Plan) -> str:
    """Return the SHA-256 of everything that defines the training."""
    return hashlib.sha256(encode_json(plan.model_dump(mode="json")).encode()).hexdigest()


def make_requirements() -> str:
    """Return ``requirements.txt``: the versions that the artefact was checked with."""
    lines = [f"{package}=={metadata.version(package)}" for package in _RUNTIME]
    head = "# The versions that this model was checked with, Python 3.11 or newer. Others are likely to work; compare."
    return "\n".join([head, *lines, ""])

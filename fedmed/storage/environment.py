"""Versions and machine of a run."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from pydantic import JsonValue

from fedmed.versions import find_version

_PACKAGES = ("fedmed", "flwr", "ray", "torch", "torchvision", "numpy", "scikit-learn", "fairlearn", "safetensors")


class TeacherOrigin(TypedDict, total=False):
    """Which frozen network the sites learned from."""

    name: str
    source: str
    sha256: str | None
    image_size: int


class Distillation(TypedDict, total=False):
    """What the sites learned from beside the labels; empty where a run does not say."""

    fopro: str
    """``disabled``, ``client`` (FoPro-KD) or ``self``; see :func:`fedmed.distillation.name_distillation`."""
    teacher: TeacherOrigin | None


class Start(Distillation, total=False):
    """One start of a run in ``environment.json``, beside what :func:`describe_environment` says."""

    extensions: list[dict[str, str | None]]
    """Code from outside fedmed, as :class:`fedmed.extensions.Extension` holds it."""


def describe_environment() -> dict[str, JsonValue]:
    """Return versions, processor and command of this process; nothing that names the machine or its user."""
    import torch  # noqa: PLC0415  (takes seconds and memory, which a process that only watches should not pay)

    versions: dict[str, JsonValue] = {}
    for package in _PACKAGES:
        try:
            versions[package] = find_version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "versions": versions,
    }

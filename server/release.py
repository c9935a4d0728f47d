"""The model that leaves the coordinating site: a folder whose manifest is signed.

::

    release/manifest.json      classes, preprocessing, hashes of all other files
    release/manifest.sig       signature of the manifest, base64
    release/model.safetensors  the model
    release/report.html, report.json, history.json
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from fedmed.atomic_files import hash_file, write_atomically
from fedmed.audit import AuditLog
from fedmed.keys import sign
from fedmed.metrics.history import read_history
from fedmed.run_folder import RunFolder

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"


def release_folder(run: RunFolder) -> Path:
    """Return the folder from which sites collect the model."""
    return run.path / "release"


def find_release(run: RunFolder) -> str | None:
    """Return the SHA-256 of the released manifest, None before the release."""
    manifest = release_folder(run) / MANIFEST_FILE
    return hash_file(manifest) if manifest.is_file() else None


def prepare_release(run: RunFolder, release_key: Path) -> str:
    """Fill the release folder from a finished run and sign its manifest.

    Parameters
    ----------
    run : RunFolder
        With ``model/`` and ``report/``.
    release_key : Path
        Private key of the coordinating site.

    Returns
    -------
    str
        SHA-256 of the manifest, the name of this release.

    Raises
    ------
    KeyFileError
        If the key cannot be used.
    """
    found = find_release(run)
    if found is not None:
        return found
    folder = release_folder(run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _place(run.model / "model.safetensors", folder / "model.safetensors")
    _place(run.report / "index.html", folder / "report.html")
    _place(run.report / "report.json", folder / "report.json")
    write_atomically(folder / "history.json", json.dumps(_share_history(run)).encode())
    manifest: dict[str, Any] = json.loads((run.model / MANIFEST_FILE).read_text())
    manifest |= {
        "run_id": run.read_run_id(),
        "model_sha256": manifest["sha256"]["model.safetensors"],
        "files": {
            path.name: {"sha256": hash_file(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
        },
    }
    data = json.dumps(manifest, indent=2).encode()
    write_atomically(folder / SIGNATURE_FILE, sign(release_key, data).encode())
    write_atomically(folder / MANIFEST_FILE, data)  # last: from here on sites collect it
    digest = hashlib.sha256(data).hexdigest()
    AuditLog(run.audit_file).append("release", manifest_sha256=digest, model_sha256=manifest["model_sha256"])
    return digest


def _place(source: Path, target: Path) -> None:
    """Link a file where possible: a model need not lie on the disk twice."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _share_history(run: RunFolder) -> list[dict[str, Any]]:
    """Return the rounds without what they say about single sites."""
    shared = []
    for record in read_history(run.history_file):
        line = {key: value for key, value in record.items() if key not in {"participation", "validation"}}
        line["validation"] = {"pooled": record["validation"]["pooled"], "sites": {}}
        line["participation"] = []
        shared.append(line)
    return shared

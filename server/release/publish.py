"""The model that leaves the coordinating site: a folder whose manifest is signed.

::

    release/manifest.json      classes, preprocessing, proof, which sites compared it, hashes of all other files
    release/manifest.sig       signature of the manifest, base64
    release/model.onnx, model.safetensors, proof.json, report.json, history.json

Programs, pages and lists of packages never travel: each site makes its own. With ``batch_norm: local`` the model is the
one in train form, ``model.safetensors`` alone, from which each site makes its own.
"""

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from fedmed.errors import KeyFileError
from fedmed.keys import check_signature, sign
from fedmed.protocol.release import (
    HISTORY_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    MODEL_FILES,
    REPORT_DATA_FILE,
    SIGNATURE_FILE,
    name_compared,
)
from fedmed.storage.atomic_files import hash_file, write_atomically
from fedmed.storage.audit import AuditLog
from fedmed.storage.history import Validation, read_history
from fedmed.storage.phase_records import COMPARISON_FILE
from fedmed.storage.run_folder import RunFolder

if TYPE_CHECKING:  # it imports PyTorch, which the process that waits for a decision does without
    from fedmed.export.manifest import ModelManifest, SiteComparison


def release_folder(run: RunFolder) -> Path:
    """Return the folder from which sites collect the model."""
    return run.path / "release"


def find_release(run: RunFolder) -> str | None:
    """Return the SHA-256 of the released manifest, None before the release."""
    manifest = release_folder(run) / MANIFEST_FILE
    return hash_file(manifest) if manifest.is_file() else None


def check_release_key(keys: Path) -> None:
    """Check before the first round that the model can be signed after the last one.

    Raises
    ------
    KeyFileError
        If a key cannot be used, or the two are no pair.
    """
    private, public = keys / "release.key", keys / "release.pub"
    signature = sign(private, b"test")
    try:
        check_signature(public, b"test", signature)
    except KeyFileError:
        raise KeyFileError(
            f"{private} and {public} are no pair. The sites trust only the key whose public half their kits hold: put "
            "back both files as --provision made them."
        ) from None


def prepare_release(run: RunFolder, release_key: Path, audit: AuditLog) -> str:
    """Fill the release folder from a finished run and sign its manifest.

    Parameters
    ----------
    run : RunFolder
        With ``model/`` and ``shared/report/``.
    release_key : Path
        Private key of the coordinating site.
    audit : AuditLog
        Takes an entry of a new release.

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
    for name in MODEL_FILES:
        if (run.model / name).is_file():
            _place(run.model / name, folder / name)
    # The report without reasons that concern single hospitals
    _place(run.path / "shared" / "report" / "report.json", folder / REPORT_DATA_FILE)
    write_atomically(folder / HISTORY_FILE, json.dumps(_share_history(run)).encode())
    manifest: ModelManifest = json.loads((run.model / MANIFEST_FILE).read_text(encoding="utf-8"))
    compared = list_compared(run, manifest)
    manifest |= {
        "sha256": {name: digest for name, digest in manifest["sha256"].items() if name in MODEL_FILES},
        "compared": compared,
        "run_id": run.read_run_id(),
        "released": datetime.now(UTC).isoformat(timespec="seconds"),
        # By the hash of the train form a site finds its own tables of the test.
        "model_sha256": manifest.get("trained_sha256") or manifest["sha256"][MODEL_FILE],
        "release": manifest.get("release") or {"kind": "automatic"},
        "files": {
            path.name: {"sha256": hash_file(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
        },
    }
    data = json.dumps(manifest, indent=2, ensure_ascii=False).encode()
    write_atomically(folder / SIGNATURE_FILE, sign(release_key, data).encode())
    write_atomically(folder / MANIFEST_FILE, data)  # last: from here on sites collect it
    digest = hashlib.sha256(data).hexdigest()
    told = {"manifest_sha256": digest, "model_sha256": manifest["model_sha256"], **manifest["release"]}
    audit.append("release", **told)
    return digest


def list_compared(run: RunFolder, manifest: "ModelManifest") -> "dict[str, SiteComparison]":
    """Return which sites compared a model before its release, for those that were away.

    Of a model in train form, which each site brings into its deploy form by itself, these are the sites that tested it.
    """
    hashes = name_compared(manifest)
    if manifest["form"] != "deploy":
        tested = sorted((run.tables / "test").glob("*.safetensors"))
        return {path.stem: {"sha256": hashes, "num_images": 0, "max_abs_error": None} for path in tested}
    try:
        kept = json.loads((run.tables / COMPARISON_FILE).read_bytes())
        sites = kept["sites"].items() if kept["files"] == {name: hashes[name] for name in kept["files"]} else ()
        forms = {site: (told["deploy"], told["onnx"]) for site, told in sites}
        return {
            site: {
                "sha256": hashes,
                "num_images": onnx["num_images"],
                "max_abs_error": max(deploy["max_abs_error"], onnx["max_abs_error"]),
            }
            for site, (deploy, onnx) in sorted(forms.items())
            if onnx["num_images"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a run that compared nothing has no such file
        return {}


class Receipts:
    """What sites say about the release that they have collected.

    Parameters
    ----------
    run : RunFolder
        With the release and the roster.
    folder : Path
        Where the SuperLink puts ``NODE_ID.json``.
    """

    def __init__(self, run: RunFolder, folder: Path) -> None:
        self._run, self._folder = run, folder
        self.collected: set[str] = set()
        """Sites that have the present release."""

    def read(self) -> list[str]:
        """Return the sites whose receipt has come since the last call, sorted."""
        roster, released = self._run.read_roster(), find_release(self._run)
        found = {
            roster[int(path.stem)]
            for path in self._folder.glob("[0-9]*.json")
            if int(path.stem) in roster and json.loads(path.read_text()).get("manifest_sha256") == released
        }
        news = sorted(found - self.collected)
        self.collected |= found
        return news


def _place(source: Path, target: Path) -> None:
    """Link a file where possible: a model need not lie on the disk twice."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _share_history(run: RunFolder) -> list[dict[str, JsonValue]]:
    """Return the rounds without what they say about single sites."""
    shared = []
    for record in read_history(run.history_file):
        validation = Validation(pooled=record.validation.pooled, sites={})
        shared.append(record.model_copy(update={"participation": [], "validation": validation}).to_json())
    return shared

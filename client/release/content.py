"""What belongs to a released model: its signed manifest, its files, and the programs that a site adds itself."""

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed.errors import FedmedError
from fedmed.protocol.release import (
    ARTEFACT_FILES,
    HISTORY_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PLAIN_NAME,
    REPORT_DATA_FILE,
    REPORT_FILE,
    SHA256,
    SIGNATURE_FILE,
)
from fedmed.storage.atomic_files import write_atomically

if TYPE_CHECKING:  # it imports torch, which a waiting process does without
    from fedmed.export.manifest import ModelManifest

PROGRAMS = {"predict.py": "predict.py", "load_model.py": "export/torch_loader.py"}
"""Programs beside the deploy form -> where they lie in the package that is installed here. None of them travels."""
ASK = "Nothing was put in place. Try again: flower-client --fetch-model; if it stays, tell the coordinating site."
_logger = logging.getLogger("fedmed.client")


class ReleaseError(FedmedError):
    """The released model cannot be used: it is damaged, incomplete, or not the one that was announced."""


@dataclass(frozen=True)
class Manifest:
    """The signed list of what belongs to a release."""

    sha256: str
    """Of the manifest's bytes; the name of the release."""
    content: "ModelManifest"
    run_id: str
    model_sha256: str
    """Hash of the model in train form, as in the rounds."""
    files: dict[str, tuple[str, int]]
    """File name -> SHA-256 and bytes."""

    @property
    def is_deployable(self) -> bool:
        """Whether it is the deploy form; else it is the train form, from which this site may make its own."""
        return self.content.get("form") == "deploy"

    @property
    def places(self) -> dict[str, dict[str, str]]:
        """Folder at the site -> file in it -> file of the release. The model is last: with it the release is here."""
        model = (MODEL_FILE, *(ARTEFACT_FILES if self.is_deployable else ()), MANIFEST_FILE, SIGNATURE_FILE)
        return {
            "federation_report": {"index.html": REPORT_FILE, "report.json": REPORT_DATA_FILE},
            "model": {name: name for name in model},
        }

    @property
    def wanted(self) -> list[str]:
        """Files that a site fetches."""
        return list_wanted(is_deployable=self.is_deployable)


def list_wanted(*, is_deployable: bool) -> list[str]:
    """Return the files that a site fetches beside manifest and signature."""
    more = ARTEFACT_FILES if is_deployable else ()
    return [MODEL_FILE, *more, REPORT_FILE, REPORT_DATA_FILE, HISTORY_FILE]


def parse_manifest(data: bytes, sha256: str) -> Manifest:
    """Read a manifest whose signature was checked.

    Raises
    ------
    ReleaseError
        If it does not have the agreed form.
    """
    try:
        content = json.loads(data)
        files = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in content["files"].items()}
        manifest = Manifest(sha256, content, str(content["run_id"]), str(content["model_sha256"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReleaseError(
            f"The manifest of the release cannot be read ({type(error).__name__}: {error}). Server and site must run "
            "the same version of fedmed."
        ) from None
    missing = [name for name in manifest.wanted if name not in files]
    hashes = [manifest.model_sha256, *(digest for digest, _ in files.values())]
    sound = all(map(SHA256.fullmatch, hashes)) and PLAIN_NAME.fullmatch(manifest.run_id)
    if missing or not sound:
        problem = f"it lacks {', '.join(missing)}" if missing else "it holds names or hashes that are none"
        raise ReleaseError(f"The manifest of the release cannot be used: {problem}. {ASK}")
    return manifest


def write_programs(folder: Path, manifest: "ModelManifest") -> None:
    """Put the programs that are installed here beside a deploy form, and tell if they are not those of the manifest."""
    hashes = manifest.get("sha256")
    told = hashes if isinstance(hashes, dict) else {}
    for name, source in PROGRAMS.items():
        content = resources.files("fedmed").joinpath(source).read_bytes()
        write_atomically(folder / name, content)
        if told.get(name) != hashlib.sha256(content).hexdigest():
            _logger.warning(
                "%s beside the model is of the version of fedmed that is installed here; the model was made with "
                "another one. Install the coordinating site's version if something does not fit.",
                name,
            )

"""The files of a released model, by the names that server and sites know them under, and how names and hashes look."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from fedmed.storage.atomic_files import encode_json

SHA256 = re.compile(r"[0-9a-f]{64}")
"""What a hash looks like, all of it."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""What the name of a file or folder that arrives looks like, all of it: it leads into no other folder."""

MANIFEST_FILE = "manifest.json"
"""Describes a model that is given away, and in a release everything that goes with it."""
SIGNATURE_FILE = "manifest.sig"
MODEL_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
PROOF_FILE = "proof.json"
CARD_FILE = "model_card.md"
REQUIREMENTS_FILE = "requirements.txt"
REPORT_DATA_FILE = "report.json"
HISTORY_FILE = "history.json"

ARTEFACT_FILES = (ONNX_FILE, PROOF_FILE)
"""With the deploy form, beside the model's weights."""
MODEL_FILES = (MODEL_FILE, *ARTEFACT_FILES)
"""What of a model is handed out, as far as it is there. Programs, pages and lists of packages never travel."""

MAX_MANIFEST_BYTES = 2**24
_MAX_MODEL_BYTES = 2**31
COMPARED_FILES = {
    MANIFEST_FILE: MAX_MANIFEST_BYTES,
    MODEL_FILE: _MAX_MODEL_BYTES,
    ONNX_FILE: _MAX_MODEL_BYTES,
}
"""Files that a site needs for the comparison before the release, and the most bytes of each."""
MOST_BYTES = COMPARED_FILES | {PROOF_FILE: 2**24, REPORT_DATA_FILE: 2**25, HISTORY_FILE: 2**26}
"""Files of a release, and the most bytes of each that a site takes."""

_ADDED_LATER = frozenset({"sha256", "proof", "release", "run_id", "released", "model_sha256", "files", "compared"})
"""Entries of a manifest that come after the comparison, or that say nothing about what the model does."""


def name_compared(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return by which hashes a released model is known to be the one that was compared.

    Parameters
    ----------
    manifest : mapping
        Of the candidate or of the release, as it was read from its file.

    Returns
    -------
    dict of str to str
        By file. That of the manifest is of everything in it that says what the model does: classes, preprocessing,
        temperature, expected images, plan and so on; the time, the name of a person and the like come later.

    Raises
    ------
    KeyError, TypeError, AttributeError, ValueError
        If it is no manifest.
    """
    hashes = {name: str(manifest["sha256"][name]) for name in MODEL_FILES if name in manifest["sha256"]}
    meaning = {key: value for key, value in manifest.items() if key not in _ADDED_LATER}
    return hashes | {MANIFEST_FILE: hashlib.sha256(encode_json(meaning).encode()).hexdigest()}

"""The files of a released model, by the names that server and sites know them under, and how names and hashes look."""

import re

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
REPORT_FILE = "report.html"
REPORT_DATA_FILE = "report.json"
HISTORY_FILE = "history.json"

ARTEFACT_FILES = (ONNX_FILE, PROOF_FILE, CARD_FILE, REQUIREMENTS_FILE)
"""With the deploy form, beside the model's weights."""
MODEL_FILES = (MODEL_FILE, *ARTEFACT_FILES)
"""What of a model is handed out, as far as it is there. Programs never travel."""

MAX_MANIFEST_BYTES = 2**24
_MAX_MODEL_BYTES = 2**31
COMPARED_FILES = {
    MANIFEST_FILE: MAX_MANIFEST_BYTES,
    MODEL_FILE: _MAX_MODEL_BYTES,
    ONNX_FILE: _MAX_MODEL_BYTES,
}
"""Files that a site needs for the comparison before the release, and the most bytes of each."""

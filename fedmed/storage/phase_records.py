"""What the phases after the rounds leave, so that a resumed run goes on behind them."""

import json
from pathlib import Path
from typing import Any

from fedmed.storage.atomic_files import hash_file
from fedmed.storage.checkpoints import MODEL_FILE

RECORD_FILE = "record.json"


def find_recalibrated(folder: Path, model_sha256: str) -> tuple[Path, str] | None:
    """Return the recalibrated form of a model and its SHA-256, None if there is none or it is damaged.

    Parameters
    ----------
    folder : Path
        The run's folder ``recalibrated``.
    model_sha256 : str
        Of the model before.
    """
    record = read_record(folder, model_sha256)
    return None if record is None else (folder / MODEL_FILE, str(record["model_sha256"]))


def read_record(folder: Path, from_sha256: str) -> dict[str, Any] | None:
    """Return the record of a phase that is done, None if it is not, was done from another model, or is damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_bytes())
        if record["from_sha256"] == from_sha256 and record["model_sha256"] == hash_file(folder / MODEL_FILE):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None

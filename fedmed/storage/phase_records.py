"""What the phases after the rounds leave, so that a resumed run goes on behind them."""

import json
from pathlib import Path
from typing import TypeVar

from fedmed.storage.atomic_files import hash_file
from fedmed.storage.checkpoints import MODEL_FILE
from fedmed.storage.records import PhaseRecord

RECORD_FILE = "record.json"
COMPARISON_FILE = "release.json"
"""In a run's ``tables/``: what each site has found before the release."""
_Record = TypeVar("_Record", bound=PhaseRecord)


def find_recalibrated(folder: Path, model_sha256: str) -> tuple[Path, str] | None:
    """Return the recalibrated form of a model and its SHA-256, None if there is none or it is damaged.

    Parameters
    ----------
    folder : Path
        The run's folder ``recalibrated``.
    model_sha256 : str
        Of the model before.
    """
    record = read_record(folder, model_sha256, PhaseRecord)
    return None if record is None else (folder / MODEL_FILE, record["model_sha256"])


def read_record(folder: Path, from_sha256: str, form: type[_Record]) -> _Record | None:
    """Return the record of a phase that is done, None if it is not, was done from another model, or is damaged.

    Parameters
    ----------
    folder : Path
        Of the phase.
    from_sha256 : str
        The model before it.
    form : type
        The form that the phase writes its record in.
    """
    try:
        record: _Record = json.loads((folder / RECORD_FILE).read_bytes())
        if record["from_sha256"] == from_sha256 and record["model_sha256"] == hash_file(folder / MODEL_FILE):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None

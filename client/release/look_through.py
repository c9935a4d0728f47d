"""Looks through the files of a release before any of them is stored. Nothing here runs, renders or unpickles them."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.release.content import ASK, Manifest, ReleaseError
from client.release.json_files import read_json
from fedmed.errors import FedmedError, tame
from fedmed.export.plain_onnx import check_plain_onnx
from fedmed.protocol.release import HISTORY_FILE, MODEL_FILE, MOST_BYTES, ONNX_FILE, PROOF_FILE, REPORT_DATA_FILE
from fedmed.report.reading import read_document
from fedmed.report.schema.document import Document
from fedmed.storage.history import RoundRecord

_HISTORY = TypeAdapter(list[RoundRecord])
_MOST_ROUNDS = 100_000


@dataclass(frozen=True)
class Contents:
    """What was read of a release."""

    report: Document
    history: list[RoundRecord]


def look_through(folder: Path, manifest: Manifest) -> Contents:
    """Check every file of a release, whose hashes were checked before.

    Parameters
    ----------
    folder : Path
        Where the files lie.
    manifest : Manifest
        Of the release.

    Raises
    ------
    ReleaseError
        With the file's name and what is wrong with it.
    """
    name = MODEL_FILE
    try:
        _check_tensors(folder / name)
        if manifest.is_deployable:
            name = ONNX_FILE
            check_plain_onnx((folder / name).read_bytes(), weight_bytes=manifest.files[MODEL_FILE][1])
            name = PROOF_FILE
            read_json((folder / name).read_bytes(), MOST_BYTES[name])
        name = HISTORY_FILE
        history = _read_history(folder / name)
        name = REPORT_DATA_FILE
        return Contents(_read_report(folder / name, manifest), history)
    except (FedmedError, ValueError, KeyError, TypeError) as error:
        reason = _explain(error)
        raise ReleaseError(f"The file {name} of the release is refused: {reason.rstrip('.')}. {ASK}") from None


def _check_tensors(file: Path) -> None:
    """Check that weights are tensors and nothing else; their content is read where they are used."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(file, "numpy") as tensors:
            tensors.keys()
    except SafetensorError:
        raise ValueError("it holds no tensors that can be read") from None


def _read_history(file: Path) -> list[RoundRecord]:
    content = read_json(file.read_bytes(), MOST_BYTES[HISTORY_FILE])
    if not isinstance(content, list) or len(content) > _MOST_ROUNDS:
        raise ValueError("it is no list of rounds")
    return _HISTORY.validate_python(content)


def _read_report(file: Path, manifest: Manifest) -> Document:
    data = file.read_bytes()
    read_json(data, MOST_BYTES[REPORT_DATA_FILE])
    document = read_document(data)
    if document["classes"] != manifest.content["classes"]:
        raise ValueError("it is of other classes than the model")
    return document


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return tame(f"'{'.'.join(map(str, first['loc']))}': {first['msg']}", 200)
    return tame(str(error) or type(error).__name__, 500)

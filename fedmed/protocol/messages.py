"""What crosses the network: names and types of records, model <-> bytes.

A message holds at most these things:

* ``request`` or ``report``: settings and numbers as one JSON text in a ``ConfigRecord``;
* ``model``: the tensors of a model as one byte array in the safetensors format; ``other_model``: those of a second one,
  with which it is compared or from which it is distilled;
* ``tables``: evaluation tables, likewise; or ``sums``: those of BatchNorm's inputs, likewise;
* ``artefact``: files of a deployable model, likewise, each as an array of bytes;
* ``heads``: how far the audit logs of both sides go, signed, as JSON like the report.

A model is one array and not one per tensor, because the engine stores, hashes and acknowledges every array on its
own, and because the bytes can then be written to disk, hashed and mapped as they are. Nothing that arrives is ever
unpickled.
"""

import json
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import safetensors
import safetensors.numpy
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from pydantic import JsonValue

from fedmed.errors import FormatError, WireError, tame
from fedmed.formats import MESSAGE
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.site_tables import SiteTables
from fedmed.protocol.heads import SignedHeads
from fedmed.protocol.kinds import ARTEFACT, HEADS, MODEL, OTHER_MODEL, REPORT, REQUEST, SUMS, TABLES
from fedmed.protocol.reading import MessageForm
from fedmed.protocol.reports import MissingModel
from fedmed.protocol.tensors import pack_tensors, unpack_tensors

__all__ = [
    "ARTEFACT",
    "MODEL",
    "OTHER_MODEL",
    "REPORT",
    "REQUEST",
    "STYPE",
    "SUMS",
    "TABLES",
    "add_heads",
    "has_heads",
    "lacks_model",
    "make_content",
    "pack_files",
    "read_artefact",
    "read_model",
    "read_other_model",
    "read_report",
    "read_signed_heads",
    "read_sums",
    "read_tables",
    "read_values",
    "unpack_files",
    "unpack_tables",
]

STYPE = "safetensors"
_LARGEST_CONTENTS = 8 * 2**20
"""Bytes of the list of what is in tables."""
T = TypeVar("T", bound=MessageForm)


def make_content(
    kind: str,
    values: Mapping[str, JsonValue],
    *,
    model: bytes | None = None,
    tables: SiteTables | None = None,
    sums: Mapping[str, torch.Tensor] | None = None,
    artefact: bytes | None = None,
    other_model: bytes | None = None,
) -> RecordDict:
    """Build the content of a message.

    Parameters
    ----------
    kind : {"request", "report"}
        Which way it goes.
    values : mapping
        JSON values, see :meth:`fedmed.protocol.reading.MessageForm.to_values`.
    model : bytes, optional
        From :func:`pack_tensors`.
    tables : SiteTables, optional
        What an evaluation gives.
    sums : mapping of str to Tensor, optional
        What a recalibration gives, by layer.
    artefact : bytes, optional
        From :func:`pack_files`.
    other_model : bytes, optional
        As ``model``.
    """
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    # A site of version 1 takes nothing else, and shall read enough to be told that its version differs.
    number: dict[str, int] = {} if MESSAGE.number == 1 else {"format": MESSAGE.number}
    content = RecordDict({kind: ConfigRecord({"json": text, **number})})
    if model is not None:
        content[MODEL] = _to_record(model)
    if tables is not None:
        content[TABLES] = _to_record(pack_site_tables(tables))
    if sums is not None:
        content[SUMS] = _to_record(pack_tensors(sums))
    if artefact is not None:
        content[ARTEFACT] = _to_record(artefact)
    if other_model is not None:
        content[OTHER_MODEL] = _to_record(other_model)
    return content


def add_heads(content: RecordDict, heads: SignedHeads) -> RecordDict:
    """Return a message's content with the heads of the audit logs; what it holds otherwise is shared, not copied."""
    text = json.dumps(heads.to_values(), sort_keys=True, allow_nan=False)
    return RecordDict({**content, HEADS: ConfigRecord({"json": text})})


def has_heads(message: Message) -> bool:
    """Return whether a message has heads of audit logs."""
    return message.has_content() and HEADS in message.content


def read_signed_heads(message: Message) -> SignedHeads:
    """Return the heads of audit logs in a message.

    Raises
    ------
    WireError
        If they are missing or another than the form.
    """
    return SignedHeads.read(read_values(message, HEADS))


def read_report(message: Message, form: type[T]) -> T:
    """Return a site's report.

    Raises
    ------
    WireError
        If it is missing or another than the form; with what was found and what is allowed.
    """
    return form.read(read_values(message, REPORT))


def lacks_model(message: Message) -> bool:
    """Return whether a site answers that it lacks the model that it is asked about."""
    try:
        return MissingModel.fits(read_values(message, REPORT))
    except WireError:
        return False


def read_values(message: Message, kind: str) -> dict[str, JsonValue]:
    """Return the JSON values of a request or report.

    Raises
    ------
    WireError
        If they are missing, no JSON object, or of a format of another version.
    """
    record = message.content.get(kind)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):  # the latter for brackets nested thousands deep
        values = None
    if not isinstance(values, dict):
        raise WireError(f"The message has no readable part '{kind}'.")
    assert isinstance(record, ConfigRecord), "it had the values"
    try:
        MESSAGE.check(record.get("format"), "the coordinating site" if kind == REQUEST else "a site")
    except FormatError as error:
        raise WireError(str(error)) from None
    return values


def read_model(message: Message) -> bytes:
    """Return the packed model of a message.

    Raises
    ------
    WireError
        If the message has none.
    """
    return _from_record(message, MODEL)


def read_other_model(message: Message) -> bytes:
    """Return the packed second model of a message.

    Raises
    ------
    WireError
        If the message has none.
    """
    return _from_record(message, OTHER_MODEL)


def read_sums(message: Message) -> dict[str, torch.Tensor]:
    """Return the sums of BatchNorm's inputs in a message, by layer, in float64.

    Raises
    ------
    WireError
        If they are missing or no tensors of that type.
    """
    sums = unpack_tensors(_from_record(message, SUMS))
    if any(values.dtype != torch.float64 for values in sums.values()):
        raise WireError("The BatchNorm sums that arrived are not float64.")
    return sums


def read_tables(message: Message, most_bytes: int | None = None) -> SiteTables:
    """Return the evaluation tables of a message.

    Parameters
    ----------
    message : Message
        Of a site.
    most_bytes : int, optional
        Looked at before they are unpacked.

    Raises
    ------
    WireError
        If they are missing, too many or contradict themselves.
    """
    data = _from_record(message, TABLES)
    if most_bytes is not None and len(data) > most_bytes:
        raise WireError(f"The tables that arrived have {len(data)} bytes; at most {most_bytes} are read.")
    if int.from_bytes(data[:8], "little") > _LARGEST_CONTENTS:
        raise WireError("The tables that arrived have a list of contents that is too long to be read.")
    return unpack_tables(data)


def read_artefact(message: Message) -> bytes:
    """Return the packed files of a message.

    Raises
    ------
    WireError
        If the message has none.
    """
    return _from_record(message, ARTEFACT)


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """Return files, none of them empty, as bytes in the safetensors format; equal files give equal bytes."""
    arrays = {name: np.frombuffer(files[name], dtype=np.uint8) for name in sorted(files)}
    packed: bytes = safetensors.numpy.save(arrays)
    return packed


def unpack_files(data: bytes, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Return the files that :func:`pack_files` packed.

    Parameters
    ----------
    data : bytes
        As they arrived.
    limits : mapping of str to int
        The names that must be there, no more and no fewer, and the most bytes of each. Only these names are used, so
        that no name that arrived ever becomes a path.

    Raises
    ------
    WireError
        If the bytes are unreadable or hold something else.
    """
    try:
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"The files that arrived cannot be read: {tame(str(error))}.") from None
    if set(arrays) != set(limits):
        found = tame(", ".join(sorted(arrays)) or "none", 200)
        raise WireError(f"The files that arrived are {found}. Needed: {', '.join(sorted(limits))}.")
    for name, most in limits.items():
        if arrays[name].dtype != np.uint8 or arrays[name].ndim != 1 or not 0 < arrays[name].size <= most:
            raise WireError(f"The file '{name}' that arrived is no sequence of bytes, empty, or larger than {most}.")
    return {name: arrays[name].tobytes() for name in limits}


def unpack_tables(data: bytes) -> SiteTables:
    """Return the tables in the bytes of a ``tables`` record.

    Raises
    ------
    WireError
        If they are unreadable or contradict themselves.
    """
    try:
        return unpack_site_tables(data)
    except ValueError as error:
        raise WireError(f"The tables that arrived cannot be read: {tame(str(error))}.") from None


def _to_record(data: bytes) -> ArrayRecord:
    return ArrayRecord({"bytes": Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)}, keep_input=True)


def _from_record(message: Message, key: str) -> bytes:
    record = message.content.get(key)
    array = record.get("bytes") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != STYPE:
        raise WireError(f"The message has no readable part '{key}'.")
    return array.data

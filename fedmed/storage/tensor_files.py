"""Tensor files in the safetensors format, written as a stream and read in windows.

The aggregation reads one window of one tensor at a time from as many files as there are sites. The reader therefore
keeps neither the data nor an open file nor mapped pages: a read opens, seeks, reads and closes. The reader of
safetensors maps the file: 8 files of 100 MB, read in windows of 1 MiB, took 780 MiB (here 5). Opened anew for every
window it takes 7, but 0.30 s of CPU (here 0.22); and it cuts along the first axis only, where a window is of elements.

Format (https://github.com/huggingface/safetensors): 8 bytes little-endian length of the header, the header in JSON,
the tensors' bytes without gaps. Nothing is ever unpickled.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from fedmed.errors import CheckpointError
from fedmed.storage.atomic_files import atomic_file, explain_write_failure

Array = npt.NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Types that a tensor file may hold."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and type of one tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the data."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Entry:
    spec: TensorSpec
    begin: int  # from the start of the data section


class TensorFile:
    """A tensor file that is read tensor by tensor or window by window.

    Parameters
    ----------
    path : Path
        A file in the safetensors format.
    like : TensorFile, optional
        A file that probably has the same tensors. If so, its table of contents is shared, which keeps thousands of
        opened files small.

    Attributes
    ----------
    path : Path
        The file.
    metadata : dict of str to str
        Free text that was stored with the tensors.

    Raises
    ------
    CheckpointError
        If the file is missing, cut off or not in the format.
    """

    def __init__(self, path: Path, like: "TensorFile | None" = None) -> None:
        self.path = Path(path)
        self._entries: dict[str, _Entry]
        try:
            with self.path.open("rb") as file:
                entries, self.metadata, self._data_start = _read_header(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise CheckpointError(f"The tensor file {self.path} cannot be read: {error.strerror or error}.") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"The tensor file {self.path} is damaged or not a safetensors file: {error}."
            ) from error
        self._entries = like._entries if like is not None and like._entries == entries else entries

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order in which they were given to :func:`write_tensors`."""
        return tuple(self._entries)

    @property
    def layout(self) -> dict[str, TensorSpec]:
        """Shape and type of every tensor."""
        return {name: entry.spec for name, entry in self._entries.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._find(name).spec.shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of a tensor."""
        return self._find(name).spec.dtype

    def read(self, name: str, start: int = 0, stop: int | None = None, out: Array | None = None) -> Array:
        """Read elements ``start`` to ``stop`` of a tensor, counted over its flattened form.

        Parameters
        ----------
        name : str
            The tensor.
        start, stop : int
            Window, as in a slice; by default everything.
        out : (>= stop - start,) array, optional
            Buffer of the tensor's type that is filled and returned in part; saves an allocation per window.

        Returns
        -------
        (stop - start,) array
            A copy; nothing of the file stays mapped.

        Raises
        ------
        CheckpointError
            If the tensor is not there or the file has changed since it was opened.
        """
        entry = self._find(name)
        spec = entry.spec
        stop = spec.size if stop is None else stop
        assert 0 <= start <= stop <= spec.size, f"window {start}:{stop} of {spec.size} elements"
        values = np.empty(stop - start, spec.dtype) if out is None else out[: stop - start]
        assert values.dtype == spec.dtype, f"buffer of {values.dtype} for {spec.dtype}"
        raw = values.view(np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._data_start + entry.begin + start * spec.dtype.itemsize)
                _read_exactly(file, raw)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"Tensor {name!r} of {self.path} cannot be read: {error}.") from error
        if spec.dtype == np.bool_ and raw.size and int(raw.max()) > 1:
            raise CheckpointError(f"Tensor {name!r} of {self.path} is damaged: a truth value is neither 0 nor 1.")
        return values

    def load(self, name: str) -> Array:
        """Read one tensor in its own shape."""
        return self.read(name).reshape(self.shape(name))

    def load_all(self) -> dict[str, Array]:
        """Read all tensors, in the order of :attr:`names`."""
        return {name: self.load(name) for name in self._entries}

    def _find(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"The tensor file {self.path} has no tensor {name!r}.") from None


def _read_exactly(file: Any, raw: npt.NDArray[np.uint8]) -> None:
    """Fill ``raw`` from an unbuffered file, which may return less than asked for."""
    done = 0
    while done < raw.size:
        count = file.readinto(raw.data[done:])
        if not count:
            raise EOFError("the file ends too early")
        done += count


def _read_header(file: BinaryIO, file_bytes: int) -> tuple[dict[str, _Entry], dict[str, str], int]:
    """Parse and check the header; every fault is a ValueError."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(_MAX_HEADER_BYTES, file_bytes - 8):
        raise ValueError(f"its {file_bytes} bytes do not hold the header that it announces")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata are not texts")
    entries = {name: _parse_entry(name, item) for name, item in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].spec.num_bytes)):
        if entry.begin != end:
            raise ValueError(f"tensor {name!r} starts at byte {entry.begin} and not at {end}")
        end += entry.spec.num_bytes
    if 8 + length + end != file_bytes:
        raise ValueError(f"it has {file_bytes} bytes and should have {8 + length + end}")
    return entries, metadata, 8 + length


def _refuse_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice in the header")
    return table


def _parse_entry(name: str, item: Any) -> _Entry:
    if not isinstance(item, dict) or not {"dtype", "shape", "data_offsets"} <= item.keys():
        raise ValueError(f"the entry of tensor {name!r} is incomplete")
    code, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"tensor {name!r} has type {code!r}; allowed are {', '.join(DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has a shape or a place that is not made of whole numbers >= 0")
    spec = TensorSpec(tuple(shape), DTYPES[code])
    if offsets[1] - offsets[0] != spec.num_bytes:
        raise ValueError(f"tensor {name!r} of shape {spec.shape} needs {spec.num_bytes} bytes")
    return _Entry(spec, offsets[0])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Array] | Iterable[tuple[str, Array]],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: Mapping[str, TensorSpec] | None = None,
) -> None:
    """Write a tensor file: header first, then one tensor at a time, flushed to disk and renamed into place.

    Parameters
    ----------
    path : Path
        The file; it appears complete or not at all, and an older file of this name stays until then.
    tensors : mapping or iterable of (name, array)
        The tensors. An iterable is consumed one tensor at a time, so that the whole model is never in memory.
    metadata : mapping of str to str, optional
        Text to keep with them.
    layout : mapping of str to TensorSpec, optional
        Shapes and types, needed with an iterable, because the header comes first; ``TensorFile.layout`` has this form.

    Raises
    ------
    ValueError
        If a tensor's type cannot be stored, or the tensors are not those of ``layout``.
    CheckpointError
        If the disk is full or cannot be written.
    """
    if isinstance(tensors, Mapping):
        layout = {name: TensorSpec(array.shape, array.dtype.newbyteorder("<")) for name, array in tensors.items()}
    if layout is None:
        raise ValueError("write_tensors needs 'layout' when the tensors come as a stream")
    header, begins = make_header(layout, metadata)
    missing = dict(layout)
    try:
        with atomic_file(Path(path)) as file:
            file.write(header)
            for name, array in tensors.items() if isinstance(tensors, Mapping) else tensors:
                spec = missing.pop(name, None)
                if spec is None or (array.shape, array.dtype.newbyteorder("<")) != (spec.shape, spec.dtype):
                    raise ValueError(f"tensor {name!r} {array.dtype}{array.shape} is not in the layout: {spec}")
                file.seek(len(header) + begins[name])
                file.write(np.ascontiguousarray(array, spec.dtype).reshape(-1).view(np.uint8).data)
            if missing:
                raise ValueError(f"tensors of the layout were not given: {', '.join(sorted(missing))}")
    except OSError as error:
        raise explain_write_failure(Path(path), error) from error


def make_header(layout: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """Return the bytes of a file before its tensors, and where each tensor begins after them.

    Parameters
    ----------
    layout : mapping of str to TensorSpec
        Shapes and types.
    metadata : mapping of str to str, optional
        Text to keep with them.

    Raises
    ------
    ValueError
        If a type cannot be stored.
    """
    for name, spec in layout.items():
        if spec.dtype not in _CODES or name == "__metadata__":
            raise ValueError(f"tensor {name!r} of type {spec.dtype} cannot be stored; allowed are {', '.join(DTYPES)}")
    begins, end = {}, 0
    # Wide types first keep every tensor aligned, which readers that map the file rely on.
    for name in sorted(layout, key=lambda name: (-layout[name].dtype.itemsize, name)):
        begins[name] = end
        end += layout[name].num_bytes
    header: dict[str, JsonValue] = {"__metadata__": {**metadata}} if metadata else {}
    for name, spec in layout.items():
        offsets: list[JsonValue] = [begins[name], begins[name] + spec.num_bytes]
        header[name] = {"dtype": _CODES[spec.dtype], "shape": [*spec.shape], "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, begins

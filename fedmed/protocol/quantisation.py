"""Updates of 16 or 8 bits with error feedback.

A site sends the change of its weights since the global model, rounded, and keeps what the rounding left out. In the
next round that residual is added to the change before rounding: nothing is lost, only late (Seide et al. 2014;
Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847). Without it a change that stays below half a step is lost
in every round.

Both kinds work in blocks of 1024 elements with one float32 scale each:

* ``int8``: scale = largest magnitude / 127, values rounded half to even, so at most half a scale off;
* ``fp16``: scale = the power of two that brings the largest magnitude between 2**14 and 2**15, so that nothing
  overflows and everything down to 2**-28 of the largest keeps all 11 bits.

Tensors of one dimension, of fewer than 1024 elements or of another type than float32 travel as they are: there are few
such numbers, and BatchNorm's statistics and counts are not to be rounded.

The packed form is a tensor file. A compressed tensor keeps its name and shape; its scales are ``scale/NAME``. Site and
server restore with the same float32 operations, which numpy never fuses, so both see the same bits.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedmed.errors import CheckpointError, FedmedError
from fedmed.storage.atomic_files import explain_write_failure
from fedmed.storage.tensor_files import DTYPES, Array, TensorFile, TensorSpec, make_header

Kind = Literal["fp16", "int8"]

BLOCK_ELEMENTS = 1024
"""Elements that share a scale."""
WINDOW_ELEMENTS = 1 << 18
"""Elements that are handled at once; a few such arrays fit a core's cache."""

_TYPES: Mapping[Kind, np.dtype[np.generic]] = {"fp16": DTYPES["F16"], "int8": DTYPES["I8"]}
_MIN_ELEMENTS = 1024
_SCALE = "scale/"
_SMALLEST_SCALE = np.float32(2.0**-100)
"""Smaller scales become 0 and their block waits in the residual: products with the others are never subnormal numbers,
which some processors flush to zero and others do not."""
_MAX_LETTERS = 200
_SAME_VERSION = "Install the same version of fedmed at both ends."


class CompressionError(FedmedError):
    """A compressed update cannot be made or does not have the form that was agreed."""

    shareable = True


def compress_update(
    new: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    kind: Kind,
) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Pack the change from the global model and say what the packing has left out.

    Parameters
    ----------
    new : mapping of str to Tensor
        The weights after local training.
    reference : mapping of str to Tensor
        The global model from which the training started, exactly as received.
    residual : mapping of str to Tensor
        What this function returned in the site's last round; empty in the first.
    kind : {"fp16", "int8"}
        How the change is rounded.

    Returns
    -------
    packed : bytes
        A tensor file for :func:`decompress_update`; equal inputs give equal bytes.
    next_residual : dict of str to Tensor
        What to keep for the next round: float32, for the compressed tensors only.

    Raises
    ------
    ValueError
        If the three mappings do not belong to one model, or the kind is unknown.
    CompressionError
        If the weights are not finite.

    Notes
    -----
    With ``view`` the float32 weights that the server will restore, the next residual is ``(new - view) + residual``:
    it also holds the rounding of the sum ``reference + change``. Per round and element, sent change plus next residual
    equal true change plus residual up to ``2**-24 (|new - view| + |next residual|)``, two roundings of float32.
    """
    if kind not in _TYPES:
        raise ValueError(f"kind is {kind!r}; allowed are {', '.join(map(repr, _TYPES))}")
    arrays, origin, old = _to_arrays(new), _to_arrays(reference), _to_arrays(residual)
    layout = _describe(arrays)
    compressed = {name: spec for name, spec in layout.items() if _is_compressed(spec)}
    if _describe(origin) != layout or not _describe(old).items() <= compressed.items():
        raise ValueError("new weights, reference and residual do not have the same names, shapes and types")
    kept: dict[str, torch.Tensor] = {}
    for name in compressed:
        arrays[name], arrays[_SCALE + name], left = _compress(arrays[name], origin[name], old.get(name), kind)
        if not np.isfinite(left).all():
            raise CompressionError(
                f"Tensor {name!r} holds NaN or an infinite value: training diverged at this site. Look for broken "
                "images, lower the learning rate or clip gradients with 'training.clip_norm'."
            )
        kept[name] = torch.from_numpy(left)
    return _join(arrays, _make_metadata(kind)), kept


def estimate_bytes(layout: Mapping[str, TensorSpec], kind: Kind) -> int:
    """Return the exact length of a packed update.

    Parameters
    ----------
    layout : mapping of str to TensorSpec
        The tensors of the model that travel.
    kind : {"fp16", "int8"}
        How the change is rounded.
    """
    packed = _pack_layout(layout, kind)
    header, _ = make_header(packed, _make_metadata(kind))
    return len(header) + sum(spec.num_bytes for spec in packed.values())


def decompress_update(packed_file: Path, reference: TensorFile, target: Path, window: int = WINDOW_ELEMENTS) -> None:
    """Restore a site's weights into an ordinary tensor file, bit for bit as the site has computed them.

    Parameters
    ----------
    packed_file : Path
        What :func:`compress_update` returned.
    reference : TensorFile
        The global model that was sent to the site.
    target : Path
        The file to write, with the tensors of ``reference``. It is not flushed to disk, because a round that is cut
        short is trained again, and it is removed if the update turns out to be bad.
    window : int
        Elements that are in memory at once, as a few arrays of float32.

    Raises
    ------
    CompressionError
        If the packed file is damaged, belongs to another model, or holds values that are not finite.
    CheckpointError
        If the reference cannot be read or the target cannot be written: no fault of the site.
    """
    assert window > 0, "a window has at least one element"
    packed = _open_packed(packed_file, reference.layout)
    header, begins = make_header(reference.layout, {"format": "pt"})
    try:
        with target.open("wb") as file:
            file.write(header)
            for name, spec in reference.layout.items():
                file.seek(len(header) + begins[name])
                for start, stop in _windows(spec.size, window):
                    file.write(_restore_window(packed, reference, name, start, stop).view(np.uint8).data)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explain_write_failure(target, error) from error
        raise


def _is_compressed(spec: TensorSpec) -> bool:
    return spec.dtype == DTYPES["F32"] and len(spec.shape) >= 2 and spec.size >= _MIN_ELEMENTS


def _pack_layout(layout: Mapping[str, TensorSpec], kind: Kind) -> dict[str, TensorSpec]:
    """Return the tensors of the packed form."""
    packed = dict(layout)
    for name, spec in layout.items():
        if _is_compressed(spec):
            assert _SCALE + name not in layout, f"a model with a tensor {_SCALE + name!r} cannot be packed"
            packed[name] = TensorSpec(spec.shape, _TYPES[kind])
            packed[_SCALE + name] = TensorSpec((_count_blocks(spec.size),), DTYPES["F32"])
    return packed


def _make_metadata(kind: Kind) -> dict[str, str]:
    return {"block": str(BLOCK_ELEMENTS), "compression": kind}


def _count_blocks(size: int) -> int:
    return -(-size // BLOCK_ELEMENTS)


def _windows(size: int, window: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor into windows of whole blocks."""
    step = max(window // BLOCK_ELEMENTS, 1) * BLOCK_ELEMENTS
    return ((start, min(start + step, size)) for start in range(0, size, step))


def _to_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensors[name].detach().cpu().contiguous().numpy() for name in sorted(tensors)}


def _describe(arrays: Mapping[str, Array]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}


def _compress(new: Array, reference: Array, residual: Array | None, kind: Kind) -> tuple[Array, Array, Array]:
    """Return rounded values, their scales and the next residual of one tensor."""
    shape, size = new.shape, new.size
    values, scales, left = np.empty(size, _TYPES[kind]), np.empty(_count_blocks(size), np.float32), np.empty_like(new)
    new, reference, flat_left = new.reshape(-1), reference.reshape(-1), left.reshape(-1)
    old = None if residual is None else residual.reshape(-1)
    for start, stop in _windows(size, WINDOW_ELEMENTS):
        part, blocks = slice(start, stop), slice(start // BLOCK_ELEMENTS, _count_blocks(stop))
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
            change = new[part] - reference[part]
            if old is not None:
                change += old[part]
            values[part], scales[blocks] = _quantise(change, kind)
            view = _restore(values[part], scales[blocks], reference[part])
            np.subtract(new[part], view, out=flat_left[part])
            if old is not None:
                flat_left[part] += old[part]
    return values.reshape(shape), scales, left


def _quantise(change: Array, kind: Kind) -> tuple[Array, Array]:
    """Round one window; a block that is not finite gets values or a scale that are not finite either."""
    largest = np.maximum.reduceat(np.abs(change), np.arange(0, change.size, BLOCK_ELEMENTS))
    scales = largest / np.float32(127) if kind == "int8" else np.ldexp(np.float32(1), np.frexp(largest)[1] - 15)
    scales[scales < _SMALLEST_SCALE] = 0
    scaled = change / _spread(np.where(scales > 0, scales, np.float32(1)), change.size)
    return (np.rint(scaled) if kind == "int8" else scaled).astype(_TYPES[kind]), scales


def _restore(values: Array, scales: Array, reference: Array) -> Array:
    """Return reference + change of one window in float32; site and server both call this and nothing else."""
    view = values.astype(np.float32)
    view *= _spread(scales, values.size)
    view += reference
    return view


def _spread(scales: Array, size: int) -> Array:
    return np.repeat(scales, BLOCK_ELEMENTS)[:size]


def _join(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    header, begins = make_header(_describe(arrays), metadata)
    in_order = sorted((name for name in arrays if arrays[name].size), key=begins.__getitem__)
    return b"".join([header, *(arrays[name].reshape(-1).view(np.uint8).data for name in in_order)])


def _open_packed(path: Path, layout: Mapping[str, TensorSpec]) -> TensorFile:
    """Open a packed update and compare all of its table of contents with what must come."""
    try:
        packed = TensorFile(path)
    except CheckpointError as error:
        # The cause names no path, as the error itself does, and may be told to the site.
        cause = f" ({_shorten(str(error.__cause__))})" if isinstance(error.__cause__, ValueError) else ""
        raise CompressionError(
            f"The compressed update is damaged or cut off and should be sent again{cause}."
        ) from error
    named, block = packed.metadata.get("compression"), packed.metadata.get("block")
    kind = next((kind for kind in _TYPES if kind == named), None)
    if kind is None or block != str(BLOCK_ELEMENTS):
        raise CompressionError(
            f"The update says that it is of kind {_shorten(repr(named))} in blocks of {_shorten(repr(block))}; allowed "
            f"are {' and '.join(map(repr, _TYPES))} in blocks of '{BLOCK_ELEMENTS}'. {_SAME_VERSION}"
        )
    difference = _find_difference(packed.layout, _pack_layout(layout, kind))
    if difference:
        raise CompressionError(f"{difference} The site trains another network than the federation. {_SAME_VERSION}")
    return packed


def _find_difference(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> str | None:
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if not names:
        return None
    is_found, should_be = (
        _shorten(f"{table[names[0]].dtype} {table[names[0]].shape}") if names[0] in table else "absent"
        for table in (found, expected)
    )
    return (
        f"Tensor {_shorten(repr(names[0]))} of the compressed update is {is_found} and should be {should_be}; "
        f"{len(names)} of {len(expected)} tensors differ."
    )


def _shorten(text: str) -> str:
    """Cut what a site has sent: it may be of any length, and it goes into logs."""
    return text if len(text) <= _MAX_LETTERS else text[:_MAX_LETTERS] + "…"


def _restore_window(packed: TensorFile, reference: TensorFile, name: str, start: int, stop: int) -> Array:
    values = _read_packed(packed, name, start, stop)
    if values.dtype == reference.dtype(name):
        return values
    scales = _read_packed(packed, _SCALE + name, start // BLOCK_ELEMENTS, _count_blocks(stop))
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise CompressionError(f"A scale of tensor {name!r} of the compressed update is negative or not finite.")
    with np.errstate(over="ignore", invalid="ignore"):
        view = _restore(values, scales, reference.read(name, start, stop))
    if not np.isfinite(view).all():
        raise CompressionError(f"Tensor {name!r} of the compressed update is not finite once it is unpacked.")
    return view


def _read_packed(packed: TensorFile, name: str, start: int, stop: int) -> Array:
    try:
        return packed.read(name, start, stop)
    except CheckpointError as error:
        raise CompressionError(
            f"Tensor {name!r} of the compressed update cannot be read and should be sent again."
        ) from error

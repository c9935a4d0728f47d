"""Images and labels as arrays of one ``.npz`` file."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmed.config import NpzData
from fedmed.data.sources.raw_table import ImageRow, RawTable, check_class_list, hash_text
from fedmed.errors import DataError, suggest_nearest


def read_npz(config: NpzData) -> RawTable:
    """Return the images and labels of an ``.npz`` file."""
    where = f"the file '{config.file}'"
    images, arrays = open_npz_images(config), _open_npz(config.file)
    labels = _take_array(arrays, config.labels_key, "labels_key", where)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise DataError(
            f"In {where} the labels '{config.labels_key}' are {labels.dtype} of shape {labels.shape}. "
            f"Allowed: integers, one for each of the {len(images)} images."
        )
    if config.class_names_key is None:
        names = {int(value): str(value) for value in np.unique(labels)}
    else:
        found = _take_array(arrays, config.class_names_key, "class_names_key", where)
        names = dict(enumerate(v.decode() if isinstance(v, bytes) else str(v) for v in found.ravel().tolist()))
    width = len(str(len(labels)))
    rows = (ImageRow(i, f"{i:0{width}d}", names.get(int(k), f"number {k}")) for i, k in enumerate(labels))
    return RawTable(
        where=where,
        rows=tuple(rows),
        classes=check_class_list(list(names.values())),
        attribute_names=(),
        has_sites=False,
        root=None,
        fingerprint=hash_text([str(tuple(images.shape)), labels.astype(np.int64).tobytes().hex()]),
    )


def open_npz_images(config: NpzData) -> torch.Tensor:
    """Return all images of an ``.npz`` file, uint8 (N, 3, H, W); the last file read stays in memory.

    Raises
    ------
    DataError
        If the file or the key is missing, or the array has another type or shape.
    """
    path = Path(config.file)
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _load_npz_images(config.file, config.images_key, stamp)


@functools.lru_cache(maxsize=1)
def _load_npz_images(file: str, key: str, stamp: int) -> torch.Tensor:
    """Many sites share one file, so it is unpacked once in a process; ``stamp`` notices that it was replaced."""
    where = f"the file '{file}'"
    images = _take_array(_open_npz(file), key, "images_key", where)
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in {1, 3})
    if images.dtype != np.uint8 or not fits or images.size == 0:
        raise DataError(
            f"In {where} the images '{key}' are {images.dtype} of shape {images.shape}. "
            "Allowed: uint8, N x H x W, N x H x W x 1 or N x H x W x 3, at least one image."
        )
    planes = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    return planes.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)  # (N, 3, H, W); grey is one plane seen three times


def _open_npz(file: str) -> Mapping[str, Any]:
    if not Path(file).is_file():
        raise DataError(f"The file '{file}' (data.file) does not exist. Check the path.")
    try:
        arrays = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"The file '{file}' (data.file) cannot be read: {error}. Allowed: a NumPy .npz file.") from None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise DataError(f"The file '{file}' (data.file) is one array. Allowed: an .npz with images and labels.")
    return arrays


def _take_array(arrays: Mapping[str, Any], key: str, setting: str, where: str) -> np.ndarray[Any, np.dtype[Any]]:
    if key not in arrays:
        names = sorted(arrays)
        raise DataError(
            f"In {where} there is no array '{key}' (data.{setting}).{suggest_nearest(key, names)} "
            f"Arrays found: {', '.join(names)}."
        )
    try:
        return np.asarray(arrays[key])
    except Exception as error:  # a damaged archive may raise anything
        raise DataError(f"In {where} the array '{key}' cannot be read: {error}.") from None

"""Where images and labels come from: a CSV, class folders, or an ``.npz`` file."""

import csv
import functools
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmed.config import ClassFolderData, ImageTableData, NpzData
from fedmed.data.sources.bands import check_bands, name_band
from fedmed.errors import ConfigError, DataError, suggest_nearest
from fedmed.metrics.site_tables import UNKNOWN

_NOT_IMAGES = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True)
class Row:
    """One image as the source names it, before any check."""

    place: int
    """Line of the CSV, or number of the file or array entry."""
    item: str
    """Path relative to the root, or index of an array."""
    label: str
    site: str = ""
    group: str = ""
    """Id of the patient or lesion; empty where there is none."""
    attributes: tuple[str, ...] = ()
    fault: str | None = None
    """Why the row could not be taken apart."""


@dataclass(frozen=True)
class RawTable:
    """All rows of a source."""

    where: str
    """For messages: ``the table '/data/labels.csv'``."""
    rows: tuple[Row, ...]
    classes: tuple[str, ...] | None
    """Classes in order, where the settings or the file list them."""
    attribute_names: tuple[str, ...]
    has_sites: bool
    root: Path | None
    """Folder of the image files; None where the images are in an array."""
    fingerprint: str
    """Changes when the source's table does."""


def read_table(config: ImageTableData | ClassFolderData | NpzData) -> RawTable:
    """Read names and labels of all images.

    Parameters
    ----------
    config : ImageTableData, ClassFolderData or NpzData
        The source.

    Returns
    -------
    RawTable
        In the source's order, unchecked.

    Raises
    ------
    DataError
        If a folder, file, column or key is missing or holds something else than it should.
    ConfigError
        If ``classes`` or the columns are no usable list.
    """
    if isinstance(config, ImageTableData):
        return _read_csv(config)
    return _read_folders(config) if isinstance(config, ClassFolderData) else _read_npz(config)


def _read_csv(config: ImageTableData) -> RawTable:
    root = _find_root(config.root)
    path = root / config.table
    if not path.is_file():
        tables = [found.name for found in root.glob("*.csv")]
        raise DataError(
            f"The table '{path}' (data.table in data.root) does not exist.{suggest_nearest(config.table, tables)} "
            f"CSV files in that folder: {', '.join(sorted(tables)) or 'none'}."
        )
    content = path.read_bytes()
    where = f"the table '{path}'"
    header, lines = _parse_csv(content, where)
    columns = _find_columns(config, header, where)
    check_bands(config.bands, config.attribute_columns)
    rows = tuple(_make_row(place, cells, len(header), columns, config) for place, cells in lines)
    if not rows:
        raise DataError(f"{where[0].upper()}{where[1:]} holds a header and no row. Add one row per image.")
    return RawTable(
        where=where,
        rows=rows,
        classes=_check_class_list(config.classes),
        attribute_names=tuple(config.attribute_columns),
        has_sites=config.site_column is not None,
        root=root,
        fingerprint=hashlib.sha256(content).hexdigest(),
    )


def _parse_csv(content: bytes, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {where}: {error}. Save it as a CSV with commas, in UTF-8.") from None
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"In {where} the column '{repeated[0]}' occurs more than once. Rename or delete one of them.")
    return header, lines


def _find_columns(config: ImageTableData, header: list[str], where: str) -> dict[str, int]:
    wanted = {"file_column": config.file_column, "label_column": config.label_column}
    optional = {"site_column": config.site_column, "group_column": config.group_column}
    wanted |= {setting: name for setting, name in optional.items() if name is not None}
    if len(set(config.attribute_columns)) != len(config.attribute_columns):
        raise ConfigError(f"data.attribute_columns names a column twice: {', '.join(config.attribute_columns)}.")
    pairs = [*wanted.items(), *(("attribute_columns", name) for name in config.attribute_columns)]
    for setting, name in pairs:
        if name not in header:
            separator = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
            advice = f" The cells seem to be separated by {separator!r}: save it with commas." if separator else ""
            raise DataError(
                f"In {where} there is no column '{name}' (data.{setting}).{suggest_nearest(name, header)}{advice} "
                f"Columns found: {', '.join(header) or 'none'}."
            )
    return {name: header.index(name) for _, name in pairs}


def _make_row(place: int, cells: list[str], width: int, columns: Mapping[str, int], config: ImageTableData) -> Row:
    if len(cells) != width:
        return Row(place, ",".join(cells)[:80], "", fault=f"the row has {len(cells)} cells, the header has {width}")
    cell = {name: cells[index] for name, index in columns.items()}
    return Row(
        place=place,
        item=os.path.normpath(cell[config.file_column]) if cell[config.file_column] else "",
        label=cell[config.label_column],
        site=cell[config.site_column] if config.site_column else "",
        group=cell[config.group_column] if config.group_column else "",
        attributes=tuple(_read_attribute(cell[name], config.bands.get(name)) for name in config.attribute_columns),
    )


def _read_attribute(text: str, edges: Sequence[float] | None) -> str:
    return name_band(text, edges) if edges else text or UNKNOWN


def _read_folders(config: ClassFolderData) -> RawTable:
    root = _find_root(config.root)
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(
            f"The folder '{root}' (data.root) holds no folders. Allowed: one folder per class, with images inside."
        )
    files = [
        (path.relative_to(root).as_posix(), folder)
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() or path.is_symlink()
        if not path.name.startswith(".") and path.name.lower() not in _NOT_IMAGES
    ]
    where = f"the folder '{root}'"
    if not files:
        raise DataError(f"In {where} all class folders are empty: {', '.join(folders)}. Put JPEG or PNG files in them.")
    return RawTable(
        where=where,
        rows=tuple(Row(place, name, folder) for place, (name, folder) in enumerate(files, start=1)),
        classes=_check_class_list(folders if config.classes is None else config.classes),
        attribute_names=(),
        has_sites=False,
        root=root,
        fingerprint=_hash_text(name for name, _ in files),
    )


def _read_npz(config: NpzData) -> RawTable:
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
    rows = (Row(i, f"{i:0{width}d}", names.get(int(k), f"number {k}")) for i, k in enumerate(labels))
    return RawTable(
        where=where,
        rows=tuple(rows),
        classes=_check_class_list(list(names.values())),
        attribute_names=(),
        has_sites=False,
        root=None,
        fingerprint=_hash_text([str(tuple(images.shape)), labels.astype(np.int64).tobytes().hex()]),
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


def _find_root(root: str) -> Path:
    path = Path(root)
    if not path.is_dir():
        kind = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"The folder '{root}' (data.root) {kind}. Check the path.")
    return path.resolve()


def _check_class_list(classes: list[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if len(classes) < 2 or len(set(classes)) != len(classes) or not all(name.strip() for name in classes):
        raise DataError(
            f"The classes are [{', '.join(classes)}]. Allowed: two or more different names, none of them empty. "
            "Correct data.classes, or the folders or class names that they come from."
        )
    return tuple(classes)


def _hash_text(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

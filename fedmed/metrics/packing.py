"""Evaluation tables as bytes, for files and messages: safetensors, with a description of what is what."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fedmed.errors import FormatError
from fedmed.formats import TABLES as FORMAT
from fedmed.metrics.clusters import assume_single_images
from fedmed.metrics.limits import LONGEST_NAME, MOST_ATTRIBUTES, MOST_GROUPS
from fedmed.metrics.site_tables import MODELS, PairedTables, SiteTables
from fedmed.metrics.tables import EvaluationTables

_CONTENTS = "contents"
_WITH_PATIENTS = 3
"""Since which format tables hold what this version writes."""
_LARGEST_NUMBER = 2.0**53


def pack_site_tables(tables: SiteTables) -> bytes:
    """Return tables as bytes; equal tables give equal bytes."""
    arrays: dict[str, np.ndarray] = {}
    contents: list[list[Any]] = []
    for model, by_attribute in tables.models.items():
        for attribute, of_attribute in by_attribute.items():
            prefix = f"{len(contents)}."
            contents.append(["model", model, attribute, list(of_attribute.groups)])
            kept = of_attribute.to_arrays().items()
            arrays |= {prefix + name: np.ascontiguousarray(array) for name, array in kept if _is_kept(name, array)}
    for model, paired in tables.paired.items():
        for attribute, of_pair in paired.items():
            arrays[f"{len(contents)}.cells"] = np.ascontiguousarray(of_pair.cells)
            if of_pair.spread.any():
                arrays[f"{len(contents)}.spread"] = np.ascontiguousarray(of_pair.spread)
            contents.append(["paired", model, attribute, list(of_pair.groups)])
    numbered = {"format": FORMAT.number, "tables": contents}  # one entry: the order of several is not fixed
    packed: bytes = safetensors.numpy.save(arrays, metadata={_CONTENTS: json.dumps(numbered)})
    return packed


def unpack_site_tables(data: bytes) -> SiteTables:
    """Return the tables that :func:`pack_site_tables` packed, of this or an earlier format.

    Raises
    ------
    ValueError
        If the bytes are unreadable, too many tables or names, or if the tables contradict themselves.
    """
    try:
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(data)
        number, contents = _read_contents(data)
        entries = [(str(kind), str(model), str(attribute), groups) for kind, model, attribute, groups in contents]
        for entry in entries:
            _check_entry(*entry)
        if len({entry[:3] for entry in entries}) != len(entries):
            raise ValueError("tables of the same name occur twice")
    except FormatError as error:
        raise ValueError(str(error)) from None
    except (safetensors.SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"they are no tables ({type(error).__name__})") from None
    grouped = _group_arrays(arrays, len(entries))
    models: dict[str, dict[str, EvaluationTables]] = {}
    paired: dict[str, dict[str, PairedTables]] = {}
    for (kind, model, attribute, groups), own in zip(entries, grouped, strict=True):
        if kind == "model":
            arrays_now = own if number >= _WITH_PATIENTS else convert_arrays(own)
            models.setdefault(model, {})[attribute] = EvaluationTables.from_arrays(tuple(groups), arrays_now)
        else:
            paired.setdefault(model, {})[attribute] = _make_paired(tuple(groups), own)
    return SiteTables(models, paired)


def convert_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of evaluation tables of format 1 or 2 as those of format 3.

    There, ``rare`` was the calibration of the images of rare classes, all wrong answers were told class by class, and
    nothing was known about patients: every image is taken for a patient's only one. Areas are not known.

    Raises
    ------
    ValueError
        If arrays are missing, or there are others.
    """
    names = {"counts", "scores", "calibration", "brier", "rare", "withheld"}
    if set(arrays) != names:
        raise ValueError(f"Tables named {sorted(arrays)} were found. Needed: {sorted(names)}.")
    counts, mixed = arrays["counts"], arrays["rare"]
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or mixed.ndim != 3 or mixed.shape[2] != 3:
        raise ValueError(f"Tables 'counts' of shape {counts.shape} and 'rare' of shape {mixed.shape} are no tables.")
    rare = mixed[..., [0, 2]].sum(axis=1)
    if not np.isfinite(rare).all() or (np.abs(rare) > _LARGEST_NUMBER).any():
        raise ValueError("Table 'rare' holds a non-finite number.")
    single = assume_single_images(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=-1))
    return {**arrays, "mixed": mixed, "rare": np.rint(rare).astype(np.int64), "patients": single}


def _is_kept(name: str, array: np.ndarray) -> bool:
    """Return whether an array is written; others are zeros when they are read."""
    return name == "counts" or bool(array.any())


def _check_entry(kind: str, model: str, attribute: str, groups: object) -> None:
    if kind not in ("model", "paired") or model not in MODELS or not 0 < len(attribute) <= LONGEST_NAME:
        raise ValueError("they are of an unknown kind or model, or have an attribute without or with too long a name")
    if not isinstance(groups, list) or len(groups) > MOST_GROUPS:
        raise ValueError(f"an attribute has more than {MOST_GROUPS} groups, or none can be read")
    if any(not isinstance(group, str) or not 0 < len(group) <= LONGEST_NAME for group in groups):
        raise ValueError(f"a group has no name, or one of more than {LONGEST_NAME} characters")


def _group_arrays(arrays: Mapping[str, np.ndarray], number: int) -> list[dict[str, np.ndarray]]:
    if number > MOST_ATTRIBUTES * (2 * len(MODELS) - 1):
        raise ValueError(f"there are {number} tables; at most {MOST_ATTRIBUTES} attributes can be told")
    grouped: list[dict[str, np.ndarray]] = [{} for _ in range(number)]
    for full_name, array in arrays.items():
        index, _, name = full_name.partition(".")
        if not index.isdecimal() or int(index) >= number:
            raise ValueError("there are arrays that belong to no table")
        grouped[int(index)][name] = array
    return grouped


def _make_paired(groups: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> PairedTables:
    if not {"cells"} <= set(arrays) <= {"cells", "spread"}:
        raise ValueError("a paired table holds something else than its cells and their spread")
    return PairedTables(groups, **arrays)


def _read_metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _read_contents(data: bytes) -> tuple[int, list[Any]]:
    """Return the format's number and what the arrays are; in format 1 a list, later with the number around it."""
    found = json.loads(_read_metadata(data)[_CONTENTS])
    if isinstance(found, list):
        return 1, found
    contents: list[Any] = found["tables"]
    return FORMAT.check(found["format"], "a site"), contents

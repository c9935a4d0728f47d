"""Evaluation tables as bytes, for files and messages: safetensors, with a description of what is what."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fedmed.metrics.limits import LONGEST_NAME, MOST_ATTRIBUTES, MOST_GROUPS
from fedmed.metrics.site_tables import MODELS, PairedTables, SiteTables
from fedmed.metrics.tables import EvaluationTables

_CONTENTS = "contents"


def pack_site_tables(tables: SiteTables) -> bytes:
    """Return tables as bytes; equal tables give equal bytes."""
    arrays: dict[str, np.ndarray] = {}
    contents: list[list[Any]] = []
    for model, by_attribute in tables.models.items():
        for attribute, of_attribute in by_attribute.items():
            prefix = f"{len(contents)}."
            contents.append(["model", model, attribute, list(of_attribute.groups)])
            arrays |= {prefix + name: np.ascontiguousarray(array) for name, array in of_attribute.to_arrays().items()}
    for model, paired in tables.paired.items():
        for attribute, of_pair in paired.items():
            arrays[f"{len(contents)}.cells"] = np.ascontiguousarray(of_pair.cells)
            contents.append(["paired", model, attribute, list(of_pair.groups)])
    packed: bytes = safetensors.numpy.save(arrays, metadata={_CONTENTS: json.dumps(contents)})
    return packed


def unpack_site_tables(data: bytes) -> SiteTables:
    """Return the tables that :func:`pack_site_tables` packed.

    Raises
    ------
    ValueError
        If the bytes are unreadable, too many tables or names, or if the tables contradict themselves.
    """
    try:
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(data)
        contents = json.loads(_read_metadata(data)[_CONTENTS])
        entries = [(str(kind), str(model), str(attribute), groups) for kind, model, attribute, groups in contents]
        for entry in entries:
            _check_entry(*entry)
        if len({entry[:3] for entry in entries}) != len(entries):
            raise ValueError("tables of the same name occur twice")
    except (safetensors.SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"they are no tables ({type(error).__name__})") from None
    grouped = _group_arrays(arrays, len(entries))
    models: dict[str, dict[str, EvaluationTables]] = {}
    paired: dict[str, dict[str, PairedTables]] = {}
    for (kind, model, attribute, groups), own in zip(entries, grouped, strict=True):
        if kind == "model":
            models.setdefault(model, {})[attribute] = EvaluationTables.from_arrays(tuple(groups), own)
        else:
            paired.setdefault(model, {})[attribute] = _make_paired(tuple(groups), own)
    return SiteTables(models, paired)


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
    if set(arrays) != {"cells"}:
        raise ValueError("a paired table holds something else than its cells")
    return PairedTables(groups, arrays["cells"])


def _read_metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata

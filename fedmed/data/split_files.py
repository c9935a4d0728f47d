"""The folder ``splits/`` of a run: which image of which site is in which part, written once, read by every worker."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import JsonValue

from fedmed.config import DataConfig
from fedmed.data.partition import Item
from fedmed.data.splits import PARTS
from fedmed.errors import RunFolderError, suggest_nearest

INDEX_FILE = "splits.json"
# These change how images are read or shown, not which images are where; a root may differ between machines.
_NOT_SPLIT = {"root", "file", "image_size", "augmentation", "cache_mib", "max_bad_share", "unit"}
_COLUMNS = ("part", "item", "label", "group")
_ATTRIBUTE = "attribute:"


class CommonFields(TypedDict):
    """Fields of ``splits.json`` that are not of one site; :class:`SplitIndex` says what they mean."""

    settings: dict[str, JsonValue]
    fingerprint: str
    classes: list[str]
    attribute_names: list[str]
    num_bad_rows: int
    left_out: NotRequired[list[int]]
    quartiles: NotRequired[dict[str, list[float]]]
    excluded: NotRequired[dict[str, dict[str, int]] | None]


@dataclass(frozen=True)
class SplitIndex:
    """What ``splits.json`` holds."""

    settings: dict[str, JsonValue]
    """All settings that the split depends on."""
    fingerprint: str
    """Of the source's table."""
    classes: list[str]
    attribute_names: list[str]
    num_bad_rows: int
    composition: dict[str, dict[str, list[int]]]
    """Site to part to images of each class."""
    checksums: dict[str, str]
    """Site to SHA-256 of its CSV."""
    left_out: list[int] = field(default_factory=list)
    """Training images of each class (K) that are left out; empty in splits that were made before this was noted."""
    quartiles: dict[str, list[float]] = field(default_factory=dict)
    """Attributes of numbers without bands, to the edges by which they are cut; likewise."""
    excluded: dict[str, dict[str, int]] | None = None
    """Site, or nothing where that is not known, to images left out by reason; None in splits of before."""


@dataclass(frozen=True)
class SplitRow:
    """One image of a site."""

    part: str
    item: Item


def describe_settings(config: DataConfig, sites: int | None, seed: int) -> dict[str, JsonValue]:
    """Return the settings that decide which image is at which site and in which part."""
    data = config.model_dump(mode="json", exclude=_NOT_SPLIT)
    if config.partition.kind != "dirichlet":
        data["partition"] = {"kind": config.partition.kind}
    if not data.get("bands"):  # as in splits that were made before there were bands
        data.pop("bands", None)
    for name in ("max_train_images", "long_tail"):
        if data.get(name) is None:  # likewise
            data.pop(name, None)
    return {"seed": seed, "sites": sites, **{f"data.{key}": value for key, value in data.items()}}


def write_splits(folder: Path, common: CommonFields, sites: Mapping[str, Sequence[SplitRow]]) -> SplitIndex:
    """Write one CSV per site, and last, in one step, the index that makes the folder valid.

    Parameters
    ----------
    folder : Path
        An existing folder.
    common : CommonFields
        Fields of the index that are not of one site.
    sites : mapping of str to sequence of SplitRow
        Site names to images.

    Returns
    -------
    SplitIndex
        What was written.
    """
    classes, names = common["classes"], common["attribute_names"]
    checksums: dict[str, str] = {}
    for site, rows in sites.items():
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow([*_COLUMNS, *(_ATTRIBUTE + name for name in names)])
        for row in rows:
            item = row.item
            writer.writerow([row.part, item.key, classes[item.label], item.group, *item.attributes])
        content = stream.getvalue().encode()
        (folder / f"{site}.csv").write_bytes(content)
        checksums[site] = hashlib.sha256(content).hexdigest()
    composition = {site: _count_parts(rows, len(classes)) for site, rows in sites.items()}
    index = SplitIndex(**common, composition=composition, checksums=checksums)
    draft = folder / f"{INDEX_FILE}.new"
    draft.write_text(json.dumps(asdict(index), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, folder / INDEX_FILE)
    return index


def read_index(folder: Path, settings: Mapping[str, JsonValue]) -> SplitIndex | None:
    """Read ``splits.json``, or return None if there is none yet.

    Raises
    ------
    RunFolderError
        If it is damaged, or was made with other settings.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    try:
        index = SplitIndex(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"'{path}' is damaged ({error}). Delete the folder '{folder}' or start a new run."
        ) from None
    for key in sorted({*settings, *index.settings}):
        before, now = index.settings.get(key), settings.get(key)
        if before != now:
            raise RunFolderError(
                f"The split in '{folder}' was made with {key} = {json.dumps(before)}; now it is {json.dumps(now)}. "
                "Go back to the old setting, or start a new run."
            )
    return index


def read_quartiles(folder: Path) -> dict[str, list[float]]:
    """Return which attributes were cut by quartiles, and at which edges; nothing where there is no split."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        quartiles: dict[str, list[float]] = index.get("quartiles", {})
    except (OSError, ValueError):
        return {}
    return quartiles


def read_site(folder: Path, index: SplitIndex, site: str) -> list[SplitRow]:
    """Read one site's images, in the order of the file.

    Raises
    ------
    RunFolderError
        If there is no such site, or its file is missing or is not the one that was written.
    """
    path = folder / f"{site}.csv"
    if site not in index.composition:
        names = sorted(index.composition)
        raise RunFolderError(
            f"There is no site '{site}' in '{folder}'.{suggest_nearest(site, names)} "
            f"Sites: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"The split file '{path}' cannot be read ({error.strerror}). Start a new run.") from None
    if hashlib.sha256(content).hexdigest() != index.checksums[site]:
        raise RunFolderError(
            f"The split file '{path}' is not the one that was written: {INDEX_FILE} holds another checksum. "
            "Put the original back, or start a new run."
        )
    return [_parse_row(cells, index) for cells in csv.DictReader(io.StringIO(content.decode(), newline=""))]


def _count_parts(rows: Iterable[SplitRow], num_classes: int) -> dict[str, list[int]]:
    """Return images of each class (K) in every part."""
    counts = {part: [0] * num_classes for part in PARTS}
    for row in rows:
        counts[row.part][row.item.label] += 1
    return counts


def _parse_row(cells: Mapping[str, str], index: SplitIndex) -> SplitRow:
    item = Item(
        key=cells["item"],
        label=index.classes.index(cells["label"]),
        group=cells["group"],
        attributes=tuple(cells[_ATTRIBUTE + name] for name in index.attribute_names),
    )
    return SplitRow(cells["part"], item)

"""Patients who withdrew: their images are left out from the next message on.

The file that ``exclude`` names holds one patient or lesion id, or one image file name, a line. It is read again
whenever it has changed. Which image is in which part does not change for the others. Who else is left out with them is
in :mod:`client.hospital.left_out`.
"""

import logging
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch
from pydantic import JsonValue

from client.hospital.left_out import LeftOut, leave_out
from fedmed.data import ImagePart, SiteData
from fedmed.errors import DataError

_logger = logging.getLogger("fedmed.client")

RECORD_FILE = "left_out.json"
_PARTS = ("train", "validation", "test")
_MOST_LINES = 20


@dataclass(frozen=True)
class ExclusionCounts:
    """What the audit log tells: numbers, never ids."""

    listed: int
    """Different lines in the file."""
    matched: int
    """Those that belong to an image of this site."""
    images: Mapping[str, int]
    """Images left out because their patient withdrew, by part; also where the list no longer names them."""
    further: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0))
    """Images of further patients who are left out with them."""
    lines: tuple[int, ...] = ()
    """Lines of the file, from 1, that belong to no image of this site."""


def record_exclusions(counts: ExclusionCounts | None) -> dict[str, JsonValue] | None:
    """Return what an entry of the audit log holds of them; None for a site without a list.

    Without a secret, the numbers could be found by trial from the log's head, which the server gets.
    """
    return None if counts is None else {**asdict(counts), "lines": [*counts.lines], "salt": secrets.token_hex(16)}


def describe_exclusions(counts: ExclusionCounts, before: ExclusionCounts | None) -> list[str]:
    """Return what has changed in lines for the people at the site: numbers, never ids.

    Parameters
    ----------
    counts : ExclusionCounts
        Of now.
    before : ExclusionCounts, optional
        What was said last.
    """
    said = ExclusionCounts(0, 0, dict.fromkeys(_PARTS, 0)) if before is None else before
    told = []
    if (counts.images, counts.further) != (said.images, said.further):
        numbers = ", ".join(f"{part} {counts.images[part]} and {counts.further[part]}" for part in _PARTS)
        told.append(
            "A withdrawal is in effect. Images that are left out from now on, of patients who withdrew and of further "
            f"ones beside them: {numbers}."
        )
    if counts.lines and counts.lines != said.lines:
        numbers = ", ".join(map(str, counts.lines[:_MOST_LINES])) + (", ..." if len(counts.lines) > _MOST_LINES else "")
        told.append(
            f"{len(counts.lines)} of {counts.listed} lines in the file of withdrawn patients (exclude in client.yaml) "
            f"belong to no image of this site, so that nobody is left out for them: line {numbers}. Check how the ids "
            "are written."
        )
    return told


class Exclusions:
    """Keeps a site's data free of withdrawn patients.

    Parameters
    ----------
    path : Path, optional
        The list; without one, only those are left out who were before.
    data : SiteData
        All images of the site.
    groups : mapping of str to str
        Item -> id of its patient or lesion.
    state_dir : Path
        Where this site keeps who was left out.
    k : int
        So many patients at least are left out at a time; 1: those alone who withdrew.
    """

    def __init__(self, path: Path | None, data: SiteData, groups: Mapping[str, str], state_dir: Path, k: int) -> None:
        self._path, self._all, self._groups, self._state_dir, self._k = path, data, groups, state_dir, k
        self.left_out: LeftOut | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._current = data
        self.counts = ExclusionCounts(0, 0, dict.fromkeys(_PARTS, 0))

    def apply(self) -> SiteData:
        """Return the site's data without the images that the list names now.

        Raises
        ------
        DataError
            If the list cannot be read: training on would ignore a withdrawal.
        """
        try:
            stamp = (0, 0, 0)
            if self._path is not None:
                status = self._path.stat()
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._leave_out({} if self._path is None else _read_names(self._path))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise DataError(
                f"The list of withdrawn patients '{self._path}' (exclude in client.yaml) cannot be read: {reason}. "
                "Nothing is computed without it. Put it back; an empty file is allowed."
            ) from None
        return self._current

    def _leave_out(self, lines: Mapping[str, int]) -> None:
        names = set(lines)
        parts: dict[str, ImagePart] = {part: getattr(self._all, part) for part in _PARTS}
        found = {
            item: hits
            for part in parts.values()
            for item in part.items
            if (hits := _names_of(item, self._groups.get(item, item)) & names)
        }
        withdrawn, further = self._choose(parts, set(found))
        gone = withdrawn | further
        kept = {
            name: select_images(part, [place for place, item in enumerate(part.items) if item not in gone])
            for name, part in parts.items()
        }
        matched = set[str]().union(*found.values())
        images, beside = (
            {name: sum(item in which for item in part.items) for name, part in parts.items()}
            for which in (withdrawn, further)
        )
        unmatched = tuple(sorted(number for name, number in lines.items() if name not in matched))
        self.counts = ExclusionCounts(len(names), len(matched), images, beside, unmatched)
        train, validation, test = (kept[part] for part in _PARTS)
        self._current = replace(self._all, train=train, validation=validation, test=test)
        for name in _PARTS:
            if beside[name] and not len(kept[name]):
                _logger.warning(
                    "Of this site's images for %s none is left: after a patient withdrew, fewer than k = %d patients "
                    "would be left beside those who are left out so that nobody can be told apart. This site cannot "
                    "take part with them any more.",
                    name,
                    self._k,
                )

    def _choose(self, parts: Mapping[str, ImagePart], named: set[str]) -> tuple[set[str], set[str]]:
        """Return the images that are left out because a patient withdrew, and those that are beside them."""
        record = self._state_dir / RECORD_FILE
        if self._k <= 1 and not record.exists():
            return named, set()
        part_of = {item: name for name, part in parts.items() for item in part.items}
        self.left_out = leave_out(record, part_of, self._groups, named, self._k, told=has_told(self._state_dir))
        return self.left_out.select(part_of)


def has_told(state_dir: Path) -> bool:
    """Return whether a site has told a server anything, as far as its state folder shows."""
    return (state_dir / "told_rows").is_dir() or any((state_dir / "runs").glob("*"))


def select_images(part: ImagePart, indices: Iterable[int]) -> ImagePart:
    """Return the images of a part at some places, in that order."""
    chosen = list(indices)
    if len(chosen) == len(part):
        return part
    labels = part.labels.tolist()
    return ImagePart(
        items=[part.items[index] for index in chosen],
        labels=[labels[index] for index in chosen],
        attributes={name: [values[index] for index in chosen] for name, values in part.attributes.items()},
        reader=_PartReader(part),
        patients=[part.patients[index] for index in chosen],
    )


class _PartReader:
    """Reads through another part, whose cache it shares."""

    def __init__(self, part: ImagePart) -> None:
        self._read: Callable[[list[int]], list[torch.Tensor]] = part.images
        self._place = {item: index for index, item in enumerate(part.items)}

    def read(self, item: str) -> torch.Tensor:
        """Return uint8 (3, H, W), RGB."""
        return self._read([self._place[item]])[0]


def _read_names(path: Path) -> dict[str, int]:
    """Return the names in the file, each with the first line that it stands in."""
    # utf-8-sig: spreadsheets put a byte order mark before the first line.
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    numbered = [(_normalise(line), number) for number, line in enumerate(lines, start=1) if line.strip()]
    return dict(reversed(numbered))


def _names_of(item: str, group: str) -> set[str]:
    """Return everything by which a line may mean this image."""
    return {_normalise(name) for name in (group, item, PurePosixPath(item).name)}


def _normalise(name: str) -> str:
    # The same letter may be one character or two, depending on the program that wrote the file.
    return unicodedata.normalize("NFC", name.strip())

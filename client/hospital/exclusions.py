"""Patients who withdrew: their images are left out from the next message on.

The file that ``exclude`` names holds one patient or lesion id, or one image file name, a line. It is read again
whenever it has changed. Which image is in which part does not change for the others.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch

from fedmed.data import ImagePart, SiteData
from fedmed.errors import DataError

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class ExclusionCounts:
    """What the audit log tells: numbers, never ids."""

    listed: int
    """Different lines in the file."""
    matched: int
    """Those that belong to an image of this site."""
    images: Mapping[str, int]
    """Images left out, by part."""


class Exclusions:
    """Keeps a site's data free of withdrawn patients.

    Parameters
    ----------
    path : Path
        The list.
    data : SiteData
        All images of the site.
    groups : mapping of str to str
        Item -> id of its patient or lesion.
    """

    def __init__(self, path: Path, data: SiteData, groups: Mapping[str, str]) -> None:
        self._path, self._all, self._groups = path, data, groups
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
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._leave_out(_read_names(self._path))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise DataError(
                f"The list of withdrawn patients '{self._path}' (exclude in client.yaml) cannot be read: {reason}. "
                "Nothing is computed without it. Put it back; an empty file is allowed."
            ) from None
        return self._current

    def _leave_out(self, names: Set[str]) -> None:
        parts = {part: getattr(self._all, part) for part in _PARTS}
        matched: set[str] = set()
        kept = {}
        for name, part in parts.items():
            found = [_names_of(item, self._groups.get(item, item)) & names for item in part.items]
            matched = matched.union(*found)
            kept[name] = select_images(part, [index for index, hits in enumerate(found) if not hits])
        images = {name: len(part) - len(kept[name]) for name, part in parts.items()}
        self.counts = ExclusionCounts(len(names), len(matched), images)
        train, validation, test = (kept[part] for part in _PARTS)
        self._current = replace(self._all, train=train, validation=validation, test=test)


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


def _read_names(path: Path) -> frozenset[str]:
    # utf-8-sig: spreadsheets put a byte order mark before the first line.
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return frozenset(_normalise(line) for line in lines if line.strip())


def _names_of(item: str, group: str) -> set[str]:
    """Return everything by which a line may mean this image."""
    return {_normalise(name) for name in (group, item, PurePosixPath(item).name)}


def _normalise(name: str) -> str:
    # The same letter may be one character or two, depending on the program that wrote the file.
    return unicodedata.normalize("NFC", name.strip())

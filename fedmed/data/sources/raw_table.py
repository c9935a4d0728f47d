"""What every source gives: rows, classes and where they were read."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedmed.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageRow:
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
    rows: tuple[ImageRow, ...]
    classes: tuple[str, ...] | None
    """Classes in order, where the settings or the file list them."""
    attribute_names: tuple[str, ...]
    has_sites: bool
    root: Path | None
    """Folder of the image files; None where the images are in an array."""
    fingerprint: str
    """Changes when the source's table does."""


def find_root(root: str) -> Path:
    """Return the folder that ``data.root`` names."""
    path = Path(root)
    if not path.is_dir():
        kind = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"The folder '{root}' (data.root) {kind}. Check the path.")
    return path.resolve()


def check_class_list(classes: list[str] | None) -> tuple[str, ...] | None:
    """Return the classes that the config lists, in order; None where it lists none."""
    if classes is None:
        return None
    if len(classes) < 2 or len(set(classes)) != len(classes) or not all(name.strip() for name in classes):
        raise DataError(
            f"The classes are [{', '.join(classes)}]. Allowed: two or more different names, none of them empty. "
            "Correct data.classes, or the folders or class names that they come from."
        )
    return tuple(classes)


def hash_text(parts: Iterable[str]) -> str:
    """Return a SHA-256 over lines of text."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

"""Reading and writing key files, with words for a person when it fails."""

from collections.abc import Sequence
from pathlib import Path

from fedmed.errors import KeyFileError
from fedmed.storage.atomic_files import atomic_file


def refuse_existing(folder: Path, names: Sequence[str]) -> None:
    """Refuse to make a key where one lies.

    Raises
    ------
    KeyFileError
        If one of the files exists.
    """
    for path in (folder / name for name in names):
        if path.exists():
            raise KeyFileError(f"{path} exists and is never overwritten. To have a new one made, move it away first.")


def write_public(path: Path, data: bytes) -> None:
    """Write a file that everybody may read; it appears complete or not at all.

    Raises
    ------
    KeyFileError
        If it cannot be written; an older file of this name is untouched.
    """
    try:
        with atomic_file(path) as file:
            file.write(data)
        path.chmod(0o644)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def read_public(path: Path) -> bytes:
    """Return the content of a file that holds no secret.

    Raises
    ------
    KeyFileError
        If it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror or error}.") from None

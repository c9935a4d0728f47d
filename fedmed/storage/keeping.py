"""Deletes files and folders that are kept no longer, and counts them."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

DAY_S = 86_400.0


class Deleted(TypedDict):
    """What was deleted; numbers only."""

    files: int
    bytes: int


def delete_old(paths: Iterable[Path], days: float | None, now: float) -> Deleted | None:
    """Delete files, and folders with all that they hold, whose newest change is too long ago.

    Parameters
    ----------
    paths : iterable of Path
        What may be deleted; what is not there is passed over, and a link is never followed.
    days : float, optional
        For how long it is kept; None: for ever.
    now : float
        Seconds since 1970.

    Returns
    -------
    Deleted or None
        None if nothing was deleted.
    """
    if days is None:
        return None
    number, size = 0, 0
    for path in paths:
        files = _list_files(path)
        times = [file.lstat().st_mtime for file in files] or ([path.lstat().st_mtime] if path.is_dir() else [])
        if not times or max(times) > now - days * DAY_S:
            continue
        number, size = number + len(files), size + sum(file.lstat().st_size for file in files)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return Deleted(files=number, bytes=size) if number else None


def _list_files(path: Path) -> list[Path]:
    if path.is_symlink() or path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_symlink() or file.is_file()] if path.is_dir() else []

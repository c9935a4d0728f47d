"""Files and folders that appear complete or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fedmed.errors import CheckpointError

_HASH_BLOCK_BYTES = 1 << 20
_ROUND_NAME = re.compile(r"round_(\d{5,})")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when the block has ended well and the bytes are on the disk.

    A crash leaves at most a hidden ``.NAME.….partial`` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file that appears complete or not at all, and survives a power cut.

    Raises
    ------
    CheckpointError
        If the disk is full or cannot be written; an older file of this name is untouched.
    """
    try:
        with atomic_file(Path(path)) as file:
            file.write(data)
    except OSError as error:
        raise explain_write_failure(Path(path), error) from error


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file; lone surrogates, which UTF-8 cannot hold, are written as ``?``.

    Raises
    ------
    CheckpointError
        If the disk is full or cannot be written; an older file of this name is untouched.
    """
    write_atomically(path, text.encode("utf-8", errors="replace"))


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Make a folder that takes its name, in place of an older one, only when the block has ended well.

    A crash leaves at most hidden ``.NAME.….partial`` folders beside it.

    Yields
    ------
    Path
        A new folder beside it, to be filled.

    Raises
    ------
    CheckpointError
        If the disk is full or cannot be written; an older folder of this name is untouched.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, target)
    except OSError as error:
        raise explain_write_failure(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, target: Path) -> None:
    """Rename a complete folder to its name, in place of an older one."""
    old = target.with_name(f".{target.name}.replaced.partial")
    if target.exists():  # else a crash may have left the only copy there
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    try:
        sync_path(partial)
        os.replace(partial, target)
        sync_path(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove what a crash has left half written. Only the one process that saves may call this."""
    for path in root.glob(".round_*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def find_rounds(root: Path) -> dict[int, Path]:
    """Return the files or folders of a folder that are named after rounds, by round."""
    if not root.is_dir():
        return {}
    found = {}
    for path in root.iterdir():
        match = _ROUND_NAME.fullmatch(path.name.removesuffix(".safetensors"))
        if match:
            found[int(match[1])] = path
    return found


def sync_path(path: Path) -> None:
    """Flush to the disk what a power cut could undo: a file's content, or a folder's list of names after a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal, reading it block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def explain_write_failure(path: Path, error: OSError) -> CheckpointError:
    """Turn the system's refusal to write into words for a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"The disk is full: {path} could not be saved. What was saved before is untouched. "
            "Free some space, then start again: the run continues from there."
        )
    return CheckpointError(
        f"{path} could not be saved ({error.strerror or error}). What was saved before is untouched. "
        "Check that the folder exists and may be written, then start again."
    )


def encode_json(content: Any) -> str:
    """Return canonical JSON, the form that is hashed: keys sorted, no spaces, ASCII.

    Raises
    ------
    ValueError
        If the content is not plain JSON with finite numbers.
    """
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"only plain JSON with finite numbers can be kept: {error}") from error

"""Files and folders that only their owner can read."""

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

from fedmed.errors import KeyFileError
from fedmed.storage.atomic_files import sync_path


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter, or make an existing one so, and return it.

    Raises
    ------
    KeyFileError
        If it cannot be made or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise KeyFileError(
            f"The folder {path} cannot be made private ({error.strerror}). It must belong to the user who runs this "
            "command."
        ) from error
    return path


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that nobody else can read at any moment; it appears complete or not at all.

    Raises
    ------
    KeyFileError
        If it cannot be written; an older file of this name is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(partial, path)
        sync_path(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise KeyFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def read_secret(path: Path) -> bytes:
    """Return the content of a secret file.

    Raises
    ------
    KeyFileError
        If it is missing, or if others than its owner can use it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise KeyFileError(
                    f"{path} is a secret, but others on this machine can use it (mode {mode:04o}; 0600 is allowed). "
                    f"Type: chmod 600 '{path}'\nIf anybody may have read it, have a new one made."
                )
            return file.read()
    except OSError as error:
        raise KeyFileError(f"The secret file {path} cannot be read: {error.strerror or error}.") from error

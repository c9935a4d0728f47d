"""One process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmed.errors import ProcessError


@contextmanager
def single_instance(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock for as long as the block runs; the system releases it however the process ends.

    Parameters
    ----------
    lock_file : Path
        Made if it is missing; it stays, with the process id of its last holder.
    what : str
        What there can be one of, for the message: ``"A flower-client for site_01"``.

    Raises
    ------
    ProcessError
        Naming the process that holds it.
    """
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ProcessError(f"The lock file {lock_file} cannot be opened: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            text = f"{what} is running already: process {holder}. Use that one, or end it first: kill {holder}"
            raise ProcessError(text[:1].upper() + text[1:]) from None
        except OSError as error:
            raise ProcessError(
                f"The lock file {lock_file} cannot be locked ({error.strerror}); some network drives know no locks. "
                "Choose a folder on a local disk."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def wait_for_lock(lock_file: Path) -> Iterator[None]:
    """Hold a lock for as long as the block runs; wait until nobody else does."""
    with lock_file.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

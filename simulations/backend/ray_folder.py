"""Where Ray puts its sockets: the path of a Unix socket has at most 107 bytes, and Ray's own part takes 68 of them."""

import os
import sys
import tempfile
from pathlib import Path

from fedmed.errors import ProcessError

MOST_BYTES = 107 if sys.platform.startswith("linux") else 103
OWN_PART = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""What Ray appends to the folder for temporary files, with a process id of seven digits."""


def choose_ray_folder(short: Path = Path("/tmp")) -> str | None:  # noqa: S108  (the folder in it is of this user only)
    """Return a folder for Ray's files that is short enough for its sockets; None where its own choice is.

    Parameters
    ----------
    short : Path
        Where a folder is made if the folder for temporary files (``RAY_TMPDIR``, ``TMPDIR``) has too long a path.

    Raises
    ------
    ProcessError
        If it cannot be made there, or is another user's.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual + OWN_PART)) <= MOST_BYTES:
        return None
    folder = short / f"ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
            return str(folder)
        reason = "it belongs to somebody else"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise ProcessError(
        f"Ray cannot start: the folder for temporary files, '{usual}', has too long a path for its sockets, and "
        f"{folder} cannot be used instead ({reason}). Set RAY_TMPDIR to a folder whose path has at most "
        f"{MOST_BYTES - len(OWN_PART)} letters."
    )

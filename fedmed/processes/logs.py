"""Log files that stay small and private."""

import logging
import os
import shutil
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 5 * 2**20
OLD_LOGS_KEPT = 3


def set_up_logging(log_file: Path, level: int = logging.INFO) -> None:
    """Write the log of this process, Flower's included, to a rotating file and nowhere else.

    Parameters
    ----------
    log_file : Path
        Of this process alone; readable by its owner only.
    level : int
        Least important level that is written.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    handler = _PrivateRotatingFileHandler(
        log_file, maxBytes=MAX_LOG_BYTES, backupCount=OLD_LOGS_KEPT, encoding="utf-8", errors="replace"
    )
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class _PrivateRotatingFileHandler(RotatingFileHandler):
    def _open(self) -> IO[str]:  # type: ignore[override]
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o600)
        return stream


def rotate_log(path: Path, *, in_use: bool) -> None:
    """Make ``path`` the newest of its old copies if it has grown too large."""
    if not path.exists() or path.stat().st_size <= MAX_LOG_BYTES:
        return
    for number in range(OLD_LOGS_KEPT, 1, -1):
        with suppress(FileNotFoundError):
            os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    if in_use:
        # The child goes on writing to the same file; as it appends, a shortened file starts again at its beginning.
        shutil.copy2(path, f"{path}.1")
        os.truncate(path, 0)
    else:
        os.replace(path, f"{path}.1")

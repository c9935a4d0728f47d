"""Plots, colours, markup and words that all sections share."""

import os
import tempfile
from pathlib import Path

from fedmed.errors import KeyFileError
from fedmed.processes import private_folder


def _choose_cache() -> str:
    """Return a folder for what matplotlib keeps, its list of fonts: among temporary files, not in a person's home."""
    try:
        return str(private_folder(Path(tempfile.gettempdir()) / f"fedmed-matplotlib-{os.getuid()}"))
    except KeyFileError:  # somebody else was first to take this name
        return tempfile.mkdtemp(prefix="fedmed-matplotlib-")


if "MPLCONFIGDIR" not in os.environ:  # matplotlib reads it when it is imported
    os.environ["MPLCONFIGDIR"] = _choose_cache()

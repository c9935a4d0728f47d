"""Compiles the native kernels with the C++ compiler of this machine. Standard library only: installers run it alone."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
LIBRARY = Path(__file__).with_name("libfedmed_kernels.so")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-w")
THREADS = (("-fopenmp",), ("-pthread",))
"""OpenMP shares torch's own threads; without it the library starts threads of its own."""
TIMEOUT_S = 600


def find_compiler() -> str | None:
    """Return the path of a C++ compiler (the environment's CXX first), or None."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build_library(target: Path = LIBRARY) -> str | None:
    """Compile the kernels.

    Parameters
    ----------
    target : Path
        The library's file; replaced whole or not at all.

    Returns
    -------
    str or None
        None when it is built, else why not, in one line. Never raises for a compiler that is missing or fails.
    """
    if sys.platform == "win32":
        return f"the kernels are not built on {platform.system()}"
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler (g++ or clang++) was found"
    reason = ""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            for threads in THREADS:
                command = [compiler, *FLAGS, *threads, str(SOURCE), "-o", str(built)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
                if done.returncode == 0 and built.exists():
                    built.replace(target)
                    return None
                reason = (done.stderr.strip() or "no message").splitlines()[-1]
    except (OSError, subprocess.SubprocessError) as error:
        return f"{compiler}: {error}"
    return f"{compiler} failed: {reason}"

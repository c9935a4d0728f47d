"""Builds the native kernels while fedmed is installed, and says so where it cannot; the installation goes on.

``pyproject.toml`` names these commands. Installers load this file alone, before fedmed can be imported, so that the
file beside it is run by its path.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

_BUILD = runpy.run_path(str(Path(__file__).with_name("build.py")))
SKIPPED = os.environ.get("FEDMED_NATIVE") == "0"
"""Asked to leave the kernels out."""


class BuildPy(build_py):
    """Copies the modules, then compiles the kernels: into the wheel, or in place where the installation is editable."""

    def run(self) -> None:
        """Run the command."""
        super().run()
        target = self._library()
        if not self.editable_mode:
            target.unlink(missing_ok=True)  # never ship what lay about in the checkout
        if SKIPPED:
            return
        if self.editable_mode and _is_current(target):
            return
        problem = _BUILD["build_library"](target)
        if problem:
            self.warn(f"native kernels were not built ({problem}); fedmed works without them, but trains more slowly")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return all files that were made."""
        library = self._library()
        # Setuptools' own type says int.
        return [*super().get_outputs(bool(include_bytecode)), *([str(library)] if library.exists() else [])]

    def _library(self) -> Path:
        root = Path() if self.editable_mode else Path(self.build_lib)
        return root / "fedmed" / "native" / str(_BUILD["LIBRARY"].name)


class BdistWheel(bdist_wheel):
    """Marks the wheel as one for this platform, with any Python 3, unless the kernels are left out."""

    def finalize_options(self) -> None:
        """Set the options."""
        if not SKIPPED and _BUILD["find_compiler"]() is not None:
            # Modules then lie at the wheel's root, as those of every package with compiled parts.
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        """Return Python, ABI and platform."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


def _is_current(library: Path) -> bool:
    source: Any = _BUILD["SOURCE"]
    return library.exists() and library.stat().st_mtime >= source.stat().st_mtime

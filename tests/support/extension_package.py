"""The example package of ``tests/fixtures/extension_package``, installed into a folder as pip would leave it."""

import csv
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fedmed.extensions

SOURCE = Path(__file__).resolve().parents[1] / "fixtures" / "extension_package"
DISTRIBUTION, PACKAGE = "example-extension", "example_extension"
MODEL, LOSS = f"{PACKAGE}.networks:build", f"{PACKAGE}.losses:build"
IMAGES = f"{PACKAGE}.images:read"
RULE, STEP = f"{PACKAGE}.rules:CappedShares", f"{PACKAGE}.steps:ShareOfStep"


def install(folder: Path, version: str = "1.0") -> Path:
    """Copy the package into a folder, with the list of its files as pip writes it."""
    shutil.copytree(SOURCE / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    told = folder / f"{PACKAGE}-{version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n")
    (told / "top_level.txt").write_text(f"{PACKAGE}\n")
    with (told / "RECORD").open("w", newline="") as file:
        rows = [path.relative_to(folder).as_posix() for path in (folder / PACKAGE).glob("*.py")]
        csv.writer(file).writerows([row, "", ""] for row in sorted(rows))
    return folder


@contextmanager
def importable(folder: Path) -> Iterator[Path]:
    """Put a folder on Python's path, and forget afterwards what was imported from it."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
        fedmed.extensions._loaded.clear()

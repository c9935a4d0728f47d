"""Where a module's file is and what was installed to bring it, found without importing anything."""

import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from urllib.parse import unquote, urlsplit


def find_module_file(module: str) -> Path | None:
    """Return the file that Python would import, with links resolved; the packages around it are not imported either.

    Parameters
    ----------
    module : str
        Its full name.

    Returns
    -------
    Path or None
        None if there is no such module, or it has no file.
    """
    importlib.invalidate_caches()
    places: Iterable[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = _find_spec(".".join(parts[:end]), places)
        places = None if spec is None else spec.submodule_search_locations
        if spec is None or (places is None and end < len(parts)):
            return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    file = Path(spec.origin).resolve()
    return file if file.is_file() else None


def find_distribution(module: str, file: Path) -> metadata.Distribution | None:
    """Return the installed distribution that a module's file belongs to; None for a loose file.

    That a distribution of the same name is installed does not suffice: the file must be one of its own.
    """
    stamps = tuple((place, os.stat(place).st_mtime_ns) for place in sys.path if os.path.isdir(place))
    names = _list_owners(stamps).get(module.partition(".")[0], ())
    found = (metadata.distribution(name) for name in sorted(set(names)))
    return next((one for one in found if _owns(one, file)), None)


@lru_cache(maxsize=1)
def _list_owners(stamps: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    """Return the distributions of each package; ``stamps`` change when something is installed."""
    return metadata.packages_distributions()


def _find_spec(name: str, places: Iterable[str] | None) -> ModuleSpec | None:
    """Return where Python's own import would find a module, without importing the package around it first."""
    where = None if places is None else list(places)
    for finder in sys.meta_path:
        spec = finder.find_spec(name, where)
        if spec is not None:
            return spec
    return None


def _owns(distribution: metadata.Distribution, file: Path) -> bool:
    if any(part.name == file.name and Path(str(part.locate())).resolve() == file for part in distribution.files or ()):
        return True
    folder = _find_development_folder(distribution)
    return folder is not None and file.is_relative_to(folder)


def _find_development_folder(distribution: metadata.Distribution) -> Path | None:
    """Return the folder of a distribution that is installed for development, whose files stay where they are."""
    told = distribution.read_text("direct_url.json")
    content = json.loads(told) if told else {}
    if not content.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(content["url"]).path)).resolve()

"""Our five packages, found before a file of the same name that lies in the way.

``client.py`` and ``server.py`` are what Flower's own tutorials call a user's files. With such a file on the path
(``PYTHONPATH=.``) Python would import it in place of ours, here and in every process that is started from here.
"""

import importlib
import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("fedmed", "server", "client", "simulations", "configs")
COMMANDS = {"flower-server": "server.app", "flower-client": "client.app", "fedmed-simulate": "simulations.run"}
"""Command to the module whose ``main`` it runs."""
ROOT = Path(__file__).resolve().parents[1]
"""Folder that holds our packages."""


def find_shadowing(paths: list[str]) -> dict[str, str]:
    """Return which of our packages would be taken from elsewhere on a path, and from where.

    Parameters
    ----------
    paths : list of str
        As ``sys.path``.
    """
    found = {}
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, paths)
        places = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        if places and not any(Path(str(place)).resolve().is_relative_to(ROOT / name) for place in places):
            found[name] = str(places[0])
    return found


def use_own_packages() -> None:
    """Put our folder before everything else on the path, here and in child processes, if something is in the way."""
    if not find_shadowing(sys.path):
        return
    sys.path.insert(0, str(ROOT))
    inherited = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [inherited])])
    importlib.invalidate_caches()


def import_own_packages() -> None:
    """Import our packages, whose own files are almost empty, before the path of this process changes."""
    use_own_packages()
    for name in PACKAGES:
        importlib.import_module(name)


def run_command(name: str) -> int:
    """Run one of :data:`COMMANDS` with our own packages in front; return its exit code."""
    use_own_packages()
    main: Callable[[], int] = importlib.import_module(COMMANDS[name]).main
    return main()


def run_server() -> int:
    """Run the command ``flower-server``."""
    return run_command("flower-server")


def run_client() -> int:
    """Run the command ``flower-client``."""
    return run_command("flower-client")


def run_simulation() -> int:
    """Run the command ``fedmed-simulate``."""
    return run_command("fedmed-simulate")

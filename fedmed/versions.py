"""Which fedmed this is, and which versions of what it stands on."""

import argparse
from importlib import metadata

DISTRIBUTION = "fedmed-hospitals"
"""Name under which our packages are installed; ``fedmed`` on the public index is somebody else's."""
SOFTWARE = "fedmed"
"""Our name in messages, reports and run folders, the same whatever the distribution is called."""


def find_version(name: str) -> str:
    """Return the installed version of a distribution, our own for ``fedmed``.

    Raises
    ------
    PackageNotFoundError
        If it is not installed.
    """
    return metadata.version(DISTRIBUTION if name == SOFTWARE else name)


def find_versions(*names: str) -> dict[str, str]:
    """Return name -> version of installed distributions; ``fedmed`` is our own."""
    return {name: find_version(name) for name in names}


def add_version_option(parser: argparse.ArgumentParser) -> None:
    """Let a command answer ``--version`` with what matters when two sides are compared."""
    told = find_versions(SOFTWARE, "flwr", "torch")
    text = f"fedmed {told[SOFTWARE]} (flwr {told['flwr']}, torch {told['torch']})"
    parser.add_argument("--version", action="version", version=text, help="show the versions and exit")

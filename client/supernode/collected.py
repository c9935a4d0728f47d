"""``state_dir/collected.json``: which release was collected last, and which runs have ended."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmed.errors import CheckpointError
from fedmed.storage.atomic_files import write_atomically

_FILE = "collected.json"


@dataclass(frozen=True)
class Collected:
    """What this site knows of federations that have ended."""

    manifest_sha256: str | None = None
    """Disclosure that was collected last and reported; None: none yet."""
    run_ids: tuple[str, ...] = ()
    """Runs whose model is home."""
    released: str = ""
    """When the newest model that came here was released."""
    compared: str = ""
    """Who compared it before its release, for people."""


def read_collected(state_dir: Path) -> Collected:
    """Read the file; without one nothing was collected.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    path = state_dir / _FILE
    try:
        content = json.loads(path.read_bytes())
        run_ids = tuple(map(str, content.get("run_ids", [])))
        told = (str(content.get(key, "")) for key in ("released", "compared"))
        return Collected(str(content["manifest_sha256"]), run_ids, *told)
    except FileNotFoundError:
        return Collected()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}), so this site does not know which federations have "
            "ended. Move it away; while the server runs, flower-client --fetch-model writes it anew for the last one."
        ) from None


def find_collected(state_dir: Path) -> Collected:
    """Read the file; a damaged one counts as none, and what it told is collected again."""
    try:
        return read_collected(state_dir)
    except CheckpointError:
        return Collected()


def write_collected(state_dir: Path, collected: Collected) -> None:
    """Write the file.

    Raises
    ------
    CheckpointError
        If it cannot be written.
    """
    content = asdict(collected)
    write_atomically(state_dir / _FILE, json.dumps(content).encode())

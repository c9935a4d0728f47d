"""The operating point of a run's chosen model on the disk: ``tables/operating_point.json``."""

import json
from pathlib import Path

from fedmed.errors import RunFolderError
from fedmed.formats import OPERATING_POINT
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.records import OperatingRecord
from fedmed.storage.run_folder import RunFolder


def name_operating_file(run: RunFolder) -> Path:
    """Return the file."""
    return run.tables / "operating_point.json"


def read_operating_point(run: RunFolder) -> OperatingRecord | None:
    """Return the operating point that was chosen, or why none was; None where no alert is wanted.

    Raises
    ------
    RunFolderError
        If the file is damaged.
    FormatError
        If a later version has written it.
    """
    path = name_operating_file(run)
    try:
        found = json.loads(path.read_bytes())
        OPERATING_POINT.check(found["format"], path)
        record: OperatingRecord = {key: found[key] for key in OperatingRecord.__annotations__}  # type: ignore[assignment]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"'{path}' cannot be read ({type(error).__name__}). Restore it from a backup; which images raise an alert "
            "depends on it."
        ) from None
    return record


def write_operating_point(run: RunFolder, record: OperatingRecord) -> None:
    """Write the operating point."""
    write_atomically(name_operating_file(run), json.dumps(record).encode())

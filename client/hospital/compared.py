"""What this site compared before a release: ``state_dir/runs/RUN/compared.json``.

With it a released model is known again when it comes home, see :mod:`client.release.compared`.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmed.storage.atomic_files import write_atomically

_FILE, _FORMAT = "compared.json", 1
_logger = logging.getLogger("fedmed.client")


@dataclass(frozen=True)
class OwnComparison:
    """The last comparison of a run that this site has made.

    Attributes
    ----------
    files : mapping of str to str
        Hashes, see :func:`fedmed.protocol.release.name_compared`.
    num_images : int
        Test images on which the forms were compared.
    agrees : bool
        Whether the forms were equal, as far as they must be.
    """

    files: Mapping[str, str]
    num_images: int
    agrees: bool


def write_own_comparison(run_folder: Path, comparison: OwnComparison) -> None:
    """Keep a comparison in place of an earlier one.

    Raises
    ------
    CheckpointError
        If it cannot be written.
    """
    content = {"format": _FORMAT, **asdict(comparison)}
    write_atomically(run_folder / _FILE, json.dumps(content).encode())


def read_own_comparison(run_folder: Path) -> OwnComparison | None:
    """Return the comparison that was kept; None if there is none, or it is damaged, which is told in the log."""
    path = run_folder / _FILE
    try:
        content = json.loads(path.read_bytes())
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        return OwnComparison(files, int(content["num_images"]), content["agrees"] is True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _logger.warning("%s cannot be read (%s); this site counts as one that did not compare.", path, error)
        return None

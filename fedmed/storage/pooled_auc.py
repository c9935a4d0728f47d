"""What a simulation knows and a federation cannot: areas over all sites' test images, ``tables/pooled_auc.json``."""

import json
from pathlib import Path

from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.records import PooledAucRecord

POOLED_AUC_FILE = "pooled_auc.json"


def write_pooled_auc(folder: Path, record: PooledAucRecord) -> None:
    """Write what the report shows, in place of an earlier one."""
    write_atomically(folder / POOLED_AUC_FILE, json.dumps(record).encode())


def read_pooled_auc(folder: Path) -> PooledAucRecord | None:
    """Return what :func:`write_pooled_auc` has written; None where there is nothing that can be read."""
    try:
        found = json.loads((folder / POOLED_AUC_FILE).read_bytes())
        record: PooledAucRecord = {key: found[key] for key in PooledAucRecord.__annotations__}  # type: ignore[assignment]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record

"""What the coordinating site deletes of a run because it is kept no longer: ``keep`` of ``server.yaml``."""

import time

from pydantic import JsonValue

from fedmed.config.server import ServerConfig
from fedmed.storage.audit import DELETED, AuditLog
from fedmed.storage.keeping import DAY_S, delete_old
from fedmed.storage.run_folder import RunFolder


def delete_what_is_kept_no_longer(
    config: ServerConfig, run: RunFolder, audit: AuditLog, now: float | None = None
) -> dict[str, JsonValue]:
    """Delete what is older than ``keep`` says, and return what was deleted: numbers only, which the audit log gets.

    Parameters
    ----------
    config : ServerConfig
        Settings.
    run : RunFolder
        Of a run that has not ended, only old logs are deleted.
    audit : AuditLog
        The run's.
    now : float, optional
        Seconds since 1970; default: the clock.
    """
    keep, now = config.keep, time.time() if now is None else now
    logs = [*sorted(run.logs.glob("*")), *sorted((run.path / "link").glob("refused.old"))]
    found = {"logs": delete_old(logs, keep.logs, now)}
    if run.finished_file.is_file():
        age_days = (now - run.finished_file.stat().st_mtime) / DAY_S
        for name, days, paths in (
            ("updates", keep.updates, sorted(run.updates.glob("*"))),
            ("site_models", keep.site_models, [run.compression / "site_models"]),
            ("validation_tables", keep.validation_tables, sorted(run.tables.glob("round_*"))),
        ):
            # From the end of the run, whenever the files themselves were written.
            found[name] = delete_old(paths, 0.0, now + DAY_S) if days is not None and age_days >= days else None
    deleted: dict[str, JsonValue] = {
        name: {"files": one["files"], "bytes": one["bytes"]} for name, one in found.items() if one is not None
    }
    if deleted:
        audit.append(DELETED, **deleted)
    return deleted

"""What a hospital deletes because it is kept no longer (``keep`` of ``client.yaml``), and what ``--forget`` leaves."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import JsonValue

from client.guard.audit import AUDIT_FILE, open_site_audit
from client.supernode.collected import find_collected
from fedmed.config.client import ClientConfig
from fedmed.protocol.heads import SITE_FILE, prune_stored
from fedmed.storage.audit import DELETED
from fedmed.storage.keeping import delete_old

_ANSWERS = ("test_tables", "own_tables")
_MODELS = ("model", "own_model", "federation_report", "report")
_LEFT = {
    AUDIT_FILE: "the audit log, which shows what left this site; keep.audit_log says how long it is kept",
    SITE_FILE: "what the server has signed about the audit log, which shows whether it was changed",
    "told_rows": "which images are counted, so that numbers told later do not differ from earlier ones by one patient",
    "approved_plans.json": "which plans were approved here, and when",
    "left_out.json": "who is left out because patients withdrew; without it others would be drawn",
    "logs": "logs of the programs; keep.logs says how long old ones are kept",
    "splits": "which image is for training, validation and test, so that no test image is ever trained on",
    "model": "the released model; delete the folder where it is not used",
    "own_model": "this site's own form of the model; delete the folder where it is not used",
    "federation_report": "the federation's report",
    "report": "this site's own report",
}
"""What stays in the state folder after ``--forget``, and why."""


def delete_what_is_kept_no_longer(config: ClientConfig, now: float | None = None) -> dict[str, JsonValue]:
    """Delete what is older than ``keep`` says, and return what was deleted: numbers only, which the audit log gets.

    Nothing of it may be in use: it is called while the site's process does not run.

    Parameters
    ----------
    config : ClientConfig
        Settings.
    now : float, optional
        Seconds since 1970; default: the clock.

    Raises
    ------
    RunFolderError
        If the audit log cannot be written.
    """
    state_dir, keep = Path(config.state_dir), config.keep
    now = time.time() if now is None else now
    finished = set(find_collected(state_dir).run_ids)
    # By the names of the folders: the other names came from a server.
    runs = [run for run in sorted((state_dir / "runs").glob("*")) if run.name in finished and run.is_dir()]
    inside = [path for run in runs for path in sorted(run.iterdir()) if path.is_dir()]
    found = {
        "run_state": delete_old([path for path in inside if path.name not in _ANSWERS], keep.run_state, now),
        "test_answers": delete_old([path for path in inside if path.name in _ANSWERS], keep.test_answers, now),
        "logs": delete_old(sorted((state_dir / "logs").glob("*")), keep.logs, now),
        "models": delete_old([state_dir / name for name in _MODELS], keep.models, now),
    }
    deleted: dict[str, JsonValue] = {
        name: {"files": one["files"], "bytes": one["bytes"]} for name, one in found.items() if one is not None
    }
    if deleted:
        open_site_audit(state_dir).append(DELETED, **deleted)
    if keep.audit_log is not None and (state_dir / AUDIT_FILE).is_file():
        moment = datetime.fromtimestamp(now, UTC) - timedelta(days=keep.audit_log)
        entries = open_site_audit(state_dir).delete_before(moment)
        prune_stored(
            state_dir / SITE_FILE, moment - timedelta(days=1)
        )  # it is counted against the entries that are left
        deleted |= {"audit_log": {"entries": entries}} if entries else {}
    return deleted


def list_left(state_dir: Path) -> list[str]:
    """Return what stays after ``--forget`` and why, one line each."""
    return [f"kept: {state_dir / name}: {why}" for name, why in _LEFT.items() if (state_dir / name).exists()]

"""The audit log of a hospital, and a note of how far it goes.

::

    state_dir/audit.jsonl   the log, see :mod:`fedmed.storage.audit`
    state_dir/audit.head    hash of its last entry; shows that the end was cut off

The note is written after the entry. After a crash between the two the log is longer than the note says, which is fine.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from fedmed.errors import RunFolderError
from fedmed.processes import write_secret
from fedmed.storage.audit import AuditLog, AuditReport, verify_audit

AUDIT_FILE, HEAD_FILE = "audit.jsonl", "audit.head"


class SiteAudit(AuditLog):
    """Writes the log and the note beside it.

    Parameters
    ----------
    path : Path
        The log. A new one may be begun beside the note of an old one, which was moved away as evidence.

    Raises
    ------
    RunFolderError
        If the log cannot be written, its chain is broken, or its end is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._locked():  # another process may be in the middle of a line
            is_complete = not self.length or verify_site_audit(path.parent).ok
        if not is_complete:
            raise RunFolderError(
                f"The end of the audit log {path} is missing: it does not hold the entry that {HEAD_FILE} beside it "
                "names. Keep both files as evidence, and countersigned.jsonl beside them: move them elsewhere, then "
                "start again with a new log."
            )
        if self.length > 1 and not path.with_name(HEAD_FILE).exists():
            self.append("heads_disagree", by="site", reason=f"{HEAD_FILE} was missing when the log was opened.")

    def append(self, event: str, /, **fields: Any) -> None:
        """Append one entry, then note it; see :meth:`fedmed.storage.audit.AuditLog.append`."""
        super().append(event, **fields)
        write_secret(self.path.with_name(HEAD_FILE), self.head.encode())

    def delete_before(self, moment: datetime) -> int:
        """Delete the oldest entries, then note the head; see :meth:`fedmed.storage.audit.AuditLog.delete_before`."""
        number = super().delete_before(moment)
        if number:
            write_secret(self.path.with_name(HEAD_FILE), self.head.encode())
        return number


def open_site_audit(state_dir: Path) -> SiteAudit:
    """Open the log of a state folder to write to it.

    Raises
    ------
    RunFolderError
        As for :class:`SiteAudit`.
    """
    return SiteAudit(state_dir / AUDIT_FILE)


def explain_missing(path: Path) -> str:
    """Return what it means that there is no log; whether one is missing is known to :mod:`client.guard.heads`."""
    return (
        f"There is no audit log {path} yet: this site has answered nothing. It begins with flower-client --approve, or "
        "with the first request of the server. If this site has taken part before, the log was moved away or deleted, "
        "or client.yaml names another state_dir."
    )


def verify_site_audit(state_dir: Path, expected: Iterable[tuple[int, str]] = ()) -> AuditReport:
    """Check the log of a state folder without changing it, and whether it goes as far as it did.

    Parameters
    ----------
    state_dir : Path
        The folder.
    expected : iterable of (int, str)
        Numbers of entries and their hashes, which the server has countersigned.

    Raises
    ------
    RunFolderError
        If a file cannot be read.
    """
    note = state_dir / HEAD_FILE
    try:
        noted = note.read_text("ascii", "replace").strip() if note.exists() else None
    except OSError as error:
        raise RunFolderError(f"{note} cannot be read: {error.strerror or error}.") from error
    return verify_audit(state_dir / AUDIT_FILE, noted, expected)

"""A site's side of countersigned audit logs: what the server has signed is kept, and the site signs in turn.

See :mod:`fedmed.protocol.heads`. A server without a key to sign with, or of an earlier version, sends no heads, and
then none are sent back.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Message

from client.guard.audit import AUDIT_FILE, HEAD_FILE, explain_missing, verify_site_audit
from client.hospital.site_key import open_site_key
from fedmed.config.client import ClientConfig
from fedmed.errors import FedmedError, KeyFileError, RunFolderError
from fedmed.keys import check_signature
from fedmed.keys.statements import sign_statement
from fedmed.protocol.heads import (
    FINDINGS,
    SITE_FILE,
    Finding,
    LogHead,
    SignedHeads,
    StoredHeads,
    read_stored,
    store_heads,
    went_back,
)
from fedmed.protocol.kinds import HEADS
from fedmed.protocol.messages import add_heads, has_heads, read_signed_heads
from fedmed.storage.audit import GENESIS, AuditLog, AuditReport

DISAGREE = "heads_disagree"
"""Event of what is wrong between the two logs."""
_logger = logging.getLogger("fedmed.client")


@dataclass(frozen=True)
class SignsAs:
    """With what a site signs, and checks what the server signs."""

    name: str
    key: str
    key_passphrase_file: str | None
    release_key: Path

    @classmethod
    def of(cls, config: ClientConfig) -> "SignsAs":
        """Return it from ``client.yaml``."""
        return cls(config.name, config.key, config.key_passphrase_file, Path(config.release_key))


class SiteHeads:
    """Takes the server's heads and signs the site's.

    Parameters
    ----------
    state_dir : Path
        Where what the server has signed is kept.
    audit : AuditLog
        The site's log.
    signs_as : SignsAs
        Keys.
    """

    def __init__(self, state_dir: Path, audit: AuditLog, signs_as: SignsAs) -> None:
        self._file, self._audit, self._as = state_dir / SITE_FILE, audit, signs_as
        self._server: dict[str, LogHead] = {}
        self._told: str | None = None
        last: SignedHeads | None = None
        for stored in read_stored(self._file):
            last = stored.heads
            self._server[last.run] = last.own
        if last is not None and last.seen is not None and not audit.holds(last.seen.length, last.seen.hash):
            self._note("own log lacks it", last)

    def answer(self, message: Message, run_id: str, reply: Message) -> None:
        """Take the heads of a request, and sign those of its reply.

        Raises
        ------
        FedmedError
            If what the server has signed cannot be kept.
        """
        if not has_heads(message) or not reply.has_content():
            return
        heads = self._read(message, run_id)
        before = self._server.get(run_id)
        finding = self._judge(heads, before) if isinstance(heads, SignedHeads) else heads
        if isinstance(heads, SignedHeads):
            store_heads(self._file, heads, LogHead(length=self._audit.length, hash=self._audit.head))
            self._server[run_id] = heads.own
        if finding is not None:
            self._note(finding, heads if isinstance(heads, SignedHeads) else None)
        own = LogHead(length=self._audit.length, hash=self._audit.head)
        seen = heads.own if isinstance(heads, SignedHeads) else None
        told = SignedHeads(
            by="site", run=run_id, site=self._as.name, own=own, seen=seen, before=before, finding=finding
        )
        try:
            reply.content = add_heads(
                reply.content, told.signed(sign_statement(open_site_key(self._as), told.to_sign()))
            )
        except KeyFileError as error:  # its own requests are signed by another process, which says so
            _logger.warning("The head of the audit log is not signed: %s", error)

    def _read(self, message: Message, run_id: str) -> SignedHeads | Finding:
        """Return what the server has signed for this site and run; or what is wrong with it."""
        try:
            heads = read_signed_heads(message)
            check_signature(self._as.release_key, heads.to_sign(), heads.signature)
        except KeyFileError:
            return "wrong signature"
        except FedmedError:
            return "unreadable"
        is_ours = (heads.by, heads.run, heads.site) == ("server", run_id, self._as.name)
        return heads if is_ours else "wrong signature"

    def _judge(self, heads: SignedHeads, before: LogHead | None) -> Finding | None:
        if heads.seen is not None and not self._audit.holds(heads.seen.length, heads.seen.hash):
            return "own log lacks it"
        return "other log went back" if went_back(before, heads.own) else None

    def _note(self, finding: Finding, heads: SignedHeads | None) -> None:
        """Write down what is wrong, once."""
        key = f"{finding} {heads.seen if heads is not None and finding == 'own log lacks it' else ''}"
        if key == self._told:
            return
        self._told = key
        told = {} if heads is None else {"server_log": heads.own.to_values()}
        if heads is not None and heads.seen is not None:
            told["countersigned"] = heads.seen.to_values()
        self._audit.append(DISAGREE, by="site", reason=f"This site finds: {FINDINGS[finding]}.", **told)
        _logger.warning("The audit logs of the two sides do not fit each other: %s.", FINDINGS[finding])


@dataclass(frozen=True)
class SiteVerdict:
    """What can be said of a site's log without asking the server."""

    report: AuditReport
    countersigned: Sequence[StoredHeads]
    """What servers have signed, as far as the signatures hold; oldest first."""


def verify_site(state_dir: Path, release_key: Path) -> SiteVerdict:
    """Check a site's log: its chain, that it goes as far as noted beside it, and as far as the server has signed.

    Parameters
    ----------
    state_dir : Path
        With the log, its head and what the server has signed.
    release_key : Path
        ``release.pub`` of the kit.

    Raises
    ------
    RunFolderError
        If a file cannot be read, or there is nothing to check.
    """
    stored = list(read_stored(state_dir / SITE_FILE))
    right = [one for one in stored if _is_signed(one.heads, release_key)]
    expected = [pair for one in right for pair in one.list_own()]
    if not (state_dir / AUDIT_FILE).exists() and (expected or (state_dir / HEAD_FILE).exists()):
        number = f"{max(expected)[0]} of its entries" if expected else "none of its entries"
        text = f"The log is missing: it was deleted or moved away. The server has countersigned {number}."
        return SiteVerdict(AuditReport(False, 0, None, text, GENESIS), right)
    if not (state_dir / AUDIT_FILE).exists():
        raise RunFolderError(explain_missing(state_dir / AUDIT_FILE))
    report = verify_site_audit(state_dir, expected)
    if report.ok:
        reason = _find_problem(state_dir, report, len(stored), len(right))
        report = report if reason is None else replace(report, ok=False, reason=reason)
    return SiteVerdict(report, right)


def _find_problem(state_dir: Path, report: AuditReport, num_stored: int, num_right: int) -> str | None:
    """Return what is wrong beside a log whose chain holds."""
    if report.num_entries > 1 and not (state_dir / HEAD_FILE).exists():
        return f"{HEAD_FILE}, which notes how far the log goes, is missing: somebody has removed it."
    if num_right < num_stored:
        return (
            f"{num_stored - num_right} lines of {SITE_FILE} are not signed with the server's key: they were changed, "
            "or release.pub is not the one of the kit."
        )
    num_told = _count_told(state_dir / AUDIT_FILE)
    if num_told > num_stored:
        return (
            f"{SITE_FILE} holds {num_stored} countersignatures of the server, the log tells of {num_told}: lines of it "
            "were removed."
        )
    return None


def _count_told(log: Path) -> int:
    """Return how many answers tell that the server's heads were taken."""
    number = 0
    with log.open("rb") as file:
        for line in file:
            if b'"event":"sent"' in line and f'"name":"{HEADS}"'.encode() in line:
                entry = json.loads(line)
                parts = entry["fields"].get("parts", []) if entry["event"] == "sent" else []
                number += any(part.get("name") == HEADS and "seen" in part.get("keys", []) for part in parts)
    return number


def _is_signed(heads: SignedHeads, release_key: Path) -> bool:
    try:
        check_signature(release_key, heads.to_sign(), heads.signature)
    except KeyFileError:
        return False
    return heads.by == "server"

"""The server's side of countersigned audit logs: it signs how far it has seen each site's, and keeps what they sign.

See :mod:`fedmed.protocol.heads`. It is done by the process that asks the sites, which holds the run's audit log, with
every request but the first of a site, which may run another version.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Message

from fedmed.config import FederationConfig
from fedmed.config.server import ServerConfig
from fedmed.errors import FedmedError, KeyFileError, RunFolderError
from fedmed.keys import sign
from fedmed.keys.statements import is_signed_by
from fedmed.protocol.heads import (
    FINDINGS,
    SERVER_FOLDER,
    Finding,
    LogHead,
    SignedHeads,
    StoredHeads,
    read_stored,
    store_heads,
    went_back,
)
from fedmed.protocol.messages import has_heads, read_signed_heads
from fedmed.storage.audit import GENESIS, AuditLog, AuditReport, verify_audit
from fedmed.storage.run_folder import RunFolder
from server.provisioning.site_list import SITES_FILE, SiteEntry, keys_folder, read_sites

DISAGREE = "heads_disagree"
"""Event of what is wrong between the two logs."""


class Countersigner:
    """Signs for the server, and checks and keeps what sites have signed.

    Parameters
    ----------
    run : RunFolder
        Keeps it.
    audit : AuditLog
        The run's log.
    config : ServerConfig
        Names the folder of the keys.
    on_note : callable
        Is told what is wrong.
    """

    def __init__(self, run: RunFolder, audit: AuditLog, config: ServerConfig, on_note: Callable[[str], None]) -> None:
        self._run, self._audit, self._config, self._on_note = run, audit, config, on_note
        self._release_key = keys_folder(config) / "release.key"
        self._seen: dict[str, LogHead | None] = {}
        self._findings: dict[str, Finding | None] = {}
        self._told_by: dict[str, Finding | None] = {}
        self._sites: dict[str, SiteEntry] = {}
        self._changed = 0

    def sign_for(self, site: str) -> SignedHeads | None:
        """Return what goes to a site beside a request; None where the key cannot be used, which the start has said."""
        heads = SignedHeads(
            by="server",
            run=self._run.read_run_id(),
            site=site,
            own=LogHead(length=self._audit.length, hash=self._audit.head),
            seen=self._find_seen(site),
            finding=self._findings.get(site),
        )
        try:
            return heads.signed(sign(self._release_key, heads.to_sign()))
        except KeyFileError:
            return None

    def take(self, site: str, message: Message) -> None:
        """Check and keep what a site has signed beside its answer; whatever it sends, the round goes on."""
        if not has_heads(message):
            return
        heads = self._read(site, message)
        if not isinstance(heads, SignedHeads):
            self._note(site, heads)
            return
        finding: Finding | None = "other log went back" if went_back(self._find_seen(site), heads.own) else None
        told = [head for head in (heads.before, heads.seen) if head is not None]
        if not all(self._audit.holds(head.length, head.hash) for head in told):
            finding = "own log lacks it"
        self._seen[site] = heads.own
        store_heads(site_file(self._run, site), heads, LogHead(length=self._audit.length, hash=self._audit.head))
        if heads.finding is not None and heads.finding != self._told_by.get(site):
            self._tell(site, f"{site} finds: {FINDINGS[heads.finding]}.", site)
        self._told_by[site] = heads.finding
        self._note(site, finding)

    def _find_seen(self, site: str) -> LogHead | None:
        if site not in self._seen:
            kept = [stored.heads.own for stored in read_stored(site_file(self._run, site))]
            self._seen[site] = kept[-1] if kept else None
        return self._seen[site]

    def _find_entry(self, site: str) -> SiteEntry | None:
        """Return a site of the list, which is read again when it has changed."""
        try:
            changed = (keys_folder(self._config) / SITES_FILE).stat().st_mtime_ns
            if changed != self._changed:
                self._sites, self._changed = read_sites(self._config), changed
        except (OSError, KeyFileError):  # being written, or damaged: others say so, and it stays as it was
            pass
        return self._sites.get(site)

    def _read(self, site: str, message: Message) -> SignedHeads | Finding:
        try:
            heads = read_signed_heads(message)
        except FedmedError:
            return "unreadable"
        entry = self._find_entry(site)
        is_its_own = (heads.by, heads.run, heads.site) == ("site", self._run.read_run_id(), site)
        return heads if is_its_own and entry is not None and is_signed(heads, entry) else "wrong signature"

    def _note(self, site: str, finding: Finding | None) -> None:
        """Tell what the server finds, when it is new."""
        if finding is not None and finding != self._findings.get(site):
            self._tell(site, f"This server finds about {site}: {FINDINGS[finding]}.", "server")
        self._findings[site] = finding

    def _tell(self, site: str, text: str, by: str) -> None:
        self._audit.append(DISAGREE, site=site, by=by, reason=text)
        self._on_note(f"The audit logs do not fit each other. {text} See flower-server --verify-audit, and ask there.")


def open_countersigner(
    config: FederationConfig, run: RunFolder, audit: AuditLog, on_note: Callable[[str], None]
) -> Countersigner | None:
    """Return what signs the heads of logs in a real federation; None in a simulation, or without keys."""
    if not isinstance(config, ServerConfig) or config.keys is None:
        return None
    folder = keys_folder(config)
    has_keys = (folder / "release.key").is_file() and (folder / SITES_FILE).is_file()
    return Countersigner(run, audit, config, on_note) if has_keys else None


def site_file(run: RunFolder, site: str) -> Path:
    """Return the file with what a site has signed."""
    return run.path / SERVER_FOLDER / f"{site}.jsonl"


def is_signed(heads: SignedHeads, entry: SiteEntry) -> bool:
    """Return whether heads are signed with a key that a site has or had."""
    return any(is_signed_by(key, heads.to_sign(), heads.signature) for key in reversed(entry.all_keys))


@dataclass(frozen=True)
class SiteHead:
    """What the server keeps of how far a site's log went."""

    site: str
    time: str
    """When it was signed last, ISO 8601 in UTC."""
    length: int
    hash: str
    num_signed: int
    num_wrong: int
    """Of these, with a signature that is not the site's."""
    findings: tuple[str, ...]
    """What the site has found, and where its log went back."""

    def __str__(self) -> str:
        signed = f"{self.num_signed} signatures, {'all its own' if not self.num_wrong else f'{self.num_wrong} wrong'}"
        found = "".join(f"\n  found: {text}" for text in self.findings)
        return f"{self.site}: entry {self.length} at {self.time}, head {self.hash}; {signed}{found}"


def verify_run_audit(
    run: RunFolder, expected_head: str | None, sites: Mapping[str, SiteEntry]
) -> tuple[AuditReport, list[SiteHead]]:
    """Check the log of a run, also against what sites have signed of it, without a network.

    Parameters
    ----------
    run : RunFolder
        The run.
    expected_head : str, optional
        What the newest checkpoint says was the log's last entry.
    sites : mapping of str to SiteEntry
        Their keys.

    Returns
    -------
    AuditReport, list of SiteHead
        The verdict on the log, and how far each site's went.

    Raises
    ------
    RunFolderError
        If a file cannot be read, or there is no log yet.
    """
    kept = read_countersigned(run)
    right = {
        name: [one for one in stored if name in sites and is_signed(one.heads, sites[name])]
        for name, stored in kept.items()
    }
    expected = [pair for stored in right.values() for one in stored for pair in one.list_own()]
    if run.audit_file.exists():
        report = verify_audit(run.audit_file, expected_head, expected)
    elif not expected and expected_head is None:
        raise RunFolderError(
            f"There is no audit log {run.audit_file} yet: nothing was asked and nothing was answered in this run. It "
            "begins when flower-server is started. If it was started with this run_dir before, the log was moved away "
            "or deleted."
        )
    else:
        number = f"{max(expected)[0]} of its entries" if expected else "none of its entries"
        text = f"The log is missing: it was deleted or moved away. Sites have countersigned {number}."
        report = AuditReport(False, 0, None, text, GENESIS)
    heads = [_describe_site(name, stored, len(stored) - len(right[name])) for name, stored in kept.items() if stored]
    if report.ok and any(head.num_wrong for head in heads):
        names = ", ".join(head.site for head in heads if head.num_wrong)
        text = f"What is kept of {names} is not signed by that site: it was changed, or the list of sites was."
        report = replace(report, ok=False, reason=text)
    return report, heads


def _describe_site(name: str, stored: list[StoredHeads], num_wrong: int) -> SiteHead:
    findings = [FINDINGS[one.heads.finding] for one in stored if one.heads.finding is not None]
    pairs = itertools.pairwise(stored)
    findings += [
        f"at {after.time} its log was at entry {after.heads.own.length}, before at {before.heads.own.length}"
        for before, after in pairs
        if went_back(before.heads.own, after.heads.own)
    ]
    last = stored[-1]
    own = last.heads.own
    return SiteHead(name, last.time, own.length, own.hash, len(stored), num_wrong, tuple(dict.fromkeys(findings)))


def read_keys_of_sites(config: ServerConfig) -> dict[str, SiteEntry]:
    """Return the list of sites; empty where it is gone, so that no signature can be checked."""
    try:
        return read_sites(config)
    except KeyFileError:
        return {}


def read_countersigned(run: RunFolder) -> Mapping[str, list[StoredHeads]]:
    """Return what every site has signed, by name."""
    return {file.stem: list(read_stored(file)) for file in sorted((run.path / SERVER_FOLDER).glob("*.jsonl"))}

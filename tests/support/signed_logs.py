"""A hospital and a coordinating site that countersign each other's audit logs, in this process."""

import shutil
from pathlib import Path
from typing import Any

from flwr.app import Message

from client.guard.guard import _make_guard
from client.guard.heads import SiteVerdict, verify_site
from fedmed.config.server import ServerConfig
from fedmed.keys import make_release_key, make_site_key, read_public_key
from fedmed.protocol.messages import add_heads
from fedmed.storage.audit import AuditLog
from fedmed.storage.run_folder import RunFolder
from server.provisioning.countersigning import Countersigner
from server.provisioning.site_list import SiteEntry, write_sites
from tests.client.support.hospital import PLAN, HospitalSite, make_rows

NAME = "north"
LIMITS = {"suppression": {"k": 10, "k_row": 5}, "benefit": False}
"""A hospital that trains no model of its own answers at once that it does not: the shortest way to an answer."""


class SignedLogs:
    """Both sides; each message goes through the guard of the hospital and the countersigner of the server."""

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        self.keys = folder / "keys"
        make_release_key(self.keys)
        self.site = HospitalSite(folder / "site", make_rows((16, 12, 10)), policy=LIMITS)
        make_site_key(self.site.folder, NAME, passphrase)
        shutil.copy(self.keys / "release.pub", self.site.folder / "release.pub")
        values = {"address": "127.0.0.1:1", "sites": [NAME], "classes": ["a", "b"], "data": {"source": "sites"}}
        self.config = ServerConfig.model_validate(values | {"keys": str(self.keys)})
        self.entry = SiteEntry(read_public_key(self.site.folder / "site.pub"), False, "2026-01-01")
        write_sites(self.config, {NAME: self.entry})
        self.run = RunFolder.create(folder / "run", "resume")
        self.notes: list[str] = []
        self.start_server()

    def start_server(self) -> None:
        """Begin as another process of the server does."""
        self.log = AuditLog(self.run.audit_file)
        self.signer = Countersigner(self.run, self.log, self.config, self.notes.append)
        self.log.append("start")

    def start_site(self) -> None:
        """Begin as another process of the hospital does."""
        _make_guard.cache_clear()

    def ask(self, **changes: Any) -> Message:
        """Ask once, with heads; both sides do what they do in a real federation."""
        self.log.append("asked")
        plan = PLAN | {"run_id": self.run.read_run_id(), "benefit": True}
        message = self.site.message("train.local", None, {"plan": plan, "round": 1})
        heads = self.signer.sign_for(NAME)
        assert heads is not None
        message.content = add_heads(message.content, heads.model_copy(update=changes))
        reply = self.site.send(message)
        self.signer.take(NAME, reply)
        return reply

    def verify(self) -> SiteVerdict:
        """Check the site's log as ``flower-client --verify-audit`` does."""
        return verify_site(self.site.state, self.site.folder / "release.pub")

    def findings(self) -> tuple[list[str], list[str]]:
        """Return what stands in the logs of the site and of the server about what does not fit."""
        own = [str(fields["reason"]) for fields in self.site.events("heads_disagree")]
        lines = self.run.audit_file.read_text().splitlines()
        return own, [line for line in lines if '"event":"heads_disagree"' in line]

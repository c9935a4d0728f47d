"""The sites that may take part and those that are there, as the SuperLink and ``sites.json`` have it."""

from collections.abc import Callable

from fedmed.config.server import ServerConfig
from fedmed.errors import KeyFileError
from fedmed.storage.audit import AuditLog
from fedmed.storage.run_folder import RunFolder
from server.provisioning.provision import read_sites
from server.superlink.control import Control


class Roster:
    """Makes the SuperLink accept the sites on the list, and knows who is connected.

    Parameters
    ----------
    config : ServerConfig
        Says where the list is.
    run : RunFolder
        Takes the roster, from which the round loop knows the sites.
    audit : AuditLog
        Takes who was allowed and revoked.
    on_info, on_note : callable
        Told what is as it should be, and what a person should know.
    """

    def __init__(
        self,
        config: ServerConfig,
        run: RunFolder,
        audit: AuditLog,
        *,
        on_info: Callable[[str], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._config, self._run, self._audit = config, run, audit
        self._on_info, self._on_note = on_info, on_note
        self._keys: dict[str, str] | None = None
        self._problems: set[str] = set()
        self._damage = ""
        self.listed: frozenset[str] = frozenset()
        """Names of the sites on the list."""
        self.sites: frozenset[str] = frozenset()
        """Names of the sites that the SuperLink accepts."""
        self.connected: frozenset[str] = frozenset()
        """Names of the sites that are connected."""

    def has_changed(self) -> bool:
        """Return whether the list is another than at the last :meth:`sync`."""
        return self._read_keys() != self._keys

    def sync(self, control: Control) -> None:
        """Make the SuperLink accept exactly the sites on the list; a problem of one site does not keep others out.

        Raises
        ------
        FederationError
            If the SuperLink does not answer as it should.
        KeyFileError
            If the list was damaged from the beginning.
        """
        keys = self._read_keys()
        before = set(self._keys or {})
        problems: list[KeyFileError] = []
        found = control.sync_sites(keys, problems.append)
        for text in sorted({str(problem) for problem in problems} - self._problems):
            self._on_note(text)
        self._problems = {str(problem) for problem in problems}
        self._run.write_roster({node: name for name, node in found.items()})
        for name in sorted(found.keys() - self.sites):
            self._audit.append("site_allowed", site=name)
        for name in sorted(before - keys.keys()):
            self._on_note(f"{name} was revoked; it is refused from now on.")
            self._audit.append("site_revoked", site=name)
        self._keys, self.listed, self.sites = keys, frozenset(keys), frozenset(found)

    def look_at_nodes(self, control: Control) -> None:
        """Tell who has come and gone.

        Raises
        ------
        FederationError
            If the SuperLink does not answer as it should.
        """
        roster = self._run.read_roster()
        online = {roster[node] for node, info in control.list_nodes().items() if node in roster and info.online}
        for site in sorted(online - self.connected):
            self._on_info(f"{site} is connected ({len(online)} of {len(roster)} sites).")
        for site in sorted(self.connected - online):
            self._on_note(f"{site} is no longer connected.")
        self.connected = frozenset(online)

    def forget_connected(self) -> None:
        """Note that the SuperLink was stopped: everybody has to connect again."""
        self.connected = frozenset()

    def _read_keys(self) -> dict[str, str]:
        """Return name -> public key of the sites that may take part; of a damaged list, what it held before."""
        try:
            sites = read_sites(self._config)
        except KeyFileError as error:
            if self._keys is None:
                raise
            if str(error) != self._damage:
                self._damage = str(error)
                self._on_note(f"{error} Until then the sites stay as they are.")
            return self._keys
        self._damage = ""
        return {name: entry.public_key for name, entry in sites.items() if not entry.revoked}

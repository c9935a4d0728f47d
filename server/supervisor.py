"""What ``flower-server`` does while a federation runs: start the processes, watch them, start them again.

Two children do the work: the SuperLink, which the sites talk to, and the executor, which runs the ServerApp. This
process holds no model. Whatever stops, the next start goes on after the newest checkpoint.
"""

import json
import time
from pathlib import Path
from typing import Any

from fedmed.audit import AuditLog
from fedmed.deployment import ServerConfig, split_address
from fedmed.errors import FederationError, KeyFileError, ProcessError
from fedmed.health import HealthService
from fedmed.processes import Backoff, EventReader, check_port_free
from fedmed.run_folder import RunFolder
from server.control import Control
from server.engine import EXPLAINED, Engine
from server.hello import write_hello
from server.progress import Listener
from server.provision import read_sites, renew_certificate
from server.release import find_release, prepare_release
from server.status import StatusFile

_STEP_S = 0.1
_LOOK_EVERY_S = 1.0
_CERTIFICATE_EVERY_S = 3600.0
_MAX_RESTARTS = 5
_LEAST_FREE_BYTES = 256 * 2**20


class Supervisor:
    """Runs one federation to its end.

    Parameters
    ----------
    config : ServerConfig
        Settings.
    run : RunFolder
        Where everything is written.
    listener : Listener
        Is told what happens.
    server_app : str
        ``module:attribute`` of the ServerApp.
    """

    def __init__(self, config: ServerConfig, run: RunFolder, listener: Listener, server_app: str) -> None:
        self.config, self.run, self.listener = config, run, listener
        self.engine = Engine(config, run, server_app)
        self.status = StatusFile(run.path, rounds=config.rounds, sites=config.sites)
        self.health = HealthService(config.health)
        self._error = ""
        self._refused = EventReader(self.engine.refused_file)
        self._backoff = Backoff(first_s=1.0, longest_s=30.0, reset_after_s=300.0)
        self._restarts = 0
        self._known: dict[str, str] = {}
        self._connected: set[str] = set()
        self._collected: set[str] = set()
        self._next_look = self._next_certificate_check = 0.0

    def serve(self) -> None:
        """Run the federation, release its model and wait until the sites have collected it.

        Raises
        ------
        FedmedError
            With what to do; everything up to the last closed round is saved.
        """
        host, port = split_address(self.config.listen, "listen")
        check_port_free(host, port, "listen")
        write_hello(self.engine.hello_file, self.config)
        self._look_at_certificate()
        self.listener.on_info(f"Sites reach this server at {self.config.address}; it listens on {self.config.listen}.")
        with self.health:
            try:
                self._start()
                while not self.run.finished_file.is_file():
                    self._step()
                self._release()
            finally:
                self.engine.stop()

    def _start(self) -> None:
        """Start everything, as far as the run is not finished."""
        self.status.set_state("starting")
        control = self.engine.start_link()
        self._sync_sites(control)
        if not self.run.finished_file.is_file():
            self.engine.start_run()
            self.status.set_state("waiting for sites")
        self.health.set("superlink", True)
        self.health.set("federation", True)

    def _step(self) -> None:
        time.sleep(_STEP_S)
        self._pass_on_events()
        self._watch_children()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self._look()

    def _pass_on_events(self) -> None:
        for event in self.engine.events.read():
            self._error = str(event.get("error", self._error))
            _tell(self.listener, event)
            self.status.take_event(event)
            if event.get("event") == "round":
                write_hello(self.engine.hello_file, self.config, round=event["record"]["round"])
        for event in self._refused.read():
            text = f"Refused: {event.get('address')}, key {event.get('fingerprint')}: {event.get('reason')}"
            self._note(text)
            AuditLog(self.run.audit_file).append("refused", **{key: str(value) for key, value in event.items()})

    def _watch_children(self) -> None:
        ended = self.engine.find_ended()
        if ended is None:
            return
        self._pass_on_events()
        if ended.name == "executor" and ended.code == 0:
            if not self.run.finished_file.is_file():
                raise FederationError(
                    "The ServerApp ended without a result; see logs/executor.log in the run's folder."
                )
            return
        if ended.name == "executor" and ended.code == EXPLAINED:
            raise FederationError(self._error)
        self.health.set("superlink" if ended.name == "superlink" else "federation", False, f"{ended.name} ended")
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise ProcessError(
                f"The process {ended.name} has ended {self._restarts} times, at last with code {ended.code}. Its log "
                f"says why: {ended.log_file}. Everything up to the last closed round is saved."
            )
        pause = self._backoff.next()
        self._note(
            f"The process {ended.name} ended with code {ended.code} (log: {ended.log_file}). Everything is started "
            f"again in {pause:.0f} s; the round under way is repeated."
        )
        self.engine.stop()
        time.sleep(pause)
        self._connected.clear()
        self._start()

    def _look(self) -> None:
        """Look at what may change at any time: sites that come and go, the list of sites, disk, certificate."""
        control = self.engine.control
        if control is None:
            return
        try:
            if read_public_keys(self.config) != self._known:
                self._sync_sites(control)
            self._look_at_nodes(control)
        except FederationError as error:  # a busy or restarting SuperLink; its end is noticed elsewhere
            self._note(str(error))
        free = self.run.free_bytes()
        self.health.set("disk", free > _LEAST_FREE_BYTES, f"{free / 2**20:.0f} MiB free")
        if time.monotonic() >= self._next_certificate_check:
            self._look_at_certificate()

    def _look_at_certificate(self) -> None:
        self._next_certificate_check = time.monotonic() + _CERTIFICATE_EVERY_S
        try:
            text = None if self.config.insecure else renew_certificate(self.config)
        except KeyFileError as error:  # connected sites go on; new connections fail, and the text says what to do
            text = str(error)
        if text:
            self._note(text)

    def _note(self, text: str) -> None:
        self.listener.on_note(text)
        self.status.set_message(text)

    def _sync_sites(self, control: Control) -> None:
        """Make the SuperLink accept exactly the sites on the list."""
        keys = read_public_keys(self.config)
        roster = control.sync_sites(keys)
        self.run.write_roster({node: name for name, node in roster.items()})
        for name in sorted(set(keys) - set(self._known)):
            AuditLog(self.run.audit_file).append("site_allowed", site=name)
        for name in sorted(set(self._known) - set(keys)):
            self._note(f"{name} was revoked; it is refused from now on.")
            AuditLog(self.run.audit_file).append("site_revoked", site=name)
        self._known = keys
        self.status.set_sites(sorted(keys))

    def _look_at_nodes(self, control: Control) -> None:
        roster = self.run.read_roster()
        nodes = control.list_nodes()
        online = {roster[node] for node, info in nodes.items() if node in roster and info.online}
        for site in sorted(online - self._connected):
            self.listener.on_info(f"{site} is connected ({len(online)} of {len(roster)} sites).")
        for site in sorted(self._connected - online):
            self._note(f"{site} is no longer connected.")
        self._connected = online
        self.status.set_connected(online)

    def _release(self) -> None:
        """Sign the model and wait for the sites to collect it."""
        self.status.set_state("releasing")
        prepare_release(self.run, Path(str(self.config.keys)) / "release.key")
        self.listener.on_info("The model is released; the sites collect it now.")
        deadline = time.monotonic() + self.config.collect_wait_s
        while time.monotonic() < deadline and not self._all_collected():
            time.sleep(_STEP_S)
            self._pass_on_events()
            ended = self.engine.find_ended()
            if ended is not None and ended.name == "superlink":
                self._watch_children()
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + _LOOK_EVERY_S
                self._look()
        left = sorted(set(self._known) - self._collected)
        if left:
            self._note(
                f"Not collected by: {', '.join(left)}. Start the same command again when they are back; it then only "
                "serves the model."
            )
        self.status.set_state("finished")

    def _all_collected(self) -> bool:
        """Return whether every site on the list has the model; tell of those who got it since the last look."""
        roster = self.run.read_roster()
        released = find_release(self.run)
        for path in self.engine.collected_dir.glob("*.json"):
            site = roster.get(int(path.stem))
            if site is None or site in self._collected:
                continue
            if json.loads(path.read_text()).get("manifest_sha256") == released:
                self._collected.add(site)
                self.status.set_collected(site)
                self.listener.on_info(f"{site} has collected the model.")
        return set(self._known) <= self._collected


def read_public_keys(config: ServerConfig) -> dict[str, str]:
    """Return name -> public key of the sites that may take part."""
    return {name: entry.public_key for name, entry in read_sites(config).items() if not entry.revoked}


def _tell(listener: Listener, event: dict[str, Any]) -> None:
    match event.get("event"):
        case "phase":
            listener.on_phase(event["phase"], event["round"], event["num_sites"])
        case "answer":
            listener.on_answer(event["site"], event["problem"])
        case "round":
            listener.on_round(event["record"])
        case "info":
            listener.on_info(event["text"])
        case "note":
            listener.on_note(event["text"])

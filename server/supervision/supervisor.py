"""What ``flower-server`` does while a federation runs: start the processes, watch them, start them again.

Two children do the work: the SuperLink, which the sites talk to, and the executor, which runs the ServerApp. This
process holds no model. Whatever stops, the next start goes on after the newest checkpoint.
"""

import time
from contextlib import suppress
from pathlib import Path

from fedmed.config.addresses import split_address
from fedmed.config.server import ServerConfig
from fedmed.errors import FederationError, FedmedError, KeyFileError, ProcessError
from fedmed.health import HealthService
from fedmed.processes import Event, check_port_free
from fedmed.storage.audit import AuditLog
from fedmed.storage.history import RoundRecord
from fedmed.storage.run_folder import RunFolder
from server.finish.chance import read_doubts
from server.provisioning.provision import renew_certificate
from server.release.decision import check_decided, describe_command, read_decision
from server.release.operators import check_signatures
from server.release.publish import Receipts, find_release, prepare_release
from server.rounds.progress import Listener
from server.supervision.children import EXPLAINED, Engine
from server.supervision.hello import write_hello
from server.supervision.keeping import delete_what_is_kept_no_longer
from server.supervision.refusals import Refusals
from server.supervision.restarts import Restarts
from server.supervision.roster import Roster
from server.supervision.status import StatusFile

_RELEASED = "The model is released; the sites collect it now."
_STEP_S = 0.1
_LOOK_EVERY_S = 1.0
_CERTIFICATE_EVERY_S = 3600.0
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
    config_file : str
        Where the settings were read from, for the line that a person has to type.
    """

    def __init__(
        self,
        config: ServerConfig,
        run: RunFolder,
        listener: Listener,
        server_app: str,
        *,
        config_file: str = "server.yaml",
    ) -> None:
        self.config, self.run, self.listener = config, run, listener
        self._release_command = describe_command(config_file, config.release)
        self.engine = Engine(config, run, server_app)
        self.status = StatusFile(run.path, rounds=config.rounds, sites=config.sites)
        self.health = HealthService(config.health)
        self.audit = AuditLog(run.audit_file)
        self.roster = Roster(config, run, self.audit, on_info=listener.on_info, on_note=self._note)
        self.receipts = Receipts(run, self.engine.collected_dir)
        self._refusals = Refusals(self.engine.refused_file, self.audit)
        self._restarts = Restarts()
        self._error = ""
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
        write_hello(self.engine.hello_file, self.config, self.run.read_run_id())
        self._look_at_certificate()
        self._delete_old()
        self.listener.on_info(f"Sites reach this server at {self.config.address}; it listens on {self.config.listen}.")
        with self.health:
            try:
                self._start()
                while not self.run.finished_file.is_file():
                    self._step()
                self._wait_for_decision()
                self._release()
            finally:
                self.engine.stop()
                with suppress(FedmedError):  # the disk is full; what ended the run is what must be told
                    self._refusals.flush()
                    self._delete_old()

    def _delete_old(self) -> None:
        """Delete what is kept no longer."""
        deleted = delete_what_is_kept_no_longer(self.config, self.run, self.audit)
        if deleted:
            self.listener.on_info(f"Deleted, as 'keep' in server.yaml says: {', '.join(deleted)}.")

    def _start(self) -> None:
        """Start everything, as far as the run is not finished."""
        self.status.set_state("starting")
        control = self.engine.start_link()
        self.roster.sync(control)
        control.open_gate()
        self.status.set_sites(self.roster.listed)
        if self.run.finished_file.is_file():
            self.status.set_state("waiting for release" if self._must_wait() else "releasing")
        else:
            self.engine.start_run()
            self.status.set_state("waiting for sites")
        self._restarts.note_start()
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
            match event:
                case {"event": "round", "record": {"round": int(number)}}:
                    self.engine.draw_report()
                    write_hello(self.engine.hello_file, self.config, self.run.read_run_id(), round_number=number)
                case {"event": "model", "digest": str(digest)}:
                    write_hello(self.engine.hello_file, self.config, self.run.read_run_id(), model_digest=digest)
        for text in self._refusals.read():
            self._note(text)

    def _watch_children(self) -> None:
        ended = self.engine.find_ended()
        if ended is None:
            return
        self._pass_on_events()
        if ended.name == "executor":
            if self.run.finished_file.is_file():
                return
            if ended.code == 0:
                raise FederationError(
                    "The ServerApp ended without a result; see logs/executor.log in the run's folder."
                )
            if ended.code == EXPLAINED:
                raise FederationError(self._error)
        component = "superlink" if ended.name == "superlink" else "federation"
        self.health.set(component, False, f"{ended.name} ended")
        self._restart(f"The process {ended.name} ended with code {ended.code} (log: {ended.log_file}).")

    def _restart(self, problem: str) -> None:
        """Start everything again, after a pause; a start that fails counts as one more failure."""
        while True:
            pause = self._restarts.count(problem)
            self._note(
                f"{problem} Everything is started again in {pause:.0f} s; the round under way, if any, is repeated."
            )
            self.engine.stop()
            self.roster.forget_connected()
            time.sleep(pause)
            try:
                self._start()
            except (FederationError, ProcessError) as error:
                problem = str(error)
            else:
                return

    def _look(self) -> None:
        """Look at what may change at any time: sites that come and go, the list of sites, disk, certificate."""
        control = self.engine.control
        if control is None:
            return
        try:
            if self.roster.has_changed():
                self.roster.sync(control)
                self.status.set_sites(self.roster.listed)
            self.roster.look_at_nodes(control)
            self.status.set_connected(self.roster.connected)
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

    def _must_wait(self) -> bool:
        """Return whether a person has to release the model first."""
        is_asked = self.config.release != "automatic" or bool(read_doubts(self.run))
        return is_asked and find_release(self.run) is None and read_decision(self.run) is None

    def _wait_for_decision(self) -> None:
        """Keep a proven candidate until somebody has released it; sites stay connected meanwhile."""
        if self._must_wait():
            doubts = " ".join(read_doubts(self.run))
            text = f"The model is proven and waits for its release. To release it, type: {self._release_command}"
            if doubts:
                self._note(doubts)
                text = (
                    f"WARNING: {doubts} The model is not released by itself. Look at the report first; to release it "
                    f"all the same, type: {self._release_command}"
                )
            self.status.set_state("waiting for release", text)
            self.listener.on_info(text)
        while self._must_wait():
            self._step()
        decision = read_decision(self.run)
        if decision is not None and find_release(self.run) is None:
            check_decided(self.run, decision)
            if self.config.release == "two_persons":
                check_signatures(self.run, self.config)
            self.listener.on_info(f"{decision.by} has released the model.")

    def _release(self) -> None:
        """Sign the model and wait for the sites to collect it."""
        was_released = find_release(self.run) is not None
        self.status.set_state("releasing", "The model is released; the sites collect it.")
        prepare_release(self.run, Path(str(self.config.keys)) / "release.key", self.audit)
        for site in self.receipts.read():  # of an earlier start, so no news
            self.status.set_collected(site, seen=False)
        self.listener.on_info(self._describe_release() if was_released else _RELEASED)
        deadline = time.monotonic() + self.config.collect_wait_s
        while not self._all_collected() and time.monotonic() < deadline:
            self._step()
        left = sorted(self.roster.sites - self.receipts.collected)
        if left:
            self._note(
                f"Not collected by: {', '.join(left)}. Start the same command again when they are back; it then only "
                "serves the model."
            )
        self.status.set_state("finished")

    def _describe_release(self) -> str:
        """Return what a server does that was started again after the release."""
        left = sorted(self.roster.sites - self.receipts.collected)
        others = f"this server only hands it to who has not collected it yet: {', '.join(left)}."
        return (
            "This run is finished and its model was released before; "
            f"{others if left else 'every site has collected it, so there is nothing left to do.'} A new run needs "
            "another run_dir."
        )

    def _all_collected(self) -> bool:
        """Return whether every site on the list has the model; tell of those who got it since the last look."""
        for site in self.receipts.read():
            self.status.set_collected(site)
            self.listener.on_info(f"{site} has collected the model.")
        return self.roster.sites <= self.receipts.collected


def _tell(listener: Listener, event: Event) -> None:
    match event:
        case {"event": "phase", "phase": str(phase), "round": int(number), "num_sites": int(num_sites)}:
            listener.on_phase(phase, number, num_sites)
        case {"event": "answer", "site": str(site), "problem": None | str() as problem}:
            listener.on_answer(site, problem)
        case {"event": "round", "record": record}:
            listener.on_round(RoundRecord.model_validate(record))
        case {"event": "info", "text": str(text)}:
            listener.on_info(text)
        case {"event": "note", "text": str(text)}:
            listener.on_note(text)

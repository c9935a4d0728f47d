"""``python -m client.supernode.supernode``: takes part in a federation on Flower's Fleet API, without PyTorch.

Flower's own SuperNode sleeps 3 s between messages, stores and hashes everything a second time, hands it on over HTTP,
and downloads the server's app. This one asks again at once, hands messages to a worker over a pair of sockets, and
neither downloads nor runs anything that the server offers. It pays: with 2 sites a round of 2 MB takes 0.9 s, and
one of 1 MB took 4.2 s with Flower's.

What happens is told to the supervisor as JSON lines on standard output: ``event``, ``text`` for a person, and numbers.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from client.guard.audit import open_site_audit
from client.hospital.site_key import add_inherit_option, inherit_passphrase
from client.supernode.activation import Activation, SignsOfLife
from client.supernode.assignment import Assignment, Desk
from client.supernode.collected import find_collected
from client.supernode.failures import FleetError, Outlook
from client.supernode.fleet import Fleet
from client.supernode.retry import Retry, Tell
from client.supernode.worker_process import WorkerProcess
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.errors import FedmedError
from fedmed.processes import Backoff, Stopped, private_folder, raise_on_signals, set_up_logging, watch_parent

ENDED, EXPLAINED, RESTART = 0, 3, 75
# The server calls a site online for 60 s after its last sign of life.
_IDENTITY_WAIT_S = 75.0
_COLLECT_LIMIT_S = 3600.0
_EMPTY_ANSWER_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 0.01, 0.1

_logger = logging.getLogger("fedmed.supernode")


class SuperNode:
    """Connects, has messages answered, and collects the model at the end.

    Parameters
    ----------
    config : ClientConfig
        Settings of the site.
    config_file : Path
        Where they were read from; child processes read them again.
    fleet : Fleet
        Line to the server.
    worker : WorkerProcess
        Answers messages.
    tell : Tell
        Hears what happens.
    """

    def __init__(
        self, config: ClientConfig, config_file: Path, fleet: Fleet, worker: WorkerProcess, tell: Tell
    ) -> None:
        self._config, self._config_file = config, config_file
        self._fleet, self._worker, self._tell = fleet, worker, tell
        self._activation = Activation(Path(config.state_dir))
        self._retry = Retry(tell, config.server)
        self._collection = Backoff(first_s=5.0, longest_s=300.0)
        self._collect_at = 0.0

    def run(self) -> int:
        """Take part until the federation has ended; return the exit code.

        Raises
        ------
        FedmedError
            If it makes no sense to go on without a person.
        """
        self._tell("connecting", f"Connecting to {self._config.server} as {self._config.name}.")
        while True:
            node_id = self._connect()
            signs = SignsOfLife(self._fleet, node_id)
            try:
                return self._serve(node_id, signs)
            except FleetError as failure:
                if failure.outlook is Outlook.FATAL:
                    raise
                self._retry.wait(failure)
            finally:
                signs.stop()

    def leave(self) -> None:
        """Disconnect, so that the server does not wait for this site."""
        node_id = self._activation.read()
        if node_id is not None:
            with suppress(FleetError):
                self._fleet.deactivate(node_id)
                self._activation.clear()

    def _connect(self) -> int:
        """Activate this site, however long it takes."""
        refused: dict[Outlook, float] = {}
        limits_s = {Outlook.NOT_ACTIVATED: _IDENTITY_WAIT_S}
        while True:
            self._end_old_activation()
            try:
                node_id = self._activate()
            except FleetError as failure:
                if failure.is_passing:
                    refused.clear()
                    self._retry.wait(failure)
                    continue
                limit_s = limits_s.get(failure.outlook, 0.0)
                since = refused.setdefault(failure.outlook, time.monotonic())
                if time.monotonic() - since >= limit_s:
                    raise
                self._retry.note_failure(failure, f" Trying for another {limit_s:.0f} s.")
                time.sleep(min(3.0, limit_s / 5))
            else:
                self._activation.write(node_id)
                self._retry.note_success()
                self._tell("waiting", f"Connected to {self._config.server}; waiting for its requests.")
                return node_id

    def _activate(self) -> int:
        try:
            return self._fleet.activate()
        except FleetError as failure:
            if failure.outlook is not Outlook.NOT_ACTIVATED:
                raise
            # Flower says the same of an unknown key as of one that is connected already; our own request does not.
            self._fleet.hello()
            raise FleetError(
                f"The key of this site ({self._fleet.fingerprint}) is connected to {self._config.server} from "
                "elsewhere, or was until a minute ago. One key serves one flower-client: end the other one, or have a "
                "kit made for a further site.",
                Outlook.NOT_ACTIVATED,
            ) from failure

    def _end_old_activation(self) -> None:
        node_id = self._activation.read()
        if node_id is None:
            return
        try:
            self._fleet.deactivate(node_id)
        except FleetError as failure:
            if failure.is_passing:
                return  # the activation that follows says what is wrong
        self._activation.clear()

    def _serve(self, node_id: int, signs: SignsOfLife) -> int:
        desk = Desk(self._config, self._config_file, self._fleet, self._retry, signs, self._worker, self._tell)
        pause = _FIRST_PAUSE_S
        while True:
            asked_at = time.monotonic()
            # A failure here is not repeated: the answer may have held a message, which is then lost. Connecting anew
            # makes the server send it again.
            pulled = self._fleet.pull_message(node_id)
            self._retry.note_success()
            if pulled.message is not None and pulled.tree is not None:
                self._handle(Assignment(desk, node_id, pulled.message, pulled.tree))
            elif pulled.release is not None and time.monotonic() >= self._collect_at:
                if self._collect(pulled.release):
                    return ENDED
            elif time.monotonic() - asked_at < _EMPTY_ANSWER_S:
                time.sleep(pause)  # whatever arrives at the server ends the waiting of all sites
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S

    def _handle(self, assignment: Assignment) -> None:
        try:
            assignment.carry_out()
        except FleetError as failure:
            if failure.outlook is not Outlook.RUN_OVER and not failure.is_passing:
                raise
            self._tell("waiting", f"'{assignment.kind}' is given up: {failure}")

    def _collect(self, sha256: str) -> bool:
        """Fetch the released model; return whether it is here."""
        if find_collected(Path(self._config.state_dir)).manifest_sha256 == sha256:
            open_site_audit(Path(self._config.state_dir)).append("release_confirmed", manifest_sha256=sha256)
            self._retry.repeat(lambda: self._fleet.report_collected(sha256))
            self._tell("ended", "The federation has ended; its model is here already.")
            return True
        self._tell("waiting", "The federation has ended; collecting its model.")
        code, said = _run_release(self._config_file, sha256)
        if code == 0:
            self._tell("collected", said or "The released model is in the state folder.", sha256=sha256)
            self._tell("ended", "The federation has ended.")
            return True
        pause = self._collection.next()
        self._collect_at = time.monotonic() + pause
        self._tell("lost", f"The model could not be collected yet; trying again in {pause:.0f} s. {said}".rstrip())
        return False


def _run_release(config_file: Path, sha256: str) -> tuple[int, str]:
    """Run ``client.release.collect`` in a process of its own, which may import PyTorch; return code and last line."""
    arguments, descriptors = inherit_passphrase()
    command = [sys.executable, "-P", "-m", "client.release.collect", "--config", str(config_file), "--manifest", sha256]
    process = subprocess.Popen(  # noqa: S603  the command is our own
        [*command, *arguments],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output = process.communicate(timeout=_COLLECT_LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        return 1, "It took longer than an hour."
    finally:
        process.kill()
        process.wait()
    _logger.info("client.release.collect ended with code %d:\n%s", process.returncode, output)
    lines = output.strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


def _tell_supervisor(event: str, text: str, **values: str | float) -> None:
    _logger.info("%s: %s", event, text)
    with suppress(BrokenPipeError):
        print(json.dumps({"event": event, "text": text, **values}), flush=True)


def _take_part(config_file: Path, app: str) -> int:
    config = load_client_config(config_file)
    state_dir = private_folder(Path(config.state_dir))
    set_up_logging(state_dir / "logs" / "supernode.log")
    threads = config.threads or len(os.sched_getaffinity(0))
    worker = WorkerProcess(app, threads, state_dir, config.device)
    try:
        with Fleet(config) as fleet:
            node = SuperNode(config, config_file, fleet, worker, _tell_supervisor)
            worker.start()  # it imports PyTorch while this process connects
            try:
                return node.run()
            finally:
                node.leave()
    finally:
        worker.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="client.yaml")
    parser.add_argument("--app", default="client.site:app", help="module:attribute of the installed ClientApp")
    parser.add_argument("--parent", type=int, help="process id of the supervisor")
    add_inherit_option(parser)
    options = parser.parse_args(arguments)
    if options.parent is not None:
        watch_parent(options.parent)
    raise_on_signals()
    try:
        return _take_part(options.config.absolute(), options.app)
    except Stopped:
        return RESTART
    except FedmedError as error:
        _tell_supervisor("refused", str(error))
        return EXPLAINED
    except Exception:
        _logger.exception("The SuperNode failed.")
        return RESTART


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)  # a transfer may still hang in the network in a thread, which Python would wait for

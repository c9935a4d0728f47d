"""What ``flower-client`` does while it takes part: start the SuperNode process, watch it, start it again.

This process holds no model and no image. It passes on what the SuperNode says, and answers the hospital's monitoring.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from client.guard.approvals import NOT_APPROVED
from client.guard.audit import open_site_audit
from client.hospital.site_key import inherit_passphrase, prepare_site_key
from client.supernode.collected import find_collected, read_collected
from client.supernode.keeping import delete_what_is_kept_no_longer
from fedmed.config.client import ClientConfig
from fedmed.errors import FedmedError, ProcessError
from fedmed.health import HealthService
from fedmed.processes import (
    Backoff,
    Child,
    Event,
    EventQueue,
    RepeatedLines,
    child_environment,
    private_folder,
    single_instance,
)

_STEP_S = 0.2
_ENDED = 0
_EXPLAINED = 3
_MAX_RESTARTS = 10
_WELL_AFTER_S = 300.0
_LEAST_FREE_BYTES = 256 * 2**20
_NOT_ENDED = "its federation has not ended, as far as this site knows."
_KEPT = "It is kept; flower-client --forget --all removes it as well."
_REMOVED_ALL_THE_SAME = "It is removed because of --all."


def take_part(config: ClientConfig, config_file: Path, client_app: str) -> int:
    """Take part in a federation until it has ended.

    Parameters
    ----------
    config : ClientConfig
        Settings.
    config_file : Path
        Where they were read from; the child processes read them again.
    client_app : str
        ``module:attribute`` of the installed ClientApp.

    Returns
    -------
    int
        Exit code: 0 when the model has come home.

    Raises
    ------
    FedmedError
        If it makes no sense to go on, with what to do.
    """
    prepare_site_key(config)
    state_dir = private_folder(Path(config.state_dir))
    (state_dir / "logs").mkdir(exist_ok=True)
    with single_instance(state_dir / "client.lock", "a flower-client with this state folder"):
        open_site_audit(state_dir).append("start", site=config.name)
        _delete_old(config)
        with HealthService(config.health) as health:
            code = _Supervisor(config, config_file, client_app, health).run()
        _delete_old(config)
        return code


class _Supervisor:
    """Keeps the SuperNode process alive.

    A process that has stayed up for ``well_after_s`` seconds has proved itself: what went wrong before is forgotten.
    """

    def __init__(
        self,
        config: ClientConfig,
        config_file: Path,
        client_app: str,
        health: HealthService,
        *,
        well_after_s: float = _WELL_AFTER_S,
    ) -> None:
        self._state_dir = Path(config.state_dir)
        self._health = health
        self._well_after_s = well_after_s
        self._backoff = Backoff(1.0, 30.0, reset_after_s=well_after_s, clock=time.monotonic)
        self._restarts = 0
        self._started_at = 0.0
        self._last_refusal = ""
        self._held = self._last_failure = ""
        self._events = EventQueue()
        arguments, descriptors = inherit_passphrase()
        self._failures = RepeatedLines()
        self._child = Child(
            "supernode",
            [
                sys.executable, "-P", "-m", "client.supernode.supernode", "--config", str(config_file),
                "--app", client_app, "--parent", str(os.getpid()), *arguments,
            ],
            self._state_dir / "logs" / "supernode.out",
            child_environment(self._state_dir / "flwr", network=True),
            descriptors,
            on_line=self._events,
        )  # fmt: skip

    def run(self) -> int:
        try:
            self._start()
            while True:
                time.sleep(_STEP_S)
                self._pass_on_events()
                free = shutil.disk_usage(self._state_dir).free
                self._health.set("disk", free > _LEAST_FREE_BYTES, f"{free / 2**20:.0f} MiB free")
                code = self._child.poll()
                if code is None:
                    continue
                self._pass_on_events()
                if code == _ENDED:
                    return 0
                if code == _EXPLAINED:
                    log_file = self._state_dir / "logs" / "supernode.log"
                    raise FedmedError(self._last_refusal or f"The connection was refused; see {log_file}.")
                self._restart(code)
        finally:
            self._child.stop()

    def _start(self) -> None:
        self._child.start()
        self._started_at = time.monotonic()
        self._backoff.succeeded()  # counts once it has gone well for long enough
        self._health.set("process", True)

    def _restart(self, code: int) -> None:
        self._health.set("process", False, f"the process ended with code {code}")
        if time.monotonic() - self._started_at >= self._well_after_s:
            self._restarts = 0
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise ProcessError(
                f"The process of this site has ended {self._restarts} times, at last with code {code}. Its log says "
                f"why: {self._child.log_file} and {self._child.log_file.with_name('supernode.log')}."
            )
        pause = self._backoff.next()
        _print(f"The process of this site ended (code {code}); it is started again in {pause:.0f} s.")
        time.sleep(pause)
        self._start()

    def _pass_on_events(self) -> None:
        for event in self._events.read():
            self._take(event)
        for line in self._failures.poll():
            _print(line)

    def _take(self, event: Event) -> None:
        kind, text = str(event.get("event")), str(event.get("text", ""))
        for line in self._failures.take(text) if kind in {"failed", "refused"} else [text]:
            if line:
                self._say(kind, str(event.get("kind")), line)
        if kind in {"connected", "waiting", "task", "failed", "reply"}:
            self._health.set("connection", True)
        elif kind in {"connecting", "lost", "refused"}:
            self._health.set("connection", False, text)
        if kind == "refused":
            self._last_refusal = text

    def _say(self, event: str, request: str, text: str) -> None:
        """Pass on a line; a greeting of the server that fails as the last one did is not told again and again."""
        if event == "task" and request == "query":
            self._held = text
            return
        if event == "failed" and text == self._last_failure:
            self._held = ""
            return
        for line in filter(None, (self._held, text)):
            _print(line)
        if event == "failed" and NOT_APPROVED in text and NOT_APPROVED not in self._last_failure:
            _print("Waiting for approval: read and approve the plan in another window with flower-client --approve.")
        self._held, self._last_failure = "", text if event == "failed" else ""


def forget(config: ClientConfig, *, everything: bool = False) -> list[str]:
    """Remove what this site keeps of federations, and return what was removed.

    What stays, and why, is listed by :func:`client.supernode.keeping.list_left`.

    Parameters
    ----------
    config : ClientConfig
        Settings.
    everything : bool
        Also of federations that have not ended as far as this site knows, for example because they were given up.

    Raises
    ------
    FedmedError
        If a flower-client is running, or it cannot be known which federations have ended.
    """
    state_dir = Path(config.state_dir)
    if not state_dir.is_dir():
        return []
    with single_instance(state_dir / "client.lock", "a flower-client with this state folder"):
        finished = (find_collected if everything else read_collected)(state_dir).run_ids
        runs = sorted((state_dir / "runs").glob("*")) if (state_dir / "runs").is_dir() else []
        removed = []
        for run in runs:
            if run.name not in finished:
                _print(f"{run}: {_NOT_ENDED} {_REMOVED_ALL_THE_SAME if everything else _KEPT}")
                if not everything:
                    continue
            shutil.rmtree(run)
            removed.append(str(run))
        if removed:
            open_site_audit(state_dir).append("forget", runs=[Path(run).name for run in removed])
        return removed


def _delete_old(config: ClientConfig) -> None:
    deleted = delete_what_is_kept_no_longer(config)
    if deleted:
        _print(f"Deleted, as 'keep' in client.yaml says: {', '.join(deleted)}.")


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""What ``flower-client`` does while it takes part: start the SuperNode process, watch it, start it again.

This process holds no model and no image. It passes on what the SuperNode says, and answers the hospital's monitoring.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from fedmed.audit import AuditLog
from fedmed.deployment import ClientConfig
from fedmed.errors import FedmedError, ProcessError
from fedmed.health import HealthService
from fedmed.processes import Backoff, Child, EventQueue, child_environment, private_folder, single_instance

_STEP_S = 0.2
_ENDED = 0
_EXPLAINED = 3
_MAX_RESTARTS = 10
_LEAST_FREE_BYTES = 256 * 2**20


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
    state_dir = private_folder(Path(config.state_dir))
    (state_dir / "logs").mkdir(exist_ok=True)
    with single_instance(state_dir / "client.lock", "a flower-client with this state folder"):
        AuditLog(state_dir / "audit.jsonl").append("start", site=config.name)
        with HealthService(config.health) as health:
            return _Supervisor(config, config_file, client_app, health).run()


class _Supervisor:
    def __init__(self, config: ClientConfig, config_file: Path, client_app: str, health: HealthService) -> None:
        self._state_dir = Path(config.state_dir)
        self._health = health
        self._backoff = Backoff(first_s=1.0, longest_s=30.0, reset_after_s=120.0)
        self._last_refusal = ""
        self._events = EventQueue()
        self._child = Child(
            "supernode",
            [
                sys.executable, "-P", "-m", "client.supernode", "--config", str(config_file), "--app", client_app,
                "--parent", str(os.getpid()),
            ],
            self._state_dir / "logs" / "supernode.out",
            child_environment(self._state_dir / "flwr"),
            on_line=self._events,
        )  # fmt: skip

    def run(self) -> int:
        restarts = 0
        try:
            self._child.start()
            self._health.set("process", True)
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
                    raise FedmedError(self._last_refusal or "The connection was refused; see logs/supernode.log.")
                restarts += 1
                self._restart(code, restarts)
        finally:
            self._child.stop()

    def _restart(self, code: int, restarts: int) -> None:
        self._health.set("process", False, f"the process ended with code {code}")
        if restarts > _MAX_RESTARTS:
            raise ProcessError(
                f"The process of this site has ended {restarts} times, at last with code {code}. Its log says why: "
                f"{self._child.log_file} and supernode.log beside it."
            )
        pause = self._backoff.next()
        _print(f"The process of this site ended (code {code}); it is started again in {pause:.0f} s.")
        time.sleep(pause)
        self._child.start()
        self._health.set("process", True)

    def _pass_on_events(self) -> None:
        for event in self._events.read():
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        kind, text = str(event.get("event")), str(event.get("text", ""))
        if text:
            _print(text)
        if kind in {"connected", "waiting", "task", "reply"}:
            self._health.set("connection", True)
        elif kind in {"connecting", "lost", "refused"}:
            self._health.set("connection", False, text)
        if kind == "refused":
            self._last_refusal = text


def forget(config: ClientConfig) -> list[str]:
    """Remove what this site keeps of finished federations, and return what was removed.

    The audit log, the released model and the reports stay.

    Raises
    ------
    FedmedError
        If a federation has not ended yet or a flower-client is running.
    """
    state_dir = Path(config.state_dir)
    if not state_dir.is_dir():
        return []
    with single_instance(state_dir / "client.lock", "a flower-client with this state folder"):
        collected = state_dir / "collected.json"
        runs = sorted((state_dir / "runs").glob("*")) if (state_dir / "runs").is_dir() else []
        finished = json.loads(collected.read_text()).get("run_ids", []) if collected.is_file() else []
        removed = []
        for run in runs:
            if run.name not in finished:
                _print(f"{run} is kept: its federation has not ended, as far as this site knows.")
                continue
            shutil.rmtree(run)
            removed.append(str(run))
        if removed:
            AuditLog(state_dir / "audit.jsonl").append("forget", runs=[Path(run).name for run in removed])
        return removed


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

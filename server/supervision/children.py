"""The two processes behind ``flower-server``: Flower's SuperLink and the executor of the ServerApp."""

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmed.config.addresses import split_address
from fedmed.config.server import ServerConfig
from fedmed.processes import Child, EventQueue, child_environment, find_free_port, private_folder, write_secret
from fedmed.storage.run_folder import RunFolder
from server.release.publish import release_folder
from server.superlink.control import Control

_READY_S = 60.0
_DRAW_EVERY_S = 60.0
EXPLAINED = 3
"""Exit code of an executor that has told in an event ``error`` what a person can do."""
Settings = Mapping[str, str | int | bool]
"""Of a child process, by the names that its own ``Launch`` has."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    name: str
    code: int
    log_file: Path


class Engine:
    """Starts and stops both processes.

    Parameters
    ----------
    config : ServerConfig
        Settings.
    run : RunFolder
        Where everything is written; ``link/`` in it is readable by its owner only.
    server_app : str
        ``module:attribute`` of the ServerApp.
    """

    def __init__(self, config: ServerConfig, run: RunFolder, server_app: str) -> None:
        self._config, self._run, self._server_app = config, run, server_app
        self._folder = private_folder(run.path / "link")
        self.collected_dir = run.path / "collected"
        self.collected_dir.mkdir(exist_ok=True)
        self.hello_file = self._folder / "hello.json"
        self.refused_file = self._folder / "refused.jsonl"
        self.events = EventQueue()
        """What the ServerApp tells."""
        self.control: Control | None = None
        self._private_port = 0
        self._link: Child | None = None
        self._executor: Child | None = None
        self._drawing: Child | None = None
        self._next_drawing = 0.0

    def start_link(self) -> Control:
        """Start the SuperLink and return its Control API once it answers."""
        secret, token = self._folder / "executor.secret", self._folder / "control.token"
        for file in (secret, token):
            write_secret(file, secrets.token_hex(32).encode())
        self._private_port = find_free_port()
        host, port = split_address(self._config.listen, "listen")
        keys = Path(str(self._config.keys))
        launch: Settings = {
            "public_host": host,
            "public_port": port,
            "private_port": self._private_port,
            "certificate": str(keys / "server.pem"),
            "key": str(keys / "server.key"),
            "insecure": self._config.insecure,
            "mutual_tls": self._config.tls == "mutual",
            "authority": str(keys / "ca.pem"),
            "database": str(self._folder / "superlink.db"),
            "objects_dir": str(self._folder / "objects"),
            "superexec_secret_file": str(secret),
            "control_token_file": str(token),
            "hello_file": str(self.hello_file),
            "release_dir": str(release_folder(self._run)),
            "collected_dir": str(self.collected_dir),
            "refused_file": str(self.refused_file),
            "start_open": False,
        }
        self._link = self._start_child("superlink", "server.superlink.process", launch)
        self.control = Control(self._private_port, token.read_text())
        self.control.wait_ready(_READY_S, self._link.poll)
        return self.control

    def start_run(self) -> None:
        """Start a run of Flower and the executor that takes it; the ServerApp resumes by itself."""
        assert self.control is not None, "the SuperLink is started first"
        self.control.stop_stale_runs()
        self.control.start_run(self._run.path)
        launch: Settings = {
            "runtime_port": self._private_port,
            "superexec_secret_file": str(self._folder / "executor.secret"),
            "server_app": self._server_app,
            "run_dir": str(self._run.path),
            "threads": os.cpu_count() or 1,
        }
        self._executor = self._start_child("executor", "server.superlink.executor", launch, on_line=self.events)

    def find_ended(self) -> Ended | None:
        """Return a process that has ended, None while both are up."""
        for child in (self._link, self._executor):
            code = None if child is None else child.poll()
            if child is not None and code is not None:
                return Ended(child.name, code, self._run.logs / f"{child.name}.log")
        return None

    def draw_report(self) -> None:
        """Start drawing the report of the run as far as it has come, but not more often than once a minute."""
        if time.monotonic() < self._next_drawing or (self._drawing is not None and self._drawing.poll() is None):
            return
        self._next_drawing = time.monotonic() + _DRAW_EVERY_S
        self._drawing = Child(
            "interim",
            [sys.executable, "-P", "-m", "server.supervision.interim_report", str(self._run.path)],
            self._run.logs / "interim.out",
            child_environment(self._folder / "flwr"),
        )
        self._drawing.start()

    def stop(self) -> None:
        """Stop both processes; the sites see a server that is away."""
        for child in (self._drawing, self._executor, self._link):
            if child is not None:
                child.stop()
        self._executor = self._link = None
        if self.control is not None:
            self.control.close()
        self.control = None

    def _start_child(self, name: str, module: str, launch: Settings, on_line: EventQueue | None = None) -> Child:
        file = self._folder / f"{name}.json"
        log_file = self._run.logs / f"{name}.log"
        content = {**launch, "parent_pid": os.getpid(), "log_file": str(log_file)}
        write_secret(file, json.dumps(content).encode())
        child = Child(
            name,
            [sys.executable, "-P", "-m", module, "--launch", str(file)],
            self._run.logs / f"{name}.out",
            child_environment(self._folder / "flwr"),
            on_line=on_line,
        )
        child.start()
        return child

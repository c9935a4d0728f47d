"""A real federation on this machine: one server, some sites, each in its own processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fedmed.processes import find_free_port
from fedmed.storage.history import read_history
from fedmed.storage.run_folder import RunFolder
from server.provisioning.provision import provision
from tests.support.approval import approve

ROOT = Path(__file__).resolve().parents[3]


class Process:
    """A command in its own session, with everything that it says in a file."""

    def __init__(self, name: str, arguments: list[str], log: Path, **environment: str) -> None:
        self.name, self.log, self.started = name, log, time.time()
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.support.launch", *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended:\n{self.text()[-3000:]}") from None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL for the command itself; its children must notice."""
        if self.poll() is None:
            self._process.kill()
            self._process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Deployment:
    """Kits, settings and processes of one federation."""

    def __init__(
        self,
        folder: Path,
        sites: int = 2,
        client: dict[str, Any] | None = None,
        artefact: bool = False,
        by_command: bool = False,
        **settings: Any,
    ) -> None:
        """Make the kits; ``by_command`` in a process, as a person does, which takes seconds."""
        self.folder = folder
        self._environment = {} if artefact else {"FEDMED_TEST_TRAIN_FORM": "1"}
        self.names = [f"site_{number + 1:02d}" for number in range(sites)]
        self.port = find_free_port()
        self.approves = True  # whatever plan the server begins with
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        values: dict[str, Any] = {
            "name": "test",
            "address": f"127.0.0.1:{self.port}",
            "listen": f"127.0.0.1:{self.port}",
            "sites": self.names,
            "rounds": 3,
            "min_sites": sites,
            "round_deadline_s": 60,
            "collect_wait_s": 60,
            "benefit": artefact,  # doubles the training, so only where the whole way is gone
            "require_better_than_chance": False,  # after so few rounds
            "classes": ["pattern_plain", "pattern_mesh", "pattern_globules"],
            "model": {"name": "tiny"},
            "data": {"source": "sites", "image_size": 16, "synthetic": True},
            "training": {"optimizer": {"lr": 0.05}, "batch_size": 8},
        }
        plain = folder / "plain.yaml"
        plain.write_text(yaml.safe_dump(values | settings))
        self.kit = folder / "federation"
        if by_command:
            provisioned = self.run("server", "--provision", str(self.kit), "--config", str(plain), "--no-passphrase")
            assert provisioned.returncode == 0, provisioned.stdout
        else:
            provision(self.kit, plain)
        self.config = self.kit / "server.yaml"
        data = {"source": "phantom", "images_per_site": 160, "num_classes": 3, "image_size": 16}
        for name in self.names:
            changes = {"data": data, "data_sites": sites, "data_site": name, "threads": 1, **(client or {})}
            changes["policy"] = {"min_images": 2} | changes.get("policy", {})  # the phantom of these tests has few
            self.change_client(name, **changes)
        self.processes: list[Process] = []

    def change_client(self, name: str, **changes: Any) -> None:
        path = self.kit / "kits" / name / "client.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    def approve(self, *names: str) -> None:
        """Have people at the sites, or at some, approve the plan of the server's greeting."""
        plan = json.loads((self.run_folder.path / "link" / "hello.json").read_text())["plan"]
        for name in names or self.names:
            approve(self.kit / "kits" / name / "state", plan)

    def _approve_soon(self, server: Process) -> None:
        """Approve as soon as there is a greeting, which is before any site can connect."""
        hello = self.run_folder.path / "link" / "hello.json"
        while not hello.is_file() or hello.stat().st_mtime < server.started:
            if server.poll() is not None:
                return
            time.sleep(0.02)
        self.approve()

    def change_server(self, **changes: Any) -> None:
        self.config.write_text(yaml.safe_dump(yaml.safe_load(self.config.read_text()) | changes))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "tests.integration.support.launch", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def start_server(self, extra_path: Path | None = None) -> Process:
        """Start it, perhaps with a folder more on Python's path."""
        process = Process(
            "server",
            ["server", "--config", str(self.config)],
            self.folder / "server.txt",
            FEDMED_TEST_FAULTS=str(self.faults),
            **self._environment,
            **_extend_path(extra_path),
        )
        self.processes.append(process)
        if self.approves:
            threading.Thread(target=self._approve_soon, args=(process,), daemon=True).start()
        return process

    def start_client(self, name: str, kit: Path | None = None, extra_path: Path | None = None) -> Process:
        config = (kit or self.kit / "kits" / name) / "client.yaml"
        process = Process(
            name,
            ["client", "--config", str(config)],
            self.folder / f"{name}.txt",
            FEDMED_TEST_FAULTS=str(self.faults),
            FEDMED_TEST_SITE=name,
            **_extend_path(extra_path),
        )
        self.processes.append(process)
        return process

    def start(self) -> tuple[Process, list[Process]]:
        return self.start_server(), [self.start_client(name) for name in self.names]

    def read_status(self) -> dict[str, Any]:
        """Return what ``--status --json`` prints; warnings are beside it."""
        command = ["server", "--config", str(self.config), "--status", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.integration.support.launch", *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def set_fault(self, site: str, kind: str, round_number: int = 2, **more: Any) -> None:
        fault = {"kind": kind, "round": round_number, **more}
        (self.faults / f"{site}.json").write_text(json.dumps(fault))

    def fault_seen(self, site: str) -> bool:
        return (self.faults / f"{site}.seen").exists()

    @property
    def run_folder(self) -> RunFolder:
        return RunFolder(self.kit / "run")

    def history(self) -> list[dict[str, Any]]:
        file = self.run_folder.history_file
        return [record.to_json() for record in read_history(file)]

    def statuses(self, round_number: int) -> dict[str, str]:
        record = next(record for record in self.history() if record["round"] == round_number)
        return {line["site"]: line["status"] for line in record["participation"]}

    def reason(self, round_number: int, site: str) -> str:
        record = next(record for record in self.history() if record["round"] == round_number)
        return next(line["reason"] or "" for line in record["participation"] if line["site"] == site)

    def final_model(self) -> bytes:
        newest = sorted(self.run_folder.checkpoints.glob("round_*"))[-1]
        return (newest / "model.safetensors").read_bytes()

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except AssertionError:
                process.kill()


def _extend_path(folder: Path | None) -> dict[str, str]:
    return {} if folder is None else {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


@contextmanager
def deploy(folder: Path, **settings: Any) -> Iterator[Deployment]:
    deployment = Deployment(folder, **settings)
    try:
        yield deployment
    finally:
        deployment.stop()


def wait_for(what: str, condition: Callable[[], object], timeout: float = 90.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"{what} has not happened within {timeout:g} s")

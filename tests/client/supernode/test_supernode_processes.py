"""The SuperNode as real processes, with a real SuperLink."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message

from client.supernode import supernode as supernode_module
from client.supernode.supernode import ENDED, RESTART
from fedmed.keys import make_site_key
from fedmed.processes import child_environment
from tests.client.support.apps import flip, make_request, read_data
from tests.client.support.fake_fleet import make_kit
from tests.client.support.waiting import is_alive, wait_until


class Hospital:
    """A SuperNode process with its worker, and the events that it prints."""

    def __init__(self, folder: Path, link, name: str) -> None:
        self.folder, self.name = folder, name
        folder.mkdir()
        make_site_key(folder, name)
        self.public_line = (folder / "site.pub").read_text()
        (folder / "ca.pem").write_bytes((link.folder / "ca.pem").read_bytes())
        make_kit(folder, link.public_port)
        self.events: list[dict] = []
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "client.supernode.supernode", "--config", str(self.folder / "client.yaml")]
        self.process = subprocess.Popen(
            [*command, "--app", "tests.client.support.apps:app", "--parent", str(os.getpid())],
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(self.folder / "flwr", {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}),
        )
        self.events = []
        threading.Thread(target=self._read, args=(self.process.stdout, self.events), daemon=True).start()

    def _read(self, stream, events) -> None:
        with stream:
            for line in stream:
                events.append(json.loads(line))

    def count(self, event: str) -> int:
        return sum(found["event"] == event for found in self.events)

    def wait_for(self, event: str, times: int = 1) -> None:
        wait_until(lambda: self.count(event) >= times)

    def stop(self, number=signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


@contextmanager
def running_hospital(folder, link, control):
    hospital = Hospital(folder, link, "north")
    (hospital.node_id,) = control.sync_sites({"north": hospital.public_line}).values()
    hospital.start()
    try:
        yield hospital
    finally:
        hospital.process.kill()
        hospital.process.wait()


def exchange(grid, node_id, content, seconds=120.0):
    """Send one message and return the reply."""
    ids = set(grid.push_messages([Message(content, dst_node_id=node_id, message_type="train", ttl=seconds)]))
    found: list[Message] = []

    def look():
        found.extend(grid.pull_messages(ids))
        return found

    wait_until(look, seconds)
    return found[0]


def test_a_real_superlink_and_real_processes(tmp_path):
    from tests.server.support.real_link import running_link, running_task

    data = os.urandom(7_000_000)
    with (
        running_link(tmp_path / "link") as (link, control),
        running_hospital(tmp_path / "north", link, control) as north,
    ):
        north.wait_for("waiting")
        with running_task(link, control, tmp_path) as (grid, _):
            wait_until(lambda: list(grid.get_node_ids()) == [north.node_id])
            assert read_data(exchange(grid, north.node_id, make_request("flip", data))) == flip(data)

            reply = exchange(grid, north.node_id, make_request("die"))
            assert reply.error.reason.startswith("the site's worker process ended (SIGKILL")
            assert read_data(exchange(grid, north.node_id, make_request("flip", b"abc"))) == b"cba"

            # The process dies while its worker is busy: the next one is let in at once, and gets the message again.
            mark = tmp_path / "mark"
            (message_id,) = grid.push_messages(
                [
                    Message(
                        make_request("hang", mark=str(mark)),
                        dst_node_id=north.node_id,
                        message_type="train",
                        ttl=60,
                    )
                ]
            )
            wait_until(mark.exists)
            (worker,) = north.children()
            north.stop(signal.SIGKILL)
            wait_until(lambda: not is_alive(worker))
            mark.unlink()
            begin = time.monotonic()
            north.start()
            north.wait_for("waiting")
            assert time.monotonic() - begin < 30  # Flower calls a killed site online for 60 s
            wait_until(lambda: list(grid.pull_messages([message_id])) == [] and mark.exists())

            # No secret in the arguments of any process.
            secret = (north.folder / "site.key").read_text().splitlines()[1]
            for pid in [north.process.pid, *north.children()]:
                assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
        assert north.stop() == RESTART
        assert not control.list_nodes()[north.node_id].online
        assert not (north.folder / "state" / "session.json").exists()
        logs = "".join(path.read_text() for path in (north.folder / "state" / "logs").iterdir())
        assert secret not in logs


def test_the_superlink_is_killed_and_comes_back(tmp_path):
    from tests.server.support.real_link import running_link, running_task

    with (
        running_link(tmp_path / "link") as (link, control),
        running_hospital(tmp_path / "north", link, control) as north,
    ):
        north.wait_for("waiting")
        link.process.kill()
        link.process.wait()
        north.wait_for("lost")
        control.close()
        new_control = link.start()
        north.wait_for("waiting", 2)
        with running_task(link, new_control, tmp_path) as (grid, _):
            wait_until(lambda: list(grid.get_node_ids()) == [north.node_id])
            assert read_data(exchange(grid, north.node_id, make_request("flip", b"abc"))) == b"cba"
            # The release appears while the site waits; there is nothing to collect yet, so it tries again later.
            manifest = b'{"files": {}}'
            (link.release / "manifest.json").write_bytes(manifest)
            (north.folder / "state" / "collected.json").write_text(
                json.dumps({"manifest_sha256": hashlib.sha256(manifest).hexdigest()})
            )
            assert north.process.wait(30) == ENDED
        wait_until((link.folder / "collected" / f"{north.node_id}.json").exists, 5)
        assert north.events[-1]["event"] == "ended"
        new_control.close()


def test_an_unknown_site_ends_with_one_clear_line(tmp_path, monkeypatch):
    from tests.server.support.real_link import running_link

    with running_link(tmp_path / "link") as (link, control):
        stranger = Hospital(tmp_path / "stranger", link, "stranger")
        control.sync_sites({})
        stranger.start()
        assert stranger.process.wait(60) == supernode_module.EXPLAINED
        wait_until(lambda: stranger.count("refused") == 1, 5)
        assert "unknown there or was revoked" in stranger.events[-1]["text"]

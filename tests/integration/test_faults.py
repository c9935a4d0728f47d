"""Faults from the field, each with real processes: ``pytest -m faults``.

Every one ends in a round that is completed or repeated, nothing lost but the round under way, and one clear line.
"""

import shutil
import socket
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.numpy

from fedmed.keys import Authority
from tests.integration.support.deployment import Deployment, Process, deploy, wait_for

pytestmark = pytest.mark.faults

STATEFUL: dict[str, Any] = {
    "batch_norm": "local",
    "compression": "int8",
    "model": {"name": "tiny", "width": 64},  # large enough that its convolution is sent in 8 bits
    "training": {"optimizer": {"lr": 0.05}, "batch_size": 8, "keep_momentum": True},
}


@pytest.fixture(scope="module")
def undisturbed_bits(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Final model of a run that keeps momentum, BatchNorm and rounding errors at the sites."""
    with deploy(tmp_path_factory.mktemp("stateful"), **STATEFUL) as deployment:
        server, _ = deployment.start()
        assert server.wait(180) == 0, server.text()
        kept = sorted((deployment.kit / "kits" / "site_01" / "state" / "runs").rglob("round_*.safetensors"))[-1]
        names = safetensors.numpy.load_file(kept)
        assert {name.split("/")[0] for name in names} == {"local", "momentum", "residual"}
        return deployment.final_model()


def assert_finished(deployment: Deployment, server: Process, timeout: float = 180) -> None:
    assert server.wait(timeout) == 0, server.text()
    assert [record["round"] for record in deployment.history()] == [1, 2, 3]
    assert "Traceback" not in server.text()


def test_client_stops_and_comes_back_under_the_same_name(tmp_path: Path) -> None:
    with deploy(tmp_path, min_sites=1) as deployment:
        deployment.set_fault("site_01", "slow", seconds=30)  # round 2 lasts long enough to come back
        server, (_, site_02) = deployment.start()
        wait_for("round 1", lambda: len(deployment.history()) >= 1)
        site_02.signal(15)
        assert site_02.wait(30) == 130
        again = deployment.start_client("site_02")
        assert_finished(deployment, server)
        assert again.wait(60) == 0
        # if it had been asked before it stopped, it is asked once more when it is back
        assert deployment.statuses(2)["site_02"] in {"accepted", "absent"}
        assert deployment.statuses(3) == {"site_01": "accepted", "site_02": "accepted"}


def test_client_that_hangs_past_the_deadline_is_left_out(tmp_path: Path) -> None:
    with deploy(tmp_path, min_sites=1, round_deadline_s=15) as deployment:
        deployment.set_fault("site_02", "hang")
        server, (_, site_02) = deployment.start()
        assert_finished(deployment, server)
        assert deployment.statuses(2) == {"site_01": "accepted", "site_02": "late"}
        assert "round_deadline_s = 15" in deployment.reason(2, "site_02")
        assert "worker" in site_02.text()


@pytest.mark.parametrize(
    ("kind", "word"),
    [("shape", "shape"), ("keys", "lacks"), ("count", "number of training images"), ("huge", "times as long as usual")],
)
def test_bad_update_is_quarantined(tmp_path: Path, kind: str, word: str) -> None:
    with deploy(tmp_path, min_sites=1) as deployment:
        deployment.set_fault("site_02", kind)
        server, _ = deployment.start()
        assert_finished(deployment, server)
        assert deployment.statuses(2) == {"site_01": "accepted", "site_02": "quarantined"}
        assert word in deployment.reason(2, "site_02")


def test_site_whose_app_fails_tells_nothing_about_patients(tmp_path: Path) -> None:
    with deploy(tmp_path, min_sites=1) as deployment:
        deployment.set_fault("site_02", "raise")
        server, _ = deployment.start()
        assert_finished(deployment, server)
        assert deployment.statuses(2)["site_02"] == "error"
        for path in deployment.run_folder.path.rglob("*"):
            if path.is_file() and path.suffix != ".safetensors":
                assert b"12345 has" not in path.read_bytes(), path


def test_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    with deploy(tmp_path, min_sites=1) as deployment:
        deployment.set_fault("site_02", "exit")
        server, (_, site_02) = deployment.start()
        assert_finished(deployment, server)
        assert deployment.statuses(2)["site_02"] == "error"
        assert deployment.statuses(3)["site_02"] == "accepted"
        assert site_02.wait(30) == 0


@pytest.mark.parametrize("moment", ["mid-round", "between rounds"])
def test_server_killed_with_state_at_the_sites_gives_the_same_bits(
    tmp_path: Path, undisturbed_bits: bytes, moment: str
) -> None:
    with deploy(tmp_path, **STATEFUL) as deployment:
        if moment == "mid-round":
            deployment.set_fault("site_02", "slow", seconds=5)
        server, clients = deployment.start()
        if moment == "mid-round":
            wait_for("training of round 2", lambda: deployment.fault_seen("site_02"))
            time.sleep(1)  # site_01 has answered by now
        else:
            wait_for("the end of round 1", lambda: len(deployment.history()) >= 1)
        server.kill()
        again = deployment.start_server()
        assert_finished(deployment, again)
        assert [client.wait(60) for client in clients] == [0, 0]
        assert deployment.final_model() == undisturbed_bits


@pytest.mark.parametrize("victim", ["server.superlink.process", "server.superlink.executor"])
def test_child_of_the_server_killed(tmp_path: Path, victim: str) -> None:
    with deploy(tmp_path) as deployment:
        deployment.set_fault("site_02", "slow", seconds=5)
        server, clients = deployment.start()
        wait_for("training of round 2", lambda: deployment.fault_seen("site_02"))
        children = psutil.Process(server.pid).children(recursive=True)
        next(child for child in children if victim in child.cmdline()).kill()
        assert_finished(deployment, server)
        assert [client.wait(60) for client in clients] == [0, 0]
        assert "is started again" in " ".join(server.text().split()) or "started again" in server.text()


class Cut:
    """A TCP proxy that can be cut: connections end, new ones are refused."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_cut = False
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in (*self._open, self._listener):
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(inner)
            if not self.is_cut:
                with suppress(OSError):
                    outer = socket.create_connection(("127.0.0.1", self._target))
                    self._open.append(outer)
                    for source, sink in ((inner, outer), (outer, inner)):
                        threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()
                    continue
            inner.close()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_network_cut_for_a_minute(tmp_path: Path) -> None:
    with deploy(tmp_path, round_deadline_s=180) as deployment, closing(Cut(deployment.port)) as proxy:
        deployment.change_client("site_02", server=f"127.0.0.1:{proxy.port}")
        deployment.set_fault("site_02", "slow", seconds=3)
        server = deployment.start_server()
        wait_for("the server", lambda: "Sites reach this server" in server.text())
        deployment.start_client("site_01")
        site_02 = deployment.start_client("site_02")
        wait_for("training of round 2", lambda: deployment.fault_seen("site_02"))
        proxy.cut()
        time.sleep(60)
        proxy.mend()
        assert_finished(deployment, server, 240)
        assert site_02.wait(60) == 0
        assert deployment.statuses(2) == {"site_01": "accepted", "site_02": "accepted"}
        assert "is back after" in site_02.text()


def test_disk_full_while_checkpointing(tmp_path: Path) -> None:
    with deploy(tmp_path) as deployment:
        (deployment.faults / "disk_full").write_text("2")
        server, clients = deployment.start()
        assert server.wait(120) == 1
        assert "disk is full" in server.text()
        assert "Traceback" not in server.text()
        assert [record["round"] for record in deployment.history()] == [1]
        again = deployment.start_server()
        assert_finished(deployment, again)
        assert [client.wait(60) for client in clients] == [0, 0]


def test_corrupt_newest_checkpoint_falls_back(tmp_path: Path) -> None:
    with deploy(tmp_path) as deployment:
        deployment.set_fault("site_02", "slow", 3, seconds=20)
        server, _ = deployment.start()
        wait_for("round 2", lambda: len(deployment.history()) >= 2)
        server.kill()
        newest = sorted(deployment.run_folder.checkpoints.glob("round_*"))[-1] / "model.safetensors"
        data = bytearray(newest.read_bytes())
        data[-1] ^= 1
        newest.write_bytes(data)
        again = deployment.start_server()
        assert_finished(deployment, again)
        assert "Going on from round 1" in " ".join(again.text().split())


def test_two_clients_with_one_identity(tmp_path: Path) -> None:
    with deploy(tmp_path) as deployment:
        deployment.set_fault("site_01", "slow", seconds=15)
        server, _ = deployment.start()
        wait_for("training of round 2", lambda: deployment.fault_seen("site_01"))
        copy = tmp_path / "copy"
        shutil.copytree(deployment.kit / "kits" / "site_02", copy, ignore=shutil.ignore_patterns("state"))
        twin = deployment.start_client("site_02", copy)
        wait_for("the twin's line", lambda: "from elsewhere" in twin.text(), 60)
        assert_finished(deployment, server)
        assert all(set(deployment.statuses(number).values()) == {"accepted"} for number in (1, 2, 3))


def test_second_client_on_the_same_state_folder(tmp_path: Path) -> None:
    with deploy(tmp_path) as deployment:
        first = deployment.start_client("site_01")
        wait_for("the first", lambda: "Connecting" in first.text())
        second = deployment.run("client", "--config", str(deployment.kit / "kits/site_01/client.yaml"))
        assert second.returncode == 1
        assert str(first.pid) in second.stdout


def test_expired_server_certificate(tmp_path: Path) -> None:
    with deploy(tmp_path) as deployment:
        long_ago = datetime.now(UTC) - timedelta(days=400)
        Authority.load(deployment.kit).issue_server_certificate(deployment.kit, ["127.0.0.1"], days=365, now=long_ago)
        (deployment.kit / "ca.key").rename(tmp_path / "ca.key")  # it cannot renew itself
        server = deployment.start_server()
        site = deployment.start_client("site_01")
        wait_for("the site's line", lambda: "expired" in site.text(), 60)
        wait_for("the server's line", lambda: "expired" in server.text(), 60)
        shutil.copy(tmp_path / "ca.key", deployment.kit / "ca.key")
        server.signal(15)
        server.wait(30)
        again = deployment.start_server()
        other = deployment.start_client("site_02")
        assert_finished(deployment, again)
        assert [process.wait(60) for process in (site, other)] == [0, 0]


def test_port_taken(tmp_path: Path) -> None:
    with deploy(tmp_path) as deployment, socket.create_server(("127.0.0.1", deployment.port)):
        server = deployment.start_server()
        assert server.wait(60) == 1
        assert str(deployment.port) in server.text()
        assert "listen" in server.text()
        assert "Traceback" not in server.text()


def test_site_revoked_and_added_while_the_federation_runs(tmp_path: Path) -> None:
    with deploy(tmp_path, min_sites=1, rounds=3) as deployment:
        deployment.set_fault("site_01", "slow", 1, seconds=15)
        server, (_, site_02) = deployment.start()
        wait_for("training of round 1", lambda: deployment.fault_seen("site_01"))
        revoked = deployment.run("server", "--config", str(deployment.config), "--revoke-site", "site_02")
        assert revoked.returncode == 0, revoked.stdout
        added = deployment.run("server", "--config", str(deployment.config), "--add-site", "site_03", "--no-passphrase")
        assert added.returncode == 0, added.stdout
        data = {"source": "phantom", "images_per_site": 160, "num_classes": 3, "image_size": 16}
        deployment.change_client("site_03", data=data, data_sites=3, data_site="site_03", threads=1)
        deployment.approve("site_03")
        site_03 = deployment.start_client("site_03")
        assert_finished(deployment, server)
        assert site_02.wait(60) == 1
        assert site_03.wait(60) == 0
        assert "was revoked" in server.text()
        assert deployment.statuses(3).get("site_02") is None
        assert deployment.statuses(3)["site_03"] == "accepted"

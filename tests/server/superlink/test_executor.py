import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.proto.runtime_pb2 import (
    PushTaskOutputRequest,
    PushTaskOutputResponse,
    SendTaskHeartbeatRequest,
    SendTaskHeartbeatResponse,
)
from flwr.supercore.runtime import RuntimeHttpClient

import server.superlink.executor
from fedmed.errors import ProcessError
from fedmed.processes import child_environment
from server.superlink.control import Control
from server.superlink.executor import acquire_task, main
from tests.server.support.real_link import Link, run_status, running_link

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def link_control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Link, Control]]:
    with running_link(tmp_path_factory.mktemp("link"), insecure=True) as found:
        yield found


def write_launch(link: Link, folder: Path, app: str) -> Path:
    launch = {
        "runtime_port": link.private_port,
        "superexec_secret_file": str(link.folder / "executor.secret"),
        "server_app": f"tests.server.support.executor_apps:{app}",
        "run_dir": str(folder),
        "parent_pid": os.getpid(),
        "log_file": str(folder / "executor.log"),
        "threads": torch.get_num_threads(),
    }
    file = folder / "launch.json"
    file.write_text(json.dumps(launch))
    return file


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a run of ``main`` from changing the process of the tests."""
    for name in ("watch_parent", "set_up_logging"):
        monkeypatch.setattr(server.superlink.executor, name, lambda _: None)
    monkeypatch.setattr(server.superlink.executor, "raise_on_signals", lambda: None)
    monkeypatch.setattr(os, "umask", lambda _: 0)


@pytest.mark.parametrize(
    ("app", "ended"),
    [
        ("finishes", (0, "", "completed", "")),
        ("explains", (3, '{"event": "error", "error": "Too few sites. Wait."}\n', "failed", "Too few sites. Wait.")),
        ("fails", (4, "", "failed", "ZeroDivisionError")),
        ("no_app", (4, "", None, "")),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_how_the_serverapp_ended_is_told_to_both_sides(  # noqa: PLR0917
    link_control: tuple[Link, Control],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    app: str,
    ended: tuple[int, str, str | None, str],
) -> None:
    link, control = link_control
    code, out, sub_status, details = ended
    run_id = control.start_run(tmp_path)
    monkeypatch.setattr(sys, "argv", ["executor", "--launch", str(write_launch(link, tmp_path, app))])
    assert main() == code
    assert capsys.readouterr().out == out
    state = run_status(control, run_id)
    if sub_status is None:
        assert control.stop_stale_runs() == [run_id]
    else:
        assert (state.status, state.sub_status) == ("finished", sub_status)
        assert state.details.startswith(details)
        assert "secret" not in state.details


def test_the_real_process_runs_what_is_installed(link_control: tuple[Link, Control], tmp_path: Path) -> None:
    link, control = link_control
    run_id = control.start_run(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "server.superlink.executor", "--launch", str(write_launch(link, tmp_path, "finishes"))],
        env=child_environment(tmp_path / "flwr", {"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    log = (tmp_path / "executor.log").read_text()
    assert (done.returncode, done.stdout) == (0, ""), log + done.stderr
    assert (tmp_path / "seen.txt").read_text() == "0 nodes"
    assert run_status(control, run_id).sub_status == "completed"
    # Flower's own executor would have unpacked the app bundle there.
    assert not list((tmp_path / "flwr").glob("**/*.py"))


@pytest.mark.usefixtures("in_this_process")
def test_no_heartbeat_comes_after_the_end(
    link_control: tuple[Link, Control], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat that sets out late, of a task that ended at once, would be refused."""
    link, control = link_control
    calls: list[str] = []
    send, push = RuntimeHttpClient.SendTaskHeartbeat, RuntimeHttpClient.PushTaskOutput

    def send_late(client: RuntimeHttpClient, request: SendTaskHeartbeatRequest) -> SendTaskHeartbeatResponse:
        time.sleep(0.5)
        calls.append("heartbeat")
        return send(client, request)

    def push_now(client: RuntimeHttpClient, request: PushTaskOutputRequest) -> PushTaskOutputResponse:
        calls.append("end")
        return push(client, request)

    monkeypatch.setattr(RuntimeHttpClient, "SendTaskHeartbeat", send_late)
    monkeypatch.setattr(RuntimeHttpClient, "PushTaskOutput", push_now)
    run_id = control.start_run(tmp_path)
    monkeypatch.setattr(sys, "argv", ["executor", "--launch", str(write_launch(link, tmp_path, "finishes"))])
    assert main() == 0
    assert run_status(control, run_id).sub_status == "completed"
    assert calls == ["heartbeat", "end"]


def test_without_a_run_it_gives_up(link_control: tuple[Link, Control]) -> None:
    link, _ = link_control
    secret = (link.folder / "executor.secret").read_bytes()
    with pytest.raises(ProcessError, match=r"no run for the ServerApp within 0\.2 s"):
        acquire_task(f"127.0.0.1:{link.private_port}", secret, timeout_s=0.2)

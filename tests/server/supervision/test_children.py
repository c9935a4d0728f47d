"""How both processes are started; tests/integration has the real ones."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import server.supervision.children
from fedmed.errors import ProcessError
from fedmed.storage.run_folder import RunFolder
from server.supervision.children import Ended, Engine
from tests.server.support.federation_folder import change, provision_folder


class FakeChild:
    """A process that exists on paper only."""

    made: list["FakeChild"]

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        env: Mapping[str, str],
        *,
        on_line: Callable[[str], None] | None,
    ) -> None:
        self.name, self.command, self.env, self.on_line = name, list(command), env, on_line
        self.code: int | None = 3
        self.stopped = False
        self.made.append(self)

    def start(self) -> None:
        pass

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(server.supervision.children, "Child", FakeChild)
    FakeChild.made = []
    config = change(provision_folder(tmp_path / "fed"))
    return Engine(config, RunFolder.create(tmp_path / "run", ""), "some:app")


def test_a_superlink_that_ends_before_it_is_ready_is_not_waited_for(engine: Engine, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ProcessError, match=r"The SuperLink process ended with code 3 before it was ready"):
        engine.start_link()
    assert time.monotonic() - start < 5
    [link] = FakeChild.made
    assert engine.find_ended() == Ended("superlink", 3, tmp_path / "run" / "logs" / "superlink.log")
    link.code = None
    assert engine.find_ended() is None
    engine.stop()
    assert link.stopped
    assert engine.control is None


def test_secrets_are_in_files_that_only_their_owner_reads(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ProcessError):
        engine.start_link()
    [link] = FakeChild.made
    folder = tmp_path / "run" / "link"
    secrets = [(folder / name).read_text() for name in ("executor.secret", "control.token")]
    launch = (folder / "superlink.json").read_text()
    for text in (*link.command, launch, *link.env.values()):
        assert not any(secret in text for secret in secrets)
    assert json.loads(launch)["control_token_file"] == str(folder / "control.token")
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    assert link.env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert link.command[-2:] == ["--launch", str(folder / "superlink.json")]

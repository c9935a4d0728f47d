"""The hospital's command while it takes part: what it does when the process that works ends."""

from pathlib import Path

import pytest

from client.supernode import supervisor as supervisor_module
from client.supernode.supervisor import _Supervisor
from fedmed.config.client import ClientConfig
from fedmed.errors import ProcessError
from fedmed.health import HealthService
from tests.client.support.kit import make_kit

RESTART, ENDED = 75, 0
WELL_AFTER_S = 5.0


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds >= 1.0:
            self.pauses.append(seconds)


class FakeChild:
    """A process that runs for some seconds and ends with a code, once for each start."""

    log_file = Path("supernode.out")

    def __init__(self, clock: FakeTime, lives: list[tuple[float, int]]) -> None:
        self._clock, self._lives = clock, iter(lives)
        self._ends, self._code = 0.0, ENDED

    def start(self) -> None:
        seconds, self._code = next(self._lives)
        self._ends = self._clock.now + seconds

    def poll(self) -> int | None:
        return self._code if self._clock.now >= self._ends else None

    def stop(self) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    made = make_kit(tmp_path)
    Path(made.state_dir).mkdir()
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    clock = FakeTime()
    monkeypatch.setattr(supervisor_module, "time", clock)
    return clock


def run(config: ClientConfig, clock: FakeTime, lives: list[tuple[float, int]]) -> int:
    supervisor = _Supervisor(
        config, Path("client.yaml"), "client.site:app", HealthService(None), well_after_s=WELL_AFTER_S
    )
    supervisor._child = FakeChild(clock, lives)  # type: ignore[assignment]
    return supervisor.run()


def test_a_process_that_crashes_again_and_again_is_given_up(config: ClientConfig, clock: FakeTime) -> None:
    with pytest.raises(ProcessError, match="has ended 11 times, at last with code 75"):
        run(config, clock, [(1.0, RESTART)] * 11)
    assert clock.pauses == [1, 2, 4, 8, 16, 30, 30, 30, 30, 30]


def test_a_process_that_stayed_up_has_proved_itself(config: ClientConfig, clock: FakeTime) -> None:
    """Fourteen crashes in all, but never more than ten without a good time between them."""
    lives = [(1.0, RESTART)] * 6 + [(WELL_AFTER_S + 1, RESTART)] + [(1.0, RESTART)] * 7 + [(1.0, ENDED)]
    assert run(config, clock, lives) == ENDED
    assert clock.pauses == [1, 2, 4, 8, 16, 30, 1, 2, 4, 8, 16, 30, 30, 30]

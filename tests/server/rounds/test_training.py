"""A round is asked for until enough sites have answered: in a real federation as long as it takes."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedmed.errors import FederationError
from server.rounds import training
from server.rounds.session import Session
from server.rounds.training import collect_until
from server.rounds.updates import UpdateCollector


class Updates:
    """Those of one attempt."""

    def __init__(self, num_accepted: int) -> None:
        self.updates = {"bad": SimpleNamespace(site="bad", reason="it sleeps", status="failed")}
        self._num_accepted = num_accepted

    def accepted(self) -> list[None]:
        return [None] * self._num_accepted


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(training, "time", SimpleNamespace(sleep=slept.append))
    return slept


def make_session(notes: list[str], *, patient: bool, attempts: int = 3) -> Session:
    values: dict[str, Any] = {
        "config": SimpleNamespace(min_sites=2),
        "plan": SimpleNamespace(attempts=attempts),
        "patient": patient,
        "listener": SimpleNamespace(on_note=notes.append),
    }
    return cast(Session, SimpleNamespace(**values))


def ask_after(num_refused: int, asked: list[int]) -> Any:
    def ask(attempt: int) -> UpdateCollector:
        asked.append(attempt)
        return cast(UpdateCollector, Updates(2 if attempt > num_refused else 1))

    return ask


def test_a_real_federation_goes_on_after_more_refusals_than_a_simulation_bears(pauses: list[float]) -> None:
    """Seven nights without two hospitals: pauses of 30 s, doubled, at most ten minutes; then it is enough."""
    notes: list[str] = []
    asked: list[int] = []
    _, attempt = collect_until(make_session(notes, patient=True, attempts=200), "Round 3", ask_after(7, asked))
    assert attempt == 8
    assert asked == [1, 2, 3, 4, 5, 6, 7, 8]
    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert len(notes) == 7
    assert "Round 3, attempt 1: 1 usable updates, at least min_sites = 2 are needed." in notes[0]
    assert "it sleeps" in notes[0]


@pytest.mark.parametrize("patient", [False, True])
def test_after_the_attempts_of_the_plan_it_gives_up_and_says_what_to_do(pauses: list[float], patient: bool) -> None:
    """Whoever is patient pauses between the attempts, and not after the last one."""
    asked: list[int] = []
    with pytest.raises(FederationError, match=r"Round 3 had fewer than min_sites = 2 .* in 3 attempts.*resume the run"):
        collect_until(make_session([], patient=patient), "Round 3", ask_after(3, asked))
    assert asked == [1, 2, 3]
    assert pauses == ([30.0, 60.0] if patient else [])


def test_the_rounds_and_the_distillation_at_the_sites_ask_in_the_same_way() -> None:
    from server.finish import distil_at_sites
    from server.rounds import loop

    assert loop.collect_until is distil_at_sites.collect_until is collect_until

"""For whom the server waits before what is done only once."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

import server.rounds.session
from server.rounds.session import Session


class Hall:
    """Three sites on the list; each comes after some steps of waiting, or never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, joined: set[str], **comes: int) -> None:
        self.steps, self.joined, self.comes = 0, joined, comes
        self.exchange = SimpleNamespace(known_sites=lambda: {"a", "b", "c"}, online_sites=self._list_online)
        self.attendance = SimpleNamespace(declared=joined, descriptions={}, turned_away=frozenset())
        self.config, self.patient = SimpleNamespace(round_deadline_s=60.0), True
        clock = SimpleNamespace(monotonic=lambda: 0.5 * self.steps, sleep=self._sleep)
        monkeypatch.setattr(server.rounds.session, "time", clock)

    def _list_online(self) -> list[str]:
        return sorted(site for site, step in self.comes.items() if self.steps >= step)

    def _sleep(self, seconds: float) -> None:
        self.steps += 1

    def _join(self, round_number: int) -> None:
        self.attendance.descriptions = dict.fromkeys(self._list_online())

    def wait(self) -> int:
        Session.gather_everybody(cast(Any, self), 3)
        return self.steps


def test_a_site_that_was_there_is_waited_for_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Hall(monkeypatch, {"a", "b"}, a=0, b=7).wait() == 7


def test_a_site_that_stays_away_is_waited_for_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Hall(monkeypatch, {"a", "b"}, a=0).wait() == 120  # of half a second


def test_a_site_that_has_never_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Hall(monkeypatch, {"a", "b"}, a=0, b=0).wait() == 0


def test_after_a_restart_those_that_joined_before_it_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Hall(monkeypatch, {"a", "b"}, b=2, a=4).wait() == 4

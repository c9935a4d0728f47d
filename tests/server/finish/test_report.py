"""The report of a run that goes on, and the one of its end."""

import json
from collections.abc import Callable

import pytest

import server.finish.report
from server.finish.report import write_final_report, write_interim_report
from tests.support.federation import Federation

Make = Callable[..., Federation]


def test_a_report_that_is_drawn_for_long_does_not_take_the_place_of_the_final_one(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interim one is begun before the end, the final one is written meanwhile, then the interim one is ready."""
    federation = make_federation(rounds=1)
    federation.go()
    run, build = federation.run, server.finish.report.build_content

    def end_meanwhile(*arguments: object, **settings: object) -> object:
        monkeypatch.setattr(server.finish.report, "build_content", build)
        content = build(*arguments, **settings)  # type: ignore[arg-type]
        write_final_report(run, 1)
        return content

    monkeypatch.setattr(server.finish.report, "build_content", end_meanwhile)
    write_interim_report(run)
    assert json.loads((run.report / "report.json").read_text())["figures"]["accuracy"]["n"] > 0

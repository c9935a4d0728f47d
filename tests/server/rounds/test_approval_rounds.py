"""A site whose people have not approved the plan stops nobody, and takes part as soon as they have."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.guard.approvals import APPROVALS_FILE
from fedmed.storage.history import read_history
from server.supervision.status import StatusFile
from server.supervision.status_view import read_status, render_status
from tests.support.approval import approve
from tests.support.deployment_grid import Hospitals
from tests.support.federation import is_training


def make(folder: Path, **settings: Any) -> Hospitals:
    """Two hospitals, of which only the first has approved the plan."""
    hospitals = Hospitals(folder, benefit=False, calibrate=False, **settings)
    (hospitals.state("site_02") / APPROVALS_FILE).unlink()
    return hospitals


def test_the_round_starts_without_it_and_it_joins_when_it_has_approved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rounds.attendance._FIRST_PROBE_S", 0.0)
    monkeypatch.setattr("server.rounds.attendance._LONGEST_PROBE_S", 0.0)
    monkeypatch.setattr("server.federation.make_candidate", lambda *_: None)
    hospitals = make(tmp_path / "run", rounds=3)

    def tamper(site: str, request: Message, reply: Message) -> Message:
        if is_training(request, 1):
            approve(hospitals.state("site_02"), hospitals.plan)
        return reply

    hospitals.go(tamper)
    line = f"this site has not approved the plan {hospitals.plan.sha256} yet; a person there types flower-client"
    (told,) = [note for note in hospitals.listener.notes if "cannot join" in note]
    assert told.startswith("site_02 cannot join: this site has not")
    assert line in told
    assert "site_02 has joined." in hospitals.listener.notes
    records = read_history(hospitals.run.history_file)
    took_part = [[one.site for one in record.participation if one.status == "accepted"] for record in records]
    assert took_part[0] == ["site_01"]
    assert took_part[-1] == ["site_01", "site_02"]
    log = (hospitals.state("site_02") / "audit.jsonl").read_text().splitlines()
    refused = [entry for entry in map(json.loads, log) if entry["event"] == "refused"]
    assert refused[0]["fields"]["kind"] == "query"


def test_a_federation_waits_for_min_sites_approvals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.federation.make_candidate", lambda *_: None)
    hospitals = make(tmp_path / "run", min_sites=2)

    def decide() -> None:
        while not any("cannot join" in note for note in hospitals.listener.notes):
            time.sleep(0.05)
        approve(hospitals.state("site_02"), hospitals.plan)

    person = threading.Thread(target=decide)
    person.start()
    began = time.monotonic()
    hospitals.go()
    person.join()
    assert time.monotonic() - began < 60
    (record,) = read_history(hospitals.run.history_file)
    assert [one.status for one in record.participation] == ["accepted", "accepted"]


def test_site_with_few_images_scores_and_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.federation.make_candidate", lambda *_: None)
    hospitals = Hospitals(tmp_path / "run", rounds=2, benefit=False, calibrate=False)
    hospitals.change_client("site_02", policy={"suppression": {"k": 1, "k_row": 1}, "min_images": 50})
    hospitals.go()
    for record in read_history(hospitals.run.history_file):
        statuses = {one.site: (one.status, one.reason) for one in record.participation}
        assert statuses["site_01"] == ("accepted", None)
        assert statuses["site_02"][0] == "declined"
        assert "policy.min_images" in str(statuses["site_02"][1])
        assert record.weights == {"site_01": 1.0}
    tables = hospitals.run.tables / "test"
    assert sorted(path.stem for path in tables.glob("*.safetensors")) == ["site_01", "site_02"]
    assert "fewer training images" in (hospitals.run.report / "report.json").read_text()


def test_status_shows_who_has_not_approved(tmp_path: Path) -> None:
    file = StatusFile(tmp_path, rounds=3, sites=["aachen", "bonn"])
    file.take_event({"event": "phase", "phase": "join", "round": 0, "num_sites": 2})
    file.take_event({"event": "answer", "site": "bonn", "problem": "this site has not approved the plan 12 yet"})
    file.take_event({"event": "note", "text": "bonn cannot join: this site has not approved the plan 12 yet"})
    shown = render_status(read_status(tmp_path))
    assert shown.count("has not approved") == 1
    file.take_event({"event": "answer", "site": "aachen", "problem": None})
    file.set_message("all others are there")
    shown = render_status(read_status(tmp_path))
    assert "bonn: this site has not approved the plan 12 yet" in shown
    assert "aachen: " not in shown
    file.take_event({"event": "answer", "site": "bonn", "problem": None})
    file.set_message("all are there")
    assert "bonn: " not in render_status(read_status(tmp_path))

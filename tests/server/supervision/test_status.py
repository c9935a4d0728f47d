import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from fedmed.errors import FederationError, RunFolderError
from fedmed.processes import Stopped
from fedmed.storage.history import RoundRecord, append_record, truncate_history
from server.supervision.status import STATUS_FILE, StatusFile, read_status, render_status

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SITES = ("charite", "aachen")


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self):
        self.time = NOON

    def __call__(self):
        return self.time

    def go_on(self, **span):
        self.time += timedelta(**span)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_file(tmp_path, clock):
    return lambda sites=SITES: StatusFile(tmp_path, rounds=20, sites=sites, now=clock)


def close_round(folder, number, **statuses):
    """Append a round in which each site has the given status; the accepted ones share the images equally."""
    num_accepted = list(statuses.values()).count("accepted")
    lines = [
        {"site": site, "status": status, "share": 1 / num_accepted if status == "accepted" else None}
        for site, status in statuses.items()
    ]
    append_record(folder / "history.jsonl", RoundRecord.model_validate({"round": number, "participation": lines}))
    return {"event": "round", "record": {"round": number, "participation": lines}}


def phase(name, number, num_sites=2):
    return {"event": "phase", "phase": name, "round": number, "num_sites": num_sites}


def answer(site, problem=None):
    return {"event": "answer", "site": site, "problem": problem}


def test_the_keys_at_the_start(tmp_path, make_file):
    make_file()
    status = read_status(tmp_path)
    site = {
        "connected": False, "last_seen": None, "joined": False, "last_round": None, "last_status": None,
        "last_share": None, "rounds_taken": 0, "collected": False, "problem": None,
    }  # fmt: skip
    assert status.pop("process_started") > 0
    assert status == {
        "state": "starting", "round": 0, "rounds": 20, "phase": None, "asked": 0, "answered": 0,
        "sites": {"aachen": site, "charite": site}, "message": "", "updated": "2026-03-01T12:00:00+00:00",
        "pid": os.getpid(), "running": True,
    }  # fmt: skip
    assert list(status["sites"]) == ["aachen", "charite"]


def test_only_the_owner_may_read_and_no_part_is_left(tmp_path, make_file):
    old = os.umask(0)
    try:
        make_file()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / STATUS_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_FILE]


def test_a_reader_sees_the_old_or_the_new_file_only(tmp_path, make_file, monkeypatch):
    file = make_file()
    seen = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(read_status(tmp_path)["message"]), real(a, b)))
    file.set_message("new")
    assert (seen, read_status(tmp_path)["message"]) == ([""], "new")


def test_a_round_from_join_to_close(tmp_path, make_file, clock):
    file = make_file()
    file.set_state("waiting for sites")
    file.set_connected({"aachen", "charite"})
    file.take_event(phase("join", 0))
    assert read_status(tmp_path)["state"] == "waiting for sites"
    clock.go_on(seconds=10)
    file.take_event(answer("aachen"))
    file.take_event(answer("charite", "Its definition of the model differs from the server's."))
    status = read_status(tmp_path)
    assert [status["sites"][site]["joined"] for site in ("aachen", "charite")] == [True, False]
    assert status["message"] == "charite: Its definition of the model differs from the server's."
    file.take_event(answer("charite"))
    file.take_event({"event": "info", "text": "Waiting for sites: 1 of min_sites = 2 are there (a)."})
    file.take_event(phase("train", 1))
    file.take_event(answer("aachen"))
    status = read_status(tmp_path)
    assert (status["state"], status["round"], status["phase"]) == ("round", 1, "train")
    assert not status["message"], "nobody is waited for any more"
    assert (status["asked"], status["answered"]) == (2, 1)
    file.take_event(phase("evaluate", 1))
    file.take_event(close_round(tmp_path, 1, aachen="accepted", charite="late"))
    status = read_status(tmp_path)
    assert (status["state"], status["phase"]) == ("round", "evaluate")
    assert status["sites"]["aachen"] == {
        "connected": True, "last_seen": "2026-03-01T12:00:10+00:00", "joined": True, "last_round": 1,
        "last_status": "accepted", "last_share": 1.0, "rounds_taken": 1, "collected": False, "problem": None,
    }  # fmt: skip
    late = status["sites"]["charite"]
    assert (late["last_round"], late["last_status"], late["last_share"], late["rounds_taken"]) == (1, "late", None, 0)
    file.take_event(phase("test", 1))
    assert read_status(tmp_path)["state"] == "testing"
    file.take_event(phase("release", 1))
    assert read_status(tmp_path)["state"] == "proving"
    file.set_state("waiting for release", "type this")
    assert read_status(tmp_path)["phase"] is None
    assert "--release --by" in render_status(read_status(tmp_path))
    file.set_state("releasing")
    file.set_collected("aachen")
    status = read_status(tmp_path)
    assert (status["state"], status["phase"], status["asked"]) == ("releasing", None, 0)
    assert [status["sites"][site]["collected"] for site in ("aachen", "charite")] == [True, False]


def test_what_goes_on_between_the_rounds_and_the_test(tmp_path, make_file):
    file = make_file()
    for name, state in {"local": "round", "recalibrate": "testing", "calibrate": "testing", "test": "testing"}.items():
        file.take_event(phase(name, 1))
        assert read_status(tmp_path)["state"] == state
    file.take_event(phase("local", 1))
    assert "training of each site alone: 0 of" in render_status(read_status(tmp_path))


def test_the_chosen_round_is_not_the_one_at_which_the_run_is(tmp_path, make_file):
    file = make_file()
    file.take_event(close_round(tmp_path, 3, aachen="accepted"))
    for name in ("recalibrate", "calibrate", "test", "release"):
        file.take_event(phase(name, 1))  # round 1 was the best
        assert read_status(tmp_path)["round"] == 3


def test_a_finished_run_says_how_many_rounds_and_which_one_was_chosen(tmp_path, make_file):
    """Sites join before they compare the forms, in the name of the chosen round."""
    file = make_file()
    close_round(tmp_path, 7, aachen="accepted")
    file.take_event(close_round(tmp_path, 8, aachen="accepted"))
    file.take_event(phase("test", 7))
    file.take_event(phase("join", 7))
    assert read_status(tmp_path)["round"] == 8
    (tmp_path / "finished.json").write_text('{"chosen_round": 7}')
    file.set_state("waiting for release")
    assert ", 8 rounds; round 7 was chosen (process" in render_status(read_status(tmp_path), width=200)
    make_file().set_state("finished")  # a server that was started again only serves the model
    assert render_status(read_status(tmp_path), NOON).startswith(
        "finished after 8 rounds; round 7 was chosen (0 s ago)\n"
    )


def test_a_failed_training_does_not_undo_the_joining(tmp_path, make_file):
    file = make_file()
    file.take_event(phase("join", 0))
    file.take_event(answer("aachen"))
    file.take_event(phase("train", 1))
    file.take_event(answer("aachen", "the disk is full"))
    assert read_status(tmp_path)["sites"]["aachen"]["joined"] is True


def test_messages(tmp_path, make_file):
    file = make_file()
    for event in ({"event": "info", "text": "a"}, {"event": "note", "text": "b"}, {"event": "something new"}, {}):
        file.take_event(event)
    assert read_status(tmp_path)["message"] == "b"


def test_participation_after_a_restart_and_from_an_older_checkpoint(tmp_path, make_file):
    """Rounds 1 to 3 are in the history when the process starts; then round 3 is taken back and done anew."""
    close_round(tmp_path, 1, aachen="accepted", charite="accepted")
    close_round(tmp_path, 2, aachen="accepted", charite="quarantined")
    close_round(tmp_path, 3, aachen="accepted", charite="accepted", stranger="accepted")
    file = make_file()
    sites = read_status(tmp_path)["sites"]
    assert {name: entry["rounds_taken"] for name, entry in sites.items()} == {"aachen": 3, "charite": 2}
    assert sites["charite"]["last_share"] == pytest.approx(1 / 3)
    truncate_history(tmp_path / "history.jsonl", 2)
    file.take_event(close_round(tmp_path, 3, aachen="accepted", charite="late"))
    sites = read_status(tmp_path)["sites"]
    assert {name: entry["rounds_taken"] for name, entry in sites.items()} == {"aachen": 3, "charite": 1}
    assert sites["charite"]["last_status"] == "late"


def test_a_damaged_history_does_not_stop_the_server(tmp_path, make_file, caplog):
    (tmp_path / "history.jsonl").write_text("no json\n")
    make_file()
    assert read_status(tmp_path)["sites"]["aachen"]["rounds_taken"] == 0
    assert "participation is not up to date" in caplog.text


def test_a_full_disk_does_not_stop_the_server(tmp_path, make_file, monkeypatch, caplog):
    file = make_file()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    file.set_message("new")
    assert "status.json could not be written: No space left on device" in caplog.text
    monkeypatch.undo()
    assert read_status(tmp_path)["message"] == ""


def test_last_seen_outlives_the_process_and_joining_does_not(tmp_path, make_file, clock):
    file = make_file()
    file.set_connected({"aachen"})
    file.take_event(answer("aachen"))
    clock.go_on(hours=3)
    make_file()
    entry = read_status(tmp_path)["sites"]["aachen"]
    assert (entry["last_seen"], entry["joined"], entry["connected"]) == ("2026-03-01T12:00:00+00:00", False, False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sites": {}}', '{"state": 1, "pid": 4, "sites": {"aachen": {}}}'])
def test_a_damaged_file_is_replaced_at_the_next_start(tmp_path, make_file, text):
    (tmp_path / STATUS_FILE).write_text(text)
    make_file()
    assert read_status(tmp_path)["state"] == "starting"


def test_sites_come_and_go(tmp_path, make_file):
    file = make_file()
    file.set_connected(SITES)
    file.set_sites(["aachen", "bonn"])
    sites = read_status(tmp_path)["sites"]
    assert list(sites) == ["aachen", "bonn"]
    assert (sites["aachen"]["connected"], sites["bonn"]["connected"]) == (True, False)
    file.set_connected({"charite", "bonn"})  # the connection of a revoked site is not shown
    sites = read_status(tmp_path)["sites"]
    assert (list(sites), sites["bonn"]["connected"]) == (["aachen", "bonn"], True)
    file.set_collected("charite")
    file.take_event(answer("charite"))


def test_signs_of_life_are_written_now_and_then_only(tmp_path, make_file, clock, monkeypatch):
    seconds = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    file = make_file()
    file.set_connected({"aachen"})
    stamps = []
    for _ in range(12):
        seconds[0] += 1
        clock.go_on(seconds=1)
        file.set_connected({"aachen"})
        stamps.append(read_status(tmp_path)["sites"]["aachen"]["last_seen"][-8:-6])
    assert stamps == ["00"] * 4 + ["05"] * 5 + ["10"] * 3


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (None, "finished", "all well"),
        (Stopped("SIGTERM"), "stopped", "Stopped. Everything up to the last closed round is saved."),
        (KeyboardInterrupt(), "stopped", "Stopped. Everything up to the last closed round is saved."),
        (FederationError("Too few sites."), "failed", "Too few sites."),
        (ValueError("/home/x"), "failed", "An unexpected ValueError; the server's output says more."),
    ],
)
def test_how_it_ended(tmp_path, make_file, error, state, message):
    file = make_file()
    file.set_message("all well")
    file.set_connected(SITES)
    file.set_ended(error)
    status = read_status(tmp_path)
    assert (status["state"], status["message"]) == (state, message)
    assert not any(entry["connected"] for entry in status["sites"].values())


def test_running_means_that_very_process(tmp_path):
    """A process writes a status and is killed; then its number is given to another process (here: to this one)."""
    code = (
        "import sys, time; from pathlib import Path; from server.supervision.status import StatusFile\n"
        "file = StatusFile(Path(sys.argv[1]), rounds=3, sites=['aachen']); file.set_connected({'aachen'})\n"
        "print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "up\n"
        status = read_status(tmp_path)
        assert (status["running"], status["sites"]["aachen"]["connected"]) == (True, True)
        server.kill()
    status = read_status(tmp_path)
    assert (status["running"], status["sites"]["aachen"]["connected"]) == (False, False)
    assert "ended without a word after round 0 of 3" in render_status(status)
    path = tmp_path / STATUS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": os.getpid()}))
    assert read_status(tmp_path)["running"] is False


def test_no_server_was_ever_started(tmp_path):
    with pytest.raises(RunFolderError, match="no flower-server has been started with this run_dir yet"):
        read_status(tmp_path)
    (tmp_path / STATUS_FILE).write_text("{")
    with pytest.raises(RunFolderError, match=r"is damaged\. Start flower-server again"):
        read_status(tmp_path)


def test_the_text_for_a_person(tmp_path, make_file, clock):
    file = make_file()
    file.set_connected({"aachen"})
    file.take_event(phase("join", 0))
    file.take_event(answer("aachen"))
    file.take_event(close_round(tmp_path, 7, aachen="accepted"))
    file.take_event(phase("train", 8, 1))
    file.set_message("A line [with brackets] for a person.")
    lines = render_status(read_status(tmp_path), clock.time + timedelta(minutes=5)).splitlines()
    assert lines == [
        f"round 8 of 20, training: 0 of 1 sites have answered (process {os.getpid()}, updated 5 min ago)",
        "A line [with brackets] for a person.",
        "site     connected  last seen  joined  last round  status    share  rounds  model",
        "aachen   yes        5 min ago  yes              7  accepted   100%       1  -",
        "charite  no         never      no               -  -             -       0  -",
    ]


@pytest.mark.parametrize(
    ("age", "text"),
    [
        ({"seconds": -5}, "0 s ago"),
        ({"seconds": 119}, "119 s ago"),
        ({"seconds": 120}, "2 min ago"),
        ({"minutes": 119}, "119 min ago"),
        ({"hours": 47}, "47 h ago"),
        ({"days": 3}, "3 d ago"),
    ],
)
def test_ages(tmp_path, make_file, age, text):
    file = make_file()
    file.set_state("finished")
    assert render_status(read_status(tmp_path), NOON + timedelta(**age)).startswith(f"finished ({text}), round 0 of 20")


def test_status_needs_no_torch():
    code = "import sys, server.supervision.status; print(sorted({'torch', 'flwr', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"

"""What the supervisor does when its processes end, with an engine in memory; the real one is in tests/integration."""

import hashlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import server.app
import server.supervision.refusals
import server.supervision.supervisor
from fedmed.config.server import ServerConfig
from fedmed.errors import FederationError, FedmedError, KeyFileError, ProcessError
from fedmed.processes import EventQueue
from fedmed.storage.audit import AuditLog, verify_audit
from fedmed.storage.history import RoundRecord
from fedmed.storage.run_folder import RunFolder
from server.finish.chance import write_doubts
from server.provisioning.provision import add_site, read_sites, revoke_site
from server.release.decision import decide_release
from server.release.publish import find_release
from server.superlink.control import NodeState
from server.supervision.children import Ended
from server.supervision.refusals import Refusals
from server.supervision.restarts import Restarts
from server.supervision.status import read_status
from server.supervision.supervisor import Supervisor
from tests.server.support.federation_folder import change, provision_folder

NODES = {"hospital_a": 11, "hospital_b": 12, "hospital_c": 13}
Step = Callable[[], Ended | None]


class FakeControl:
    """The SuperLink's view of the sites."""

    def __init__(self, broken: set[str]) -> None:
        self._broken = broken
        self.allowed: dict[str, str] = {}

    def sync_sites(self, allow: dict[str, str], on_problem: Callable[[KeyFileError], None]) -> dict[str, int]:
        for name in sorted(self._broken & set(allow)):
            on_problem(KeyFileError(f"The key of the site '{name}' cannot be used again."))
        self.allowed = {name: key for name, key in allow.items() if name not in self._broken}
        return {name: NODES[name] for name in self.allowed}

    def open_gate(self) -> None:
        assert self.allowed, "nobody is let in before the list of sites is there"

    def list_nodes(self) -> dict[int, NodeState]:
        return {NODES[name]: NodeState("online", "", 0.0) for name in self.allowed}


class FakeEngine:
    """Two processes that follow a script: one step each time somebody looks whether one has ended."""

    def __init__(self, run: RunFolder) -> None:
        self.collected_dir = run.path / "collected"
        self.collected_dir.mkdir()
        self.hello_file, self.refused_file = run.path / "hello.json", run.path / "refused.jsonl"
        self.events = EventQueue()
        self.control: FakeControl | None = None
        self.script: deque[Step] = deque()
        self.starts: list[str] = []
        self.failing_starts = 0
        self.drawings = 0
        self.broken: set[str] = set()

    def start_link(self) -> FakeControl:
        self.starts.append("link")
        if self.failing_starts and len(self.starts) > 2:
            self.failing_starts -= 1
            raise ProcessError("The SuperLink process ended with code 3 before it was ready.")
        self.control = FakeControl(self.broken)
        return self.control

    def start_run(self) -> None:
        self.starts.append("run")

    def draw_report(self) -> None:
        self.drawings += 1

    def find_ended(self) -> Ended | None:
        assert self.script, "the script is over, but the supervisor goes on"
        return self.script.popleft()()

    def stop(self) -> None:
        self.control = None

    def tell(self, event: str, **fields: Any) -> None:
        self.events(json.dumps({"event": event, **fields}))


class Notes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.infos: list[str] = []
        self.notes: list[str] = []
        self.rounds: list[int] = []

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        pass

    def on_answer(self, site: str, problem: str | None) -> None:
        pass

    def on_round(self, record: RoundRecord) -> None:
        self.rounds.append(record.round)

    def on_info(self, text: str) -> None:
        self.infos.append(text)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


class Case:
    """A supervisor with a fake engine and a clock of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = provision_folder(folder / "fed")
        self.run = RunFolder.create(folder / "fed" / "run", "")
        self.engine, self.listener = FakeEngine(self.run), Notes()
        self.seconds = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.seconds, sleep=self._sleep)
        monkeypatch.setattr(server.supervision.supervisor, "time", clock)
        monkeypatch.setattr(server.supervision.supervisor, "Engine", lambda *_: self.engine)

    def serve(self, *script: Step, **settings: Any) -> Supervisor:
        self.engine.script = deque(script)
        self.config = change(self.file, **settings)
        self.run.write_config(self.config)
        supervisor = Supervisor(self.config, self.run, self.listener, "x:app")
        supervisor.serve()
        assert not self.engine.script
        return supervisor

    def finish(self, **manifest: Any) -> None:
        """Write what the ServerApp leaves at the end."""
        self.run.model.mkdir()
        shared = self.run.path / "shared" / "report"
        shared.mkdir(parents=True)
        (self.run.model / "model.safetensors").write_bytes(b"model")
        content = {"form": "train", "sha256": {"model.safetensors": hashlib.sha256(b"model").hexdigest()}, **manifest}
        (self.run.model / "manifest.json").write_text(json.dumps(content))
        (shared / "index.html").write_text("report")
        (shared / "report.json").write_text("{}")
        self.run.finished_file.write_text("{}")

    def collect(self, *names: str) -> None:
        for name in names:
            content = {"manifest_sha256": find_release(self.run)}
            (self.engine.collected_dir / f"{NODES[name]}.json").write_text(json.dumps(content))

    @property
    def status(self) -> dict[str, Any]:
        return read_status(self.run.path)

    @property
    def audit(self) -> list[dict[str, Any]]:
        assert verify_audit(self.run.audit_file).ok
        return [json.loads(line) for line in self.run.audit_file.read_text().splitlines()]

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path, monkeypatch)


def step(*actions: Callable[[], object]) -> Step:
    """A look at the processes at which both are up, and something happens at the same time."""

    def run() -> None:
        for action in actions:
            action()

    return run


def ended(name: str, code: int) -> Step:
    return lambda: Ended(name, code, Path(f"{name}.log"))


def test_a_run_goes_to_its_end_and_the_sites_collect_the_model(case: Case) -> None:
    record = {"round": 1, "validation": {"pooled": {}}, "participation": [], "loss": None, "wall_s": 1.0}
    case.serve(
        step(lambda: case.engine.tell("model", digest="d1"), lambda: case.engine.tell("round", record=record)),
        step(case.finish),
        step(lambda: case.collect("hospital_a")),
        step(lambda: case.collect("hospital_b")),
    )
    hello = json.loads(case.engine.hello_file.read_text())
    assert (hello["model_digest"], hello["round"]) == ("d1", 1)
    assert case.listener.rounds == [1]
    assert case.listener.notes == []
    assert [text for text in case.listener.infos if "collected" in text] == [
        "hospital_a has collected the model.",
        "hospital_b has collected the model.",
    ]
    assert case.status["state"] == "finished"
    assert [entry["event"] for entry in case.audit] == ["site_allowed", "site_allowed", "release"]
    assert case.engine.control is None


def test_at_the_end_there_is_always_one_look_and_old_receipts_are_no_news(case: Case) -> None:
    case.finish()
    case.run.write_roster({NODES[name]: name for name in ("hospital_a", "hospital_b")})
    case.serve(collect_wait_s=0)
    assert case.listener.notes[0].startswith("Not collected by: hospital_a, hospital_b.")
    case.collect("hospital_a", "hospital_b")
    case.listener = Notes()
    case.serve(collect_wait_s=0)
    assert case.listener.notes == []
    assert not [text for text in case.listener.infos if text.endswith("has collected the model.")]
    (told,) = [text for text in case.listener.infos if "was released before" in text]
    assert told == (
        "This run is finished and its model was released before; every site has collected it, so there is nothing left "
        "to do. A new run needs another run_dir."
    )
    assert "The model is released; the sites collect it now." not in case.listener.infos
    for entry in case.status["sites"].values():
        assert (entry["collected"], entry["last_seen"]) == (True, None)
    assert case.engine.starts == ["link", "link"]  # no run of the ServerApp


def test_a_manual_release_waits_for_a_person(case: Case) -> None:
    states: list[str] = []

    def decide() -> None:
        states.append(case.status["state"])
        assert not (case.run.path / "release").exists()
        decide_release(case.run, "Ada Lovelace")

    case.serve(
        step(lambda: case.finish(batch_norm="local")),
        ended("executor", 0),
        step(decide),
        step(lambda: case.collect("hospital_a", "hospital_b")),
        release="manual",
        batch_norm="local",
    )
    assert states == ["waiting for release"]
    (told,) = [text for text in case.listener.infos if "waits for its release" in text]
    assert told.endswith('type: flower-server --config server.yaml --release --by "NAME OF A PERSON"')
    assert "Ada Lovelace has released the model." in case.listener.infos
    events = [entry["event"] for entry in case.audit]
    assert events[-2:] == ["release_decided", "release"]
    assert case.audit[-1]["fields"]["by"] == "Ada Lovelace"
    assert json.loads((case.run.path / "release" / "manifest.json").read_text())["release"]["by"] == "Ada Lovelace"


def test_a_model_in_doubt_waits_for_a_person_though_releases_are_automatic(case: Case) -> None:
    states: list[str] = []

    def decide() -> None:
        states.append(case.status["state"])
        assert "Nobody knows." in case.status["message"]
        assert not (case.run.path / "release").exists()
        assert server.app.main(["--config", str(case.file), "--release", "--by", "Ada Lovelace"]) == 0

    def finish() -> None:
        case.finish(batch_norm="local")
        write_doubts(case.run, ["Nobody knows."])

    case.serve(
        step(finish),
        ended("executor", 0),
        step(decide),
        step(lambda: case.collect("hospital_a", "hospital_b")),
        batch_norm="local",
    )
    assert states == ["waiting for release"]
    assert "Ada Lovelace has released the model." in case.listener.infos
    released = json.loads((case.run.path / "release" / "manifest.json").read_text())["release"]
    assert (released["kind"], released["by"], released["doubts"]) == ("manual", "Ada Lovelace", ["Nobody knows."])
    assert [entry["event"] for entry in case.audit][-2:] == ["release_decided", "release"]
    assert case.audit[-2]["fields"]["doubts"] == ["Nobody knows."]


def test_a_release_that_was_decided_while_the_server_was_stopped_is_handed_out(case: Case) -> None:
    case.finish(batch_norm="local")
    case.run.write_config(change(case.file, release="manual", batch_norm="local"))
    decide_release(case.run, "Ada Lovelace")
    case.serve(release="manual", batch_norm="local", collect_wait_s=0)
    assert find_release(case.run) is not None
    assert not [text for text in case.listener.infos if "waits for its release" in text]


def test_a_model_that_was_changed_after_the_decision_is_not_handed_out(case: Case) -> None:
    case.finish(batch_norm="local")
    case.run.write_config(change(case.file, release="manual", batch_norm="local"))
    decide_release(case.run, "Ada Lovelace")
    (case.run.model / "manifest.json").write_text("{}")
    with pytest.raises(FedmedError, match="changed since Ada Lovelace released the model"):
        case.serve(release="manual", batch_norm="local", collect_wait_s=0)
    assert find_release(case.run) is None


def test_waiting_for_the_sites_ends(case: Case) -> None:
    case.finish()
    case.serve(*[step()] * 10, collect_wait_s=0.95)
    assert len(case.listener.notes) == 1


def test_a_superlink_that_ends_during_the_release_is_started_again_and_the_state_stays(case: Case) -> None:
    states: list[str] = []
    case.finish()
    case.serve(
        ended("superlink", -9),
        step(lambda: states.append(case.status["state"]), lambda: case.collect("hospital_a", "hospital_b")),
    )
    assert states == ["releasing"]
    assert case.engine.starts == ["link", "link"]
    assert "The process superlink ended with code -9 (log: superlink.log)." in case.listener.notes[0]


def test_a_start_that_fails_is_one_more_failure(case: Case) -> None:
    case.engine.failing_starts = 3
    case.serve(ended("executor", 4), step(case.finish, lambda: None), collect_wait_s=0)
    assert case.engine.starts == ["link", "run", "link", "link", "link", "link", "run"]
    assert [text.split(".")[0] for text in case.listener.notes[:4]] == [
        "The process executor ended with code 4 (log: executor",
        *["The SuperLink process ended with code 3 before it was ready"] * 3,
    ]
    assert case.seconds >= 1 + 2 + 4 + 8  # pauses


def test_after_five_restarts_in_a_row_it_gives_up(case: Case) -> None:
    case.engine.failing_starts = 99
    with pytest.raises(ProcessError, match=r"before it was ready\. This was failure 6 in a row"):
        case.serve(ended("superlink", 3))
    assert case.engine.starts.count("link") == 6
    assert case.engine.control is None


def test_a_serverapp_that_explains_its_end_or_leaves_nothing_ends_the_federation(case: Case) -> None:
    with pytest.raises(FederationError, match="too few sites"):
        case.serve(step(lambda: case.engine.tell("error", error="too few sites")), ended("executor", 3))
    with pytest.raises(FederationError, match="ended without a result"):
        case.serve(ended("executor", 0))


def test_an_executor_that_ends_after_the_result_does_no_harm(case: Case) -> None:
    case.serve(step(case.finish), ended("executor", 4), step(lambda: case.collect("hospital_a", "hospital_b")))
    assert case.listener.notes == []


def later(case: Case) -> Step:
    """A step after which the supervisor looks at the list again."""
    return step(lambda: case._sleep(2.0))


def test_a_damaged_list_is_told_once_and_the_sites_stay(case: Case) -> None:
    sites = case.file.with_name("sites.json")
    text = sites.read_text()
    seen: list[set[str]] = []

    def remember() -> None:
        assert case.engine.control is not None
        seen.append(set(case.engine.control.allowed))

    case.serve(
        later(case),
        step(lambda: sites.write_text("{"), later(case)),
        later(case),
        ended("superlink", 3),  # also after a restart
        step(remember, lambda: sites.write_text(text), later(case)),
        step(remember, lambda: revoke_site(case.config, "hospital_b"), later(case)),
        step(remember, case.finish),
        collect_wait_s=0,
    )
    damaged = [note for note in case.listener.notes if "is damaged" in note]
    assert len(damaged) == 1
    assert damaged[0].endswith("Until then the sites stay as they are.")
    assert seen == [{"hospital_a", "hospital_b"}] * 2 + [{"hospital_a"}]
    assert "hospital_b was revoked; it is refused from now on." in case.listener.notes
    assert [entry["event"] for entry in case.audit].count("site_revoked") == 1


def test_a_site_that_cannot_be_registered_does_not_keep_others_out(case: Case) -> None:
    case.engine.broken = {"hospital_b"}
    case.serve(
        later(case),
        step(lambda: add_site(case.config, "hospital_c"), later(case)),
        step(case.finish),
        step(lambda: case.collect("hospital_a", "hospital_c")),  # nobody waits for hospital_b
    )
    assert case.listener.notes == ["The key of the site 'hospital_b' cannot be used again."]
    assert set(case.status["sites"]) == {"hospital_a", "hospital_b", "hospital_c"}
    allowed = [entry["fields"]["site"] for entry in case.audit if entry["event"] == "site_allowed"]
    assert allowed == ["hospital_a", "hospital_c"]


def test_no_key_is_taken_a_second_time(tmp_path: Path) -> None:
    config: ServerConfig = change(provision_folder(tmp_path / "fed"))
    kept = tmp_path / "first.pub"
    kept.write_bytes((tmp_path / "fed" / "kits" / "hospital_a" / "site.pub").read_bytes())
    for _ in range(2):
        revoke_site(config, "hospital_a")
        add_site(config, "hospital_a")
    entry = read_sites(config)["hospital_a"]
    assert len(set(entry.all_keys)) == 3
    revoke_site(config, "hospital_a")
    for name in ("hospital_a", "hospital_c"):
        with pytest.raises(KeyFileError, match="is the key of the site 'hospital_a', which is revoked"):
            add_site(config, name, kept)


def test_refusals_are_summed_up_once_a_minute(tmp_path: Path) -> None:
    file, seconds = tmp_path / "refused.jsonl", 0.0
    audit = AuditLog(tmp_path / "audit.jsonl")
    refusals = Refusals(file, audit, clock=lambda: seconds)

    def refuse(address: str, times: int) -> None:
        with file.open("a") as stream:
            for number in range(times):
                line = {"address": address, "fingerprint": "none", "reason": f"reason {number}"}
                stream.write(json.dumps(line) + "\n")

    refuse("10.0.0.1", 1)
    assert refusals.read() == ["Refused: 10.0.0.1, key none: reason 0"]
    shown = []
    for second in range(1, 61):  # the entry comes with the last of them
        seconds = float(second)
        refuse("10.0.0.1", 2)
        refuse("10.0.0.2", 1)
        shown += refusals.read()
    assert shown == [
        "Refused: 10.0.0.1, key none: reason 1",
        "Refused: 10.0.0.2, key none: reason 0",
        "Refused: 10.0.0.1, key none: reason 0 (the same again 59 times)",
        "Refused: 10.0.0.1, key none: reason 1 (the same again 58 times)",
        "Refused: 10.0.0.2, key none: reason 0 (the same again 58 times)",
    ]
    refuse("10.0.0.3", 1)
    refusals.read()
    refusals.flush()
    refusals.flush()
    entries = [json.loads(line)["fields"] for line in audit.path.read_text().splitlines()]
    assert [entry["count"] for entry in entries] == [1, 180, 1]
    assert entries[1]["sources"] == ["10.0.0.1, key none", "10.0.0.2, key none"]
    assert (entries[1]["num_sources"], entries[1]["last_reason"]) == (2, "reason 0")


def test_a_day_of_refusals_is_bounded_in_the_audit_log_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.supervision.refusals, "MOST_BYTES", 10_000)
    file, seconds, day = tmp_path / "refused.jsonl", 0.0, "2026-03-01"
    audit = AuditLog(tmp_path / "audit.jsonl")
    refusals = Refusals(file, audit, clock=lambda: seconds, today=lambda: day)
    shown = 0
    for minute in range(300):
        seconds = 60.0 * minute
        with file.open("a") as stream:
            for number in range(100):
                line = {"address": f"10.0.{minute}.{number}", "fingerprint": "none", "reason": "no", "count": 7}
                stream.write(json.dumps(line) + "\n")
        shown += len(refusals.read())
    refusals.flush()
    entries = [json.loads(line) for line in audit.path.read_text().splitlines()]
    assert [entry["event"] for entry in entries].count("refusals_only_counted") == 1
    assert sum(entry["fields"].get("count", 0) for entry in entries) == 300 * 100 * 7
    assert audit.path.stat().st_size < 14_000
    assert shown <= 300 * 21
    day, seconds = "2026-03-02", seconds + 3600
    with file.open("a") as stream:
        stream.write(json.dumps({"address": "10.1.1.1", "fingerprint": "none", "reason": "no"}) + "\n")
    refusals.read()
    assert json.loads(audit.path.read_text().splitlines()[-1])["fields"]["sources"] == ["10.1.1.1, key none"]


def test_restarts_are_counted_anew_after_a_long_time_without_one() -> None:
    seconds = 0.0
    restarts = Restarts(clock=lambda: seconds)
    restarts.note_start()
    assert [restarts.count("It ended.") for _ in range(3)] == [1.0, 2.0, 4.0]
    restarts.note_start()
    seconds = 299.0
    assert restarts.count("It ended.") == 8.0
    restarts.note_start()
    seconds = 599.0
    assert [restarts.count("It ended.") for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 16.0]
    with pytest.raises(ProcessError, match=r"It ended\. This was failure 6 in a row"):
        restarts.count("It ended.")

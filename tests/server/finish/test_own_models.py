"""The sites' models of their own in a whole federation: who trains them, when, and that they stay at home."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message

from client.answers.own_model import LocalTraining
from client.hospital.site_data import open_site
from fedmed.metrics.site_tables import COMPARED_MODELS, LOCAL
from fedmed.protocol.messages import REPORT, REQUEST, make_content, read_values
from fedmed.storage.audit import verify_audit
from fedmed.storage.run_folder import RunFolder
from fedmed.training.network import Network
from server.finish import own_models as benefit
from server.finish.own_models import explain_missing
from server.rounds.local_record import LOCAL_FILE, LocalRecord, read_local
from server.rounds.scoring import load_tables
from tests.support.deployment_grid import Hospitals
from tests.support.federation import Federation

Make = Callable[..., Federation]
KIND = "train.local"


@pytest.fixture
def make_federation(make_federation: Make) -> Make:
    """Make federations whose sites train models of their own, unless a test says otherwise."""
    return functools.partial(make_federation, benefit=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pauses, nor reports and artefacts, which have tests of their own and take most of the time."""
    monkeypatch.setattr(benefit, "_FIRST_PAUSE_S", 0.01)
    for name in ("write_final_report", "make_candidate"):
        monkeypatch.setattr(f"server.federation.{name}", lambda *_: None)


def local_bytes(run: RunFolder) -> list[bytes]:
    """Return a long stretch of the largest tensor of every state that the sites keep of their own models."""
    return [path.read_bytes()[-200:] for path in run.sites.rglob("local/*.safetensors")]


def test_every_site_trains_its_own_model_and_compares(make_federation: Make) -> None:
    federation = make_federation(rounds=5)
    told: list[tuple[str, int]] = []

    def look(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == KIND:
            told.append((site, read_values(request, REQUEST)["round"]))
        return reply

    federation.go(federation.grid(look))
    # In a simulation a call is for two of the five rounds; the first is answered twice, once for the model.
    assert sorted(set(told)) == [(site, number) for site in federation.sites for number in (2, 4, 5)]
    record = read_local(federation.run)
    assert record == LocalRecord(5, dict.fromkeys(federation.sites, 5))
    tables = load_tables(federation.run.tables / "test")
    for site in federation.sites:
        assert set(COMPARED_MODELS) <= set(tables[site].models), site
        assert set(tables[site].paired) == set(COMPARED_MODELS)
    assert explain_missing(federation.run, tables) == {}
    entries = [json.loads(line) for line in federation.run.audit_file.read_text().splitlines()]
    assert [entry["fields"]["round"] for entry in entries if entry["event"] == "local_training"] == [2, 4, 5]
    assert verify_audit(federation.run.audit_file).ok


def test_simulation_trains_what_a_site_alone_would(make_federation: Make, tmp_path: Path) -> None:
    federation, alone = make_federation("run", rounds=3), make_federation("alone", rounds=3)
    federation.go()
    for node in (1, 2, 3):
        site = open_site(alone.grid()._configs[node])
        plan = federation.config.make_plan()
        LocalTraining(site, plan).train(Network(plan).pack(), 3, 1e6)
        found, expected = Network(plan), Network(plan)
        LocalTraining(open_site(federation.grid()._configs[node]), plan).load_best(found)
        LocalTraining(site, plan).load_best(expected)
        assert found.pack() == expected.pack()


def test_own_models_stay_at_their_sites(make_federation: Make) -> None:
    """No message has anything of what the sites keep, and the answers hold two numbers."""
    federation = make_federation(rounds=2)
    sent: list[bytes] = []
    keys: set[str] = set()

    def look(site: str, request: Message, reply: Message) -> Message:
        for message in (request, reply):
            for record in message.content.values():
                if isinstance(record, ArrayRecord):
                    sent.extend(array.data for array in record.values())
        if request.metadata.message_type == KIND:
            assert set(reply.content) == {REPORT}
            keys.update(read_values(reply, REPORT))
        return reply

    federation.go(federation.grid(look))
    assert keys == {"missing_model", "rounds_done", "train_s"}
    kept = local_bytes(federation.run)
    assert len(kept) >= 2 * len(federation.sites)
    assert len(sent) > 10
    assert not any(part in data for part in kept for data in sent)


def test_without_benefit_nothing_happens(make_federation: Make) -> None:
    federation = make_federation(rounds=1, benefit=False)
    grid = federation.grid()
    federation.go(grid)
    assert KIND not in {kind for _, kind in grid.sent}
    assert not (federation.run.tables / LOCAL_FILE).exists()
    assert not list(federation.run.sites.rglob("local"))
    tables = load_tables(federation.run.tables / "test")
    assert not any(of_site.paired for of_site in tables.values())


def test_resumed_run_goes_on_where_it_was(make_federation: Make) -> None:
    """The second of four calls is cut short; nothing before is asked for again, and the result is the same."""
    whole, cut = make_federation("whole", rounds=4), make_federation("cut", rounds=4)
    whole.go()

    def stop(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == KIND and read_values(request, REQUEST)["round"] == 2:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        cut.go(cut.grid(stop))
    assert read_local(cut.run).rounds == 1
    seen: set[int] = set()

    def look(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == KIND:
            seen.add(read_values(request, REQUEST)["round"])
        return reply

    cut.go(cut.grid(look))
    assert seen == {2, 3, 4}
    plan = whole.config.make_plan()
    for node in (1, 2, 3):
        best = []
        for federation in (whole, cut):
            best.append(Network(plan))
            LocalTraining(open_site(federation.grid()._configs[node]), plan).load_best(best[-1])
        assert best[0].pack() == best[1].pack()


def test_initial_model_is_kept_and_sent_on_demand_only(make_federation: Make) -> None:
    federation = make_federation(rounds=5)
    with_model: list[str] = []

    def look(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == KIND and "model" in request.content:
            with_model.append(site)
        return reply

    federation.go(federation.grid(look))
    assert sorted(with_model) == sorted(federation.sites)
    assert federation.run.initial_model.read_bytes() == Network(federation.config.make_plan()).pack()


def test_site_that_misses_a_call_catches_up(make_federation: Make) -> None:
    federation = make_federation(rounds=4, round_deadline_s=1)
    late = federation.sites[1]

    def lose(site: str, request: Message, reply: Message) -> Message | None:
        first = request.metadata.message_type == KIND and read_values(request, REQUEST)["round"] == 1
        return None if site == late and first else reply

    federation.go(federation.grid(lose))
    assert read_local(federation.run).sites == dict.fromkeys(federation.sites, 4)
    assert f"{late} did not train its own model on: no answer within round_deadline_s = 1" in federation.listener.notes


def test_site_that_never_answers_has_a_reason(make_federation: Make) -> None:
    federation = make_federation(rounds=2, round_deadline_s=0.5)
    silent = federation.sites[0]

    def lose(site: str, request: Message, reply: Message) -> Message | None:
        return None if site == silent and request.metadata.message_type == KIND else reply

    federation.go(federation.grid(lose))
    tables = load_tables(federation.run.tables / "test")
    assert LOCAL not in tables[silent].models
    assert explain_missing(federation.run, tables) == {
        silent: "Its own model has had 0 of 2 rounds. Last problem: no answer within round_deadline_s = 0.5"
    }
    notes = [note for note in federation.listener.notes if silent in note and "own model" in note]
    assert len(notes) == 1  # and not one for each call


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rounds_done": 0},
        {"rounds_done": 2, "train_s": 1.0},
        {"rounds_done": True},
        {"rounds_done": 1, "loss": "low"},
    ],
)
def test_answers_that_make_no_sense_do_not_count(make_federation: Make, values: dict[str, Any]) -> None:
    federation = make_federation(rounds=1)
    bad = federation.sites[2]

    def lie(site: str, request: Message, reply: Message) -> Message:
        if site == bad and request.metadata.message_type == KIND:
            reply.content = make_content(REPORT, values)
        return reply

    federation.go(federation.grid(lie))
    record = read_local(federation.run)
    assert bad not in record.sites
    assert re.search("how many rounds|2 rounds of its own model|'loss' is 'low'", record.problems[bad])


def test_losses_are_kept_where_the_aggregation_needs_them(make_federation: Make) -> None:
    federation = make_federation(rounds=2, aggregation={"fair": {"kind": "gap_to_local"}})
    order: list[str] = []

    def look(site: str, request: Message, reply: Message) -> Message:
        order.append(request.metadata.message_type)
        return reply

    federation.go(federation.grid(look))
    record = read_local(federation.run)
    assert set(record.losses) == set(federation.sites)
    assert all(0 < loss < 3 for loss in record.losses.values())
    assert max(number for number, kind in enumerate(order) if kind == KIND) < order.index("train")


def test_damaged_record_costs_only_a_call(make_federation: Make) -> None:
    federation = make_federation(rounds=1)
    federation.go()
    assert read_local(federation.run).rounds == 1
    (federation.run.tables / LOCAL_FILE).write_text("{")
    assert read_local(federation.run) == LocalRecord()


def test_hospital_may_decline(tmp_path: Path) -> None:
    """One of two has ``benefit: false``: it is asked once, trains nothing and compares nothing."""
    hospitals = Hospitals(tmp_path, rounds=3)
    hospitals.change_client("site_02", policy={"suppression": {"k": 1, "k_row": 1}, "benefit": False})
    grid = hospitals.go()
    asked = [site for site, kind in grid.sent if kind == KIND]
    assert asked.count("site_02") == 1
    assert asked.count("site_01") == 4  # the initial model, then three rounds
    record = read_local(hospitals.run)
    assert (record.declined, record.sites) == (["site_02"], {"site_01": 3})
    assert not list(hospitals.state("site_02").rglob("local"))
    tables = load_tables(hospitals.run.tables / "test")
    assert set(tables["site_01"].paired) == set(COMPARED_MODELS)
    assert not tables["site_02"].paired
    assert explain_missing(hospitals.run, tables) == {
        "site_02": "The site's policy has benefit: false, so it trains no model of its own."
    }


def test_hospital_that_trains_at_night_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its policy refuses four times; then it is night, and all rounds are trained."""
    from client.guard import guard

    hospitals = Hospitals(tmp_path, rounds=2)
    refusals = iter(range(4))

    def check_hours(policy: Any, now: Any) -> list[Any]:
        if next(refusals, None) is None:
            return []
        return [guard.Refusal("hours", "12:00", "20:00-06:00", "It is asked again.")]

    initial = benefit.train_local

    def by_day(session: Any) -> LocalRecord:
        monkeypatch.setattr(guard, "check_hours", check_hours)
        return initial(session)

    monkeypatch.setattr("server.federation.train_local", by_day)
    hospitals.go()
    assert read_local(hospitals.run).sites == {"site_01": 2, "site_02": 2}

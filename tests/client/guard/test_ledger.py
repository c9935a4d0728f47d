"""What a run may have of a hospital, counted by the hospital."""

import json
from pathlib import Path

import pytest

from client.guard import ledger as counts_module
from client.guard.ledger import COUNTS_FILE, Ledger
from client.guard.requests import Request
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import CheckpointError, PolicyError, RunFolderError, WireError
from fedmed.protocol.messages import REPORT, read_values
from fedmed.training.network import Network, hash_model
from tests.client.support.hospital import PLAN, POLICY, HospitalSite


def read_counts(site: HospitalSite, run: str = "run1") -> dict[str, object]:
    return json.loads((site.state / "runs" / run / COUNTS_FILE).read_text())


def other_models(site: HospitalSite, number: int) -> list[bytes]:
    return [Network(site.plan.model_copy(update={"seed": seed})).pack() for seed in range(10, 10 + number)]


def request(kind: str, run: str = "run1", study: str = "skin", part: str | None = None) -> Request:
    plan = Plan.model_validate(PLAN | {"run_id": run, "study": study})
    return Request(kind=kind, plan=plan, round=1, part=part)


def test_answers_are_counted(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    site.ask("query")
    assert not (site.state / "runs").exists()
    site.ask("train", site.model, round=1)
    site.ask("train", site.model, round=1)
    assert read_counts(site) == {"study": "skin", "trained": 2, "tested": [], "compared": []}
    missing = site.ask("train", round=2, model_sha256="0" * 64)
    assert read_values(missing, REPORT) == {"missing_model": True}
    with pytest.raises(WireError):
        site.ask("train", b"garbage", round=2)
    site.ask("evaluate", site.model, round=1, part="validation")
    assert read_counts(site) == {"study": "skin", "trained": 2, "tested": [], "compared": []}
    site.ask("evaluate", site.model, round=1, part="test")
    site.ask("evaluate", round=1, part="test", model_sha256=hash_model(site.model))
    assert read_counts(site) == {"study": "skin", "trained": 2, "tested": [hash_model(site.model)], "compared": []}


def test_few_artefacts_of_a_run_are_compared(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    artefacts = [f"no artefact {number}".encode() for number in range(6)]
    for artefact in (*artefacts[:5], artefacts[0]):
        site.compare(artefact)
    assert len(read_counts(site)["compared"]) == 5
    with pytest.raises(PolicyError, match=r"one more artefact after 5 in this run, allowed up to 5 different"):
        site.compare(artefacts[5])
    assert read_counts(site)["tested"] == [hash_model(site.model)]


def test_counts_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    file = tmp_path / "run1" / COUNTS_FILE
    file.parent.mkdir()
    file.write_text('{"study": "skin", "trained": 1, "tested": []}')
    assert Ledger(tmp_path, PolicyConfig()).check(request("train", "run1"), None) == []


def test_rounds_are_limited_whatever_the_server_calls_them(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path, policy=POLICY | {"max_rounds": 4})
    for _ in range(8):  # 4 rounds, 20 % of them and 3
        site.ask("train", site.model, round=1)
    with pytest.raises(PolicyError) as caught:
        site.ask("train", site.model, round=1)
    assert str(caught.value) == (
        "The site's policy refuses this request. policy.max_rounds: found 8 updates sent in this run, allowed up to 8. "
        "The run has had all its rounds here, with those that were repeated; end it, or begin a new one."
    )
    assert [entry["refusals"][0]["key"] for entry in site.events("refused")] == ["max_rounds"]
    with pytest.raises(PolicyError):  # not even after a restart
        site.restart().ask("train", site.model, round=2)
    site.ask("evaluate", site.model, round=4, part="validation")
    site.ask("train", site.model, {"run_id": "run2"}, round=1)


def test_the_spare_is_a_fifth_and_three() -> None:
    def allowed(max_rounds: int) -> int:
        ledger = Ledger(Path("unused"), PolicyConfig(max_rounds=max_rounds))
        many = counts_module.Counts("skin", 10**6)
        return int(ledger._check_trained(many)[0].allowed.removeprefix("up to "))

    assert [allowed(number) for number in (1, 5, 10, 11, 1000)] == [5, 9, 15, 17, 1203]


def test_few_models_of_a_run_are_tested(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    models = other_models(site, 4)
    hashes = [hash_model(model) for model in models]
    for model in models[:3]:
        site.ask("evaluate", model, round=1, part="test")
    for changes in ({}, {"model_sha256": hashes[3]}):
        with pytest.raises(PolicyError) as caught:
            site.ask("evaluate", None if changes else models[3], round=1, part="test", **changes)
        assert (
            "policy.test_tables: found a test of one more model after 3 in this run, allowed up to 3 different models."
            in str(caught.value)
        )
    assert read_counts(site)["tested"] == hashes[:3]
    site.ask("evaluate", models[0], round=1, part="test")
    site.ask("evaluate", models[3], round=1, part="validation")


def test_runs_of_a_study_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counts_module.MAX_RUNS == 100
    monkeypatch.setattr(counts_module, "MAX_RUNS", 2)
    named = Ledger(tmp_path, PolicyConfig(study="skin"))
    for run, study in [("a", "skin"), ("b", "eyes"), ("c", "skin")]:
        assert named.check(request("train", run, study), None) == []
        named.note(request("train", run, study), None)
    (refusal,) = named.check(request("evaluate", "d", part="validation"), None)
    assert str(refusal) == (
        "policy.study: found a new run after 2 runs, allowed up to 2. At the site, remove what finished federations "
        "have left with flower-client --forget."
    )
    assert named.check(request("train", "c"), None) == []  # one that is known goes on
    assert named.check(request("query", "d"), None) == []
    # Where any study is allowed, a new name does not help.
    assert len(Ledger(tmp_path, PolicyConfig()).check(request("train", "d", "third"), None)) == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"study": null, "trained": "x", "tested": []}', "[" * 100_000])
def test_damaged_counts_are_no_new_beginning(tmp_path: Path, text: str) -> None:
    site = HospitalSite(tmp_path)
    site.ask("train", site.model, round=1)
    (site.state / "runs/run1" / COUNTS_FILE).write_text(text)
    with pytest.raises(RunFolderError, match="cannot be read") as caught:
        site.ask("train", site.model, round=1)
    assert not caught.value.shareable


def test_an_answer_that_cannot_be_counted_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = HospitalSite(tmp_path)

    def fail(path: Path, data: bytes) -> None:
        raise CheckpointError(f"{path}: the disk is full")

    monkeypatch.setattr(counts_module, "write_atomically", fail)
    with pytest.raises(CheckpointError):
        site.ask("train", site.model, round=1)
    assert [part["name"] for entry in site.events("sent") for part in entry["parts"]] == ["error"]
    assert site.events("sent")[0]["text"] == "CheckpointError at the site; its log says more"

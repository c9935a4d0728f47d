"""What a run may have of a hospital, counted by the hospital: as often as the approved plan foresees, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.guard import ledger as ledger_module
from client.guard.approvals import APPROVALS_FILE, Approvals
from client.guard.ledger import LEDGER_FILE, OLD_COUNTS_FILE, ROUNDS_KEPT, Ledger
from client.guard.requests import Request
from client.hospital.told_groups import TOLD_FILE, read_groups
from client.supernode.supervisor import forget
from fedmed.config import Plan, make_distil_plan, make_student_plan
from fedmed.config.client import PolicyConfig, load_client_config
from fedmed.errors import CheckpointError, PolicyError, RunFolderError, WireError
from fedmed.protocol.foreseen import REPEATS
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, read_model, read_values
from fedmed.training.network import Network, hash_model
from tests.client.support.hospital import PLAN, POLICY, HospitalSite
from tests.client.support.second_model import SMALL, SMALL_MODEL, ask, distil
from tests.support.approval import approve

MAIN = Plan.model_validate(PLAN)
AGAIN = "a person at this site types flower-client --approve --again"


def other_models(site: HospitalSite, number: int) -> list[bytes]:
    return [Network(site.plan.model_copy(update={"seed": seed})).pack() for seed in range(10, 10 + number)]


@pytest.fixture
def site(tmp_path: Path) -> HospitalSite:
    """A hospital whose people have approved the plan, at the start of its run."""
    hospital = HospitalSite(tmp_path)
    hospital.approves = False
    approve(hospital.state, MAIN)
    return hospital


def refuses(site: HospitalSite, match: str, kind: str, model: bytes | None = None, **values: Any) -> None:
    """Ask for what must be refused with words on both sides, and be written down."""
    before = len(site.events("refused"))
    with pytest.raises(PolicyError, match=match):
        site.ask(kind, site.model if model is None else model, **values)
    told = site.events("refused")[before:]
    assert [refusal["key"] for entry in told for refusal in entry["refusals"]] == ["approved_plan"]


def run_rounds(site: HospitalSite, last: int = 4) -> None:
    for number in range(1, last + 1):
        site.ask("train", site.model, round=number)
        site.ask("evaluate", site.model, round=number, part="validation")


def test_what_brings_more_than_words_is_counted(site: HospitalSite) -> None:
    site.ask("query")
    assert not (site.state / "runs").exists()
    assert read_values(site.ask("train", round=1, model_sha256="0" * 64), REPORT) == {"missing_model": True}
    with pytest.raises(WireError):
        site.ask("train", b"garbage", round=1)
    assert not (site.state / "runs").exists()
    known = {"remember": True, "model_sha256": hash_model(site.model)}
    site.ask("train", site.model, round=1, **known)
    site.ask("train", round=1, **known)  # the same, without the model
    site.ask("train", site.model, round=2)
    assert site.answered("train") == [2, 1]


def test_a_whole_run_is_answered(site: HospitalSite) -> None:
    """Every kind in its place, with a small network that the sites train: nothing of the plan is refused."""
    everything = {"benefit": True, "batch_norm": "recalibrate"}
    main = Plan.model_validate(PLAN | everything)
    small, distilled = (make(main).model_dump(mode="json") for make in (make_student_plan, make_distil_plan))
    approve(site.state, main)
    told = {"plan": PLAN | everything}
    for number in range(1, 5):
        site.ask("train", site.model, everything, round=number)
        site.ask("evaluate", site.model, everything, round=number, part="validation")
    site.ask("evaluate.recalibrate", site.model, everything, round=3)
    for number in range(1, 5):
        distil(site, round=number, plan=distilled, large=told)
    site.ask("evaluate.recalibrate", SMALL_MODEL, small, round=3)
    ask(site, round=3, **told, other={"plan": small})
    for number in range(1, 5):
        site.ask("train.local", site.model, everything, round=number)
    site.ask("evaluate.calibrate", SMALL_MODEL, small, round=3)
    ask(site, **_with_teacher(site, small, told["plan"]), round=3)
    with pytest.raises(PolicyError, match="one more request for test"):
        site.ask("evaluate", site.model, everything, round=3, part="test")
    assert len(site.events("refused")) == 1


def _with_teacher(site: HospitalSite, plan: Any = SMALL, large: Any = PLAN) -> dict[str, Any]:
    """Return a test of the small network, with the one that it came from."""
    told = {"plan": plan, "model": SMALL_MODEL, "other": {"plan": large}, "packed": site.model}
    return {"name": "teacher", "part": "test", **told}


def test_the_same_request_is_repeated_as_often_as_is_stated(site: HospitalSite) -> None:
    """Training: 3 attempts of the round and 3 more; validation: once and 3 more. The answers are the same bits."""
    first = read_model(site.ask("train", site.model, round=1))
    for _ in range(2 + REPEATS):
        assert read_model(site.restart().ask("train", site.model, round=1)) == first
    refuses(site, f"found the same request for training .round 1. after 6 answers.*{AGAIN}", "train", round=1)
    for _ in range(1 + REPEATS):
        site.ask("evaluate", site.model, round=1, part="validation")
    refuses(site, "after 4 answers, allowed once, and 3 repetitions", "evaluate", round=1, part="validation")
    site.ask("train", site.model, round=2)


def test_a_round_is_about_one_model(site: HospitalSite) -> None:
    (other,) = other_models(site, 1)
    site.ask("train", site.model, round=1)
    refuses(site, "training .round 1., another model or other settings than before", "train", other, round=1)
    site.ask("evaluate", site.model, round=1, part="validation")
    refuses(site, "validation .round 1., another model", "evaluate", other, round=1, part="validation")
    site.ask("train", other, round=2)


def test_rounds_go_forward_only(site: HospitalSite) -> None:
    """A server that was restored to round 1 repeats round 2 with another model; so it needs a new approval."""
    (other,) = other_models(site, 1)
    run_rounds(site, 3)
    for kind, part in (("train", None), ("evaluate", "validation")):
        refuses(
            site, r"\(round 2\), a step back from 3", kind, other, round=2, **({} if part is None else {"part": part})
        )
    site.ask("train", site.model, round=2)  # the same request as before: it was only repeated
    approve(site.state, MAIN, again=True)
    site.ask("train", other, round=2)
    refuses(site, r"\(round 1\), a step back from 2", "train", round=1)


def test_a_round_that_was_scored_is_not_trained_for_the_first_time(site: HospitalSite) -> None:
    site.ask("evaluate", site.model, round=2, part="validation")
    refuses(site, "another model or other settings", "train", round=2)
    site.ask("train", site.model, round=3)
    refuses(
        site, r"validation \(round 2\), another model", "evaluate", other_models(site, 1)[0], round=2, part="validation"
    )


def test_what_comes_at_the_end_is_not_asked_first(site: HospitalSite) -> None:
    site.ask("query")
    for kind, values in (("evaluate", {"part": "test"}), ("evaluate.calibrate", {})):
        refuses(site, "before any round, allowed the rounds come first", kind, round=1, **values)


def test_after_the_end_has_begun_there_are_no_more_rounds(site: HospitalSite) -> None:
    site = site.restart(policy=POLICY | {"suppression": {"k": 3, "k_row": 3}})  # 3 patients of the class that is told
    run_rounds(site, 2)
    site.ask("evaluate.calibrate", site.model, round=2)
    refuses(site, "a new request for training .round 3. after the run's end has begun", "train", round=3)
    site.ask("evaluate", site.model, round=2, part="test")
    refuses(site, "validation .round 3. after the run's end", "evaluate", round=3, part="validation")
    site.ask("train", site.model, round=2)  # a repetition: a checkpoint was damaged


def test_tested_once(site: HospitalSite) -> None:
    """One model, one temperature, one list of models to compare with."""
    run_rounds(site, 1)
    (other,) = other_models(site, 1)
    site.ask("evaluate", site.model, round=1, part="test", temperature=1.5)
    site.restart().ask("evaluate", site.model, round=1, part="test", temperature=1.5)
    assert site.answered("test") == [2]
    test: dict[str, Any] = {"round": 1, "part": "test"}
    for model, values in (
        (other, {"temperature": 1.5}),
        (site.model, {}),
        (site.model, {"temperature": 1.25}),
        (site.model, {"temperature": 1.5, "compare": ["fine_tuned"]}),
    ):
        refuses(
            site,
            r"one more request for test \(round 1\) after 1, allowed 1 in this run",
            "evaluate",
            model,
            **test,
            **values,
        )
    with pytest.raises(PolicyError, match="one more request for test of the small network"):
        ask(site, **_with_teacher(site))


def test_one_artefact_is_compared(site: HospitalSite) -> None:
    run_rounds(site, 1)
    site.compare(b"one")
    site.compare(b"one")
    with pytest.raises(PolicyError, match=r"one more request for comparison of the forms .* allowed 1 in this run"):
        site.compare(b"another")


def test_only_what_the_plan_has(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    site.approves = False
    plain = PLAN | {"calibrate": False, "release": False, "student": None, "batch_norm": "average"}
    approve(site.state, plain)
    changes = {key: plain[key] for key in plain if plain[key] != PLAN.get(key)}
    site.ask("train", site.model, changes, round=1)
    for kind in ("evaluate.recalibrate", "evaluate.calibrate"):
        refuses(site, "allowed what the approved plan foresees, which has none", kind, plan=changes, round=1)
    with pytest.raises(PolicyError, match="which has none"):
        site.compare(b"one", changes)


def test_every_row_has_a_ration_that_a_run_uses_up() -> None:
    """Of 4 rounds, with all that a plan can have: by hand."""
    full = Plan.model_validate(PLAN | {"benefit": True, "batch_norm": "recalibrate"})
    found = {
        phase.name: {of: phase.ration.times(full, of) for of in ("trained", "both", "small", "distilled")}
        for kind in KINDS.values()
        for phase in kind.phases
    }
    nothing = {"trained": 0, "both": 0, "small": 0, "distilled": 0}
    assert found == {
        "join": nothing | {"trained": None},
        "train": nothing | {"trained": 4},
        "local": nothing | {"trained": 4},
        "distil": nothing | {"distilled": 4},
        "evaluate": nothing | {"trained": 4, "both": 1},
        "figure": nothing,
        "test": nothing | {"trained": 1, "small": 1},
        "recalibrate": nothing | {"trained": 1, "small": 1},
        "calibrate": nothing | {"trained": 1, "small": 1},
        "alert": nothing,
        "release": nothing | {"trained": 1, "small": 1},
    }
    by_figure = full.model_copy(update={"choice": "figure", "student": None})
    rations = {phase.name: phase.ration for kind in KINDS.values() for phase in kind.phases}
    assert rations["figure"].times(by_figure, "trained") == 4
    assert rations["evaluate"].times(by_figure, "trained") == 0


def request(kind: str, run: str = "run1", study: str = "skin", part: str | None = None, number: int = 1) -> Request:
    plan = Plan.model_validate(PLAN | {"run_id": run, "study": study, "rounds": 1000})
    return Request(kind=kind, plan=plan, round=number, part=part)


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 1000 rounds the newest are known; an older one is a step back, even if it is the same."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a thousand of them take seconds of a disk
    ledger, asked = Ledger(tmp_path / "runs", PolicyConfig()), request("train")
    approval = approve(tmp_path, asked.plan)
    for number in range(1, 1001, 10):
        for step in range(10):
            ledger.note(request("train", number=number + step), approval, "trained", "0" * 64)
    assert (tmp_path / "runs" / "run1" / LEDGER_FILE).stat().st_size < 4000
    kept = request("train", number=1000 - ROUNDS_KEPT + 1)
    assert ledger.check(kept, approval, "trained", "0" * 64) == []
    (refusal,) = ledger.check(request("train", number=1000 - ROUNDS_KEPT), approval, "trained", "0" * 64)
    assert "a step back from 1000" in refusal.found


def test_runs_of_a_study_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger_module.MAX_RUNS == 100
    monkeypatch.setattr(ledger_module, "MAX_RUNS", 2)
    runs = tmp_path / "runs"
    named = Ledger(runs, PolicyConfig(study="skin"))

    def check(ledger: Ledger, one: Request) -> list[str]:
        return list(map(str, ledger.check(one, approve(tmp_path, one.plan), "trained", None)))

    (runs / "a").mkdir(parents=True)
    (runs / "a" / OLD_COUNTS_FILE).write_text('{"study": "skin", "trained": 1, "tested": []}')  # of version 1
    for run, study in [("b", "eyes"), ("c", "skin")]:
        one = request("train", run, study)
        assert check(named, one) == []
        named.note(one, approve(tmp_path, one.plan), "trained", None)
    assert check(named, request("evaluate", "d", part="validation")) == [
        "policy.study: found a new run after 2 runs, allowed up to 2. At the site, remove what finished federations "
        "have left with flower-client --forget."
    ]
    assert check(named, request("train", "c")) == []  # one that is known goes on
    assert check(named, request("query", "d")) == []
    # Where any study is allowed, a new name does not help.
    assert len(check(Ledger(runs, PolicyConfig()), request("train", "d", "third"))) == 1


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"study": null}', "[" * 100_000])
def test_missing_or_damaged_ledger_is_no_new_beginning(site: HospitalSite, text: str | None) -> None:
    site.ask("train", site.model, round=1)
    file = site.state / "runs/run1" / LEDGER_FILE
    file.unlink() if text is None else file.write_text(text)
    for other in (site, site.restart()):
        with pytest.raises(RunFolderError, match=r"cannot be read|is missing") as caught:
            other.ask("train", site.model, round=1)
        assert not caught.value.shareable
    approve(site.state, MAIN)  # what is approved already is not begun anew, either
    with pytest.raises(RunFolderError):
        site.ask("train", site.model, round=2)
    approve(site.state, MAIN, again=True)
    site.ask("train", site.model, round=1)


def test_a_ledger_of_an_earlier_approval_is_none_of_this_one(site: HospitalSite) -> None:
    site.ask("train", site.model, round=1)
    old = (site.state / "runs/run1" / LEDGER_FILE).read_text()
    approve(site.state, MAIN, again=True)
    run_rounds(site, 3)
    (site.state / "runs/run1" / LEDGER_FILE).write_text(old)  # a backup
    with pytest.raises(RunFolderError, match="of another approval"):
        site.ask("train", site.model, round=2)


def test_an_answer_that_cannot_be_counted_does_not_leave(site: HospitalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise CheckpointError(f"{path}: the disk is full")

    monkeypatch.setattr(ledger_module, "write_atomically", fail)
    with pytest.raises(CheckpointError):
        site.ask("train", site.model, round=1)
    assert [part["name"] for entry in site.events("sent") for part in entry["parts"]] == ["error"]
    assert site.events("sent")[0]["text"] == "the site could not do this; the site's log says why"


def test_count_is_on_the_disk_before_an_answer_leaves(site: HospitalSite) -> None:
    site.ask("train", site.model, round=1)
    written = json.loads((site.state / APPROVALS_FILE).read_text())
    assert [one["has_answered"] for one in written["plans"]] == [True]
    assert Approvals(site.state).find(MAIN) is not None


def test_plan_b_and_then_plan_a_again_begin_nothing_anew(site: HospitalSite) -> None:
    """A server that has a second plan approved and then the first again gets no second set of answers."""
    other_plan, (other,) = {"rounds": 5}, other_models(site, 1)
    run_rounds(site, 2)
    approve(site.state, PLAN | other_plan)
    refuses(site, r"\(round 2\), another model or other settings than before", "train", plan=other_plan, round=2)
    site.ask("train", site.model, other_plan, round=3)
    site.ask("evaluate", site.model, other_plan, round=3, part="test")
    approve(site.state, MAIN)
    for number in (1, 3):
        refuses(site, "after the run's end has begun", "train", other, round=number)
    refuses(site, "one more request for test", "evaluate", round=3, part="test")
    with pytest.raises(PolicyError, match="one more request for test"):
        site.ask("evaluate", other, round=3, part="test")
    site.ask("train", site.model, round=2)  # a repetition


def test_a_list_of_approvals_that_was_moved_away_begins_nothing_anew(site: HospitalSite) -> None:
    run_rounds(site, 2)
    approve(site.state, MAIN, again=True)
    run_rounds(site, 3)
    (site.state / APPROVALS_FILE).unlink()
    approve(site.state, MAIN)
    refuses(site, r"\(round 2\), a step back from 3", "train", other_models(site, 1)[0], round=2)
    approve(site.state, MAIN, again=True)
    run_rounds(site, 1)


def test_which_groups_were_told_apart_is_kept_over_runs(site: HospitalSite) -> None:
    """Tables with an answer that holds some, losses with a training; --forget leaves it."""
    by = {"fairness": {"attributes": ["sex"], "intersections": "none"}}
    losses = {"losses": "groups", "loss_attribute": "sex"}
    approve(site.state, PLAN | by)
    site.ask("train", site.model, by, round=1)
    assert read_groups(site.state) == {}
    site.ask("evaluate", site.model, by, round=1, part="validation")
    assert read_groups(site.state) == {"run1": {"tables": {"sex"}}}
    approve(site.state, PLAN | by | losses | {"run_id": "run2"})
    site.ask("train", site.model, by | losses | {"run_id": "run2"}, round=1)
    assert read_groups(site.state) == {"run1": {"tables": {"sex"}}, "run2": {"losses": {"sex"}}}
    forget(load_client_config(site.file), everything=True)
    assert len(read_groups(site.state)) == 2
    (site.state / TOLD_FILE).write_text("[")
    approve(site.state, PLAN | by, again=True)
    with pytest.raises(RunFolderError, match="which patient groups it has told apart"):
        site.ask("evaluate", site.model, by, round=1, part="validation")

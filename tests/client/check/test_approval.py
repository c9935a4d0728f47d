"""``flower-client --approve``: what a person reads, what is stored, and what has changed since."""

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from client.check.approval import Wish, approve, check_approval
from client.check.context import CheckContext
from client.check.plan_words import describe_plan, list_changes, list_questions
from client.guard.approvals import APPROVALS_FILE, Approvals
from client.guard.audit_view import render_audit
from client.guard.ledger import Ledger
from client.guard.requests import Request
from client.hospital.told_groups import find_other_groups, note_groups
from fedmed.config import Plan, make_distil_plan, make_student_plan, plan_hash
from fedmed.config.client import ClientConfig, PolicyConfig
from fedmed.errors import ConfigError, PolicyError, RunFolderError
from tests.client.support.kit import PLAN, FakeFleet, connect_to, make_hello, make_kit

MAIN = Plan.model_validate(PLAN)
USER = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    return make_kit(tmp_path)


def type_approve(config: ClientConfig, plan: dict[str, Any] | None = None, answer: str = "y", **wish: Any) -> int:
    fleet = FakeFleet(make_hello(plan))
    return approve(config, Wish(**wish), connect_to(fleet), lambda question: answer)


def approved(config: ClientConfig) -> list[str]:
    return [one.sha256 for one in Approvals(Path(config.state_dir)).read()]


def look(config: ClientConfig, plan: dict[str, Any] | None = None) -> tuple[str, str]:
    context = CheckContext(config, False, connect_to(FakeFleet(make_hello(plan))), Path(), Path())
    context.plan = Plan.model_validate(PLAN | (plan or {}))
    result = check_approval(context, "approval")
    return result.status, result.found


def test_hash_is_that_of_the_canonical_json() -> None:
    """By hand: keys sorted, no spaces; every field counts, the run's name included, and nothing of the sites."""
    import hashlib

    text = json.dumps(MAIN.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert plan_hash(MAIN) == MAIN.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert Plan.model_validate_json(MAIN.model_dump_json()).sha256 == MAIN.sha256
    changes: list[dict[str, Any]] = [
        {"run_id": "run2"},
        {"calibrate": False},
        {"release": False},
        {"choice": "tables"},
        {"attempts": 4},
        {"student": {"model": {"name": "tiny"}}},
        {"training": PLAN["training"] | {"batch_size": 9}},
    ]
    assert len({Plan.model_validate(PLAN | change).sha256 for change in [{}, *changes]}) == len(changes) + 1


def test_an_older_plan_is_readable_and_foresees_nothing_new() -> None:
    old = {key: value for key, value in PLAN.items() if key not in {"calibrate", "release", "choice"}}
    plan = Plan.model_validate(old)
    assert (plan.calibrate, plan.release, plan.choice, plan.attempts, plan.student) == (False, False, "tables", 3, None)


def test_a_person_reads_the_plan_and_approves_it(config: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(config)[0] == "warning"
    assert type_approve(config, answer="n") == 1
    assert approved(config) == []
    assert "Not approved" in capsys.readouterr().out
    assert type_approve(config) == 0
    text = capsys.readouterr().out
    assert approved(config) == [MAIN.sha256]
    for line in describe_plan(MAIN):
        assert line in text
    assert f"The plan {MAIN.sha256} is approved." in text
    assert look(config) == ("ok", f"the plan {MAIN.sha256} is approved since {_time(config)} by user {USER}")
    log = (Path(config.state_dir) / "audit.jsonl").read_text()
    assert f'"plan_sha256":"{MAIN.sha256}"' in log
    assert (Path(config.state_dir) / APPROVALS_FILE).stat().st_mode & 0o077 == 0


def _time(config: ClientConfig) -> str:
    return Approvals(Path(config.state_dir)).read()[0].approved


def test_words_say_what_is_trained_and_what_leaves_how_often() -> None:
    plan = Plan.model_validate(PLAN | {"choice": "tables", "batch_norm": "recalibrate", "attempts": 7})
    text = "\n".join(describe_plan(plan))
    for words in (
        "Study: 'skin', approval EK 7/26; run run1.",
        "Network: tiny for 3 classes (benign, malignant, other) at 16 pixels",
        "Training: 4 rounds of 2 epochs with batches of 8 images",
        "SGD, peak learning rate 0.05, schedule cosine, momentum 0.9",
        'Loss: {"ce": 1.0}. BatchNorm: recalibrate. Updates travel as: none.',
        "Distillation from a teacher: none.",
        "A round is tried up to 7 times.",
    ):
        assert words in text
    assert list(list_questions(plan)) == [
        "sites get ready: as often as needed (whenever this site comes, or comes back); leaves: description (numbers "
        "and words)",
        "training: 4 times (once a round, each at most 9 times more); leaves: update (model)",
        "validation: 4 times (once a round; once of a small network and the trained one, each at most 3 times more); "
        "leaves: validation tables (tables)",
        "test: once (once, at the end, each at most 3 times more); leaves: test tables (tables)",
        "BatchNorm statistics: once (once of each network that is recalibrated, each at most 3 times more); leaves: "
        "BatchNorm sums (sums)",
        "temperature: once (once, at the end, each at most 3 times more); leaves: sums for the temperature (sums)",
        "comparison of the forms: once (once, before the release, each at most 3 times more); leaves: comparison "
        "(numbers and words)",
    ]


def list_leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(path, value)]
    return [leaf for key, one in value.items() for leaf in list_leaves(one, f"{path}.{key}".lstrip("."))]


def test_every_setting_is_shown_in_full() -> None:
    """What decides how much is computed stands in the words, everything in the list, and nothing is cut at 300."""
    names = [f"class number {number:03d} of many" for number in range(60)]
    steps = {"steps": 17, "first_steps": 333}
    schedule = {"name": "step", "milestones": [0.25, 0.875], "gamma": 0.2}
    plan = Plan.model_validate(
        PLAN
        | {"classes": names, "fopro": {"prompt": steps}, "loss": {"ce": {"weight": 1.0, "note": "n" * 400 + "end"}}}
        | {"training": PLAN["training"] | {"schedule": schedule}}
    )
    lines = describe_plan(plan)
    text = "\n".join(lines)
    for words in (
        "learned on 333 batches in the first round and 17 in each later one",
        "gamma 0)",
        "milestones [0.25, 0.875], the rate there times 0.2",
        names[-1] + ")",
        "n" * 400 + "end",
    ):
        assert words in text
    cosine = Plan.model_validate(PLAN | {"training": {"schedule": {"name": "cosine", "final_share": 0.125}}})
    assert "schedule cosine, momentum 0.9, weight decay 0.0001, share of the rate at the end 0.125" in "\n".join(
        describe_plan(cosine)
    )
    settings = lines[lines.index("Every setting of the plan:") + 1 :]
    leaves = list_leaves(plan.model_dump(mode="json"))
    assert settings == [f"- {key}: {one if isinstance(one, str) else json.dumps(one)}" for key, one in leaves]


def test_what_is_too_long_to_read_says_how_much_is_left_out() -> None:
    plan = Plan.model_validate(PLAN | {"study": "s" * 6000})
    line = describe_plan(plan)[0]
    assert "s (... and 1,000 more letters, which flower-client --approve --json shows)" in line


def test_a_hash_that_was_named_must_be_the_plan_s(config: ClientConfig) -> None:
    with pytest.raises(PolicyError, match=rf"has the hash {MAIN.sha256}, not {'0' * 64}\. It is not approved"):
        type_approve(config, sha256="0" * 64, yes=True)
    assert approved(config) == []
    assert type_approve(config, sha256=MAIN.sha256, yes=True) == 0
    assert approved(config) == [MAIN.sha256]


def test_a_changed_plan_says_what_has_changed(config: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    type_approve(config, yes=True)
    capsys.readouterr()
    change = {"rounds": 9, "training": PLAN["training"] | {"optimizer": {"lr": 0.5}}}
    changed = Plan.model_validate(PLAN | change)
    assert list_changes(MAIN, changed) == ["rounds: 4 -> 9", "training.optimizer.lr: 0.05 -> 0.5"]
    status, found = look(config, change)
    assert status == "warning"
    assert "rounds: 4 -> 9; training.optimizer.lr: 0.05 -> 0.5" in found
    assert type_approve(config, change, answer="no") == 1
    assert "rounds: 4 -> 9; training.optimizer.lr: 0.05 -> 0.5" in capsys.readouterr().out
    assert approved(config) == [MAIN.sha256]
    type_approve(config, change)
    assert approved(config) == [changed.sha256], "a run has one approved plan"
    type_approve(config, {"run_id": "run2"})
    assert len(approved(config)) == 2, "of another run"


def test_approved_already_and_again(config: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    type_approve(config)
    assert type_approve(config, answer="n") == 0
    assert "is approved already. If the server has to repeat rounds, add --again" in capsys.readouterr().out
    type_approve(config, again=True, answer="n")
    assert [one.number for one in Approvals(Path(config.state_dir)).read()] == [1]
    type_approve(config, again=True)
    assert [one.number for one in Approvals(Path(config.state_dir)).read()] == [2]


def test_again_tells_what_was_answered(config: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the run, under whatever plan: a new plan goes on counting, and only --again begins anew."""
    type_approve(config)
    state = Path(config.state_dir)
    ledger, approvals = Ledger(state / "runs", config.policy), Approvals(state)
    request = Request(kind="train", plan=MAIN, round=1)
    ledger.note(request, approvals.read()[0], "trained", "0" * 64)
    approvals.note_answer(approvals.read()[0])
    capsys.readouterr()
    type_approve(config, {"rounds": 9})
    assert "which goes on counting under the new plan: train 1 times" in capsys.readouterr().out
    assert [(one.number, one.has_answered) for one in approvals.read()] == [(1, True)]
    type_approve(config, again=True, answer="n")
    assert "WARNING: --again counts anew. The server has had of this run: train 1 times." in capsys.readouterr().out
    type_approve(config, again=True)
    assert [(one.sha256, one.number, one.has_answered) for one in approvals.read()] == [(MAIN.sha256, 2, False)]
    last = json.loads((state / "audit.jsonl").read_text().splitlines()[-1])["fields"]
    assert (last["again"], last["answered_before"]) == (True, "train 1 times")


def test_who_approved_is_recorded_and_shown(config: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    type_approve(config, name="Erika Mustermann")
    (approval,) = Approvals(Path(config.state_dir)).read()
    assert (approval.user, approval.name) == (USER, "Erika Mustermann")
    assert look(config)[1].endswith(f"since {approval.approved} by Erika Mustermann, user {USER}")
    shown = render_audit(Path(config.state_dir))
    for word in ("a person here approved a plan", USER, "Erika", "Mustermann"):
        assert word in shown


def test_approvals_of_before_name_nobody(tmp_path: Path) -> None:
    Approvals(tmp_path).add(MAIN)
    file = tmp_path / APPROVALS_FILE
    content = json.loads(file.read_text())
    del content["plans"][0]["user"], content["plans"][0]["name"]
    file.write_text(json.dumps(content))
    assert Approvals(tmp_path).read()[0].by == "nobody who is recorded"


SEX: dict[str, Any] = {"fairness": {"attributes": ["sex"], "intersections": "none"}, "run_id": "first"}
BOTH: dict[str, Any] = {"fairness": {"attributes": ["sex", "age"], "intersections": [["sex", "age"]]}}
BY_SEX: dict[str, Any] = {"losses": "groups", "loss_attribute": "sex"}


def _tell(config: ClientConfig, plan: dict[str, Any], what: str = "tables") -> None:
    note_groups(Path(config.state_dir), config.policy, Plan.model_validate(PLAN | plan), what)


def test_other_groups_of_the_same_images_need_a_word_of_their_own(
    config: ClientConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell(config, SEX)
    status, found = look(config, BOTH)
    assert status == "warning"
    assert "The plan asks for tables by age, age x sex, of images of which this site has told" in found
    assert "run first: sex" in found
    with pytest.raises(PolicyError, match="add --other-groups"):
        type_approve(config, BOTH, yes=True)
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "n" if "patient groups" in question else "y"

    fleet = FakeFleet(make_hello(BOTH))
    assert approve(config, Wish(), connect_to(fleet), answer) == 1
    assert len(asked) == 1
    assert approved(config) == []
    assert "WARNING: The plan asks for tables by age, age x sex" in capsys.readouterr().out
    assert type_approve(config, BOTH, yes=True, other_groups=True) == 0
    assert len(approved(config)) == 1


def test_groups_that_are_known_or_listed_need_none(config: ClientConfig) -> None:
    def needs(plan: dict[str, Any], **policy: Any) -> bool:
        allowed = PolicyConfig.model_validate(policy)
        return bool(find_other_groups(Path(config.state_dir), allowed, Plan.model_validate(PLAN | plan)))

    assert not needs(BOTH), "nothing was told yet"
    _tell(config, SEX)
    assert not needs(SEX | {"run_id": "second"}), "the same again"
    assert needs(BOTH)
    assert needs({}), "all attributes of the data"
    listed = {"attributes": ["sex", "age"], "crossings": [["sex", "age"]]}
    assert not needs(BOTH, **listed)
    assert needs(BOTH, attributes=["sex", "age"]), "the crossing is not listed"
    assert not needs(BOTH, attributes=["sex"]), "no more than sex is told then"
    assert not needs(BOTH | BY_SEX | {"fairness": SEX["fairness"]}), "no losses were told so far"
    _tell(config, BY_SEX, "losses")
    assert needs({"losses": "groups", "loss_attribute": "age x sex", "fairness": SEX["fairness"]})
    assert not needs({"losses": "groups", "loss_attribute": "age x sex", "fairness": SEX["fairness"]}, **listed)
    _tell(config, {})
    assert not needs(BOTH), "every attribute and crossing was told"


def test_json_for_scripts(config: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert type_approve(config, as_json=True) == 1, "nobody was asked, and nobody has said yes"
    told = json.loads(capsys.readouterr().out)
    assert (told["plan_sha256"], told["approved"]) == (MAIN.sha256, False)
    assert type_approve(config, as_json=True, yes=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["approved"] is True
    assert told["words"] == describe_plan(MAIN)
    assert told["plan"]["rounds"] == 4


def test_without_a_terminal_nobody_can_be_asked(config: ClientConfig) -> None:
    with pytest.raises(ConfigError, match="add --yes"):
        approve(config, Wish(), connect_to(FakeFleet(make_hello())))
    with pytest.raises(ConfigError, match="no plan yet"):
        approve(config, Wish(yes=True), connect_to(FakeFleet(make_hello() | {"plan": None})))


def test_settings_name_the_only_plan(config: ClientConfig) -> None:
    named = config.model_copy(update={"policy": config.policy.model_copy(update={"approved_plan": MAIN.sha256})})
    assert look(named)[0] == "ok"
    assert look(named, {"rounds": 9})[0] == "failed"
    with pytest.raises(PolicyError, match=r"policy\.approved_plan in client\.yaml allows the plan"):
        type_approve(named, {"rounds": 9}, yes=True)
    approvals = Approvals(Path(config.state_dir), MAIN.sha256)
    other = Plan.model_validate(PLAN | {"rounds": 9, "run_id": "run2"})
    approvals.add(other)
    assert approvals.find(other) is None
    assert approvals.find(MAIN) is not None


def test_plans_of_a_small_network_follow_from_the_approved_one(tmp_path: Path) -> None:
    plan = Plan.model_validate(PLAN | {"student": {"kind": "co_distillation", "model": {"name": "tiny", "width": 6}}})
    approvals = Approvals(tmp_path)
    approvals.add(plan)
    small, distilled = make_student_plan(plan), make_distil_plan(plan)
    for one, network in ((plan, "trained"), (small, "small"), (distilled, "distilled")):
        found = approvals.find(one)
        assert found is not None
        assert found.find_network(one) == network
    for one in (small, distilled):
        assert approvals.find(one.model_copy(update={"seed": 4})) is None
    at_server = Plan.model_validate(PLAN | {"student": {"kind": "proxy", "model": {"name": "tiny", "width": 6}}})
    approvals.add(at_server)
    assert approvals.find(make_distil_plan(at_server)) is None, "the sites train it in the other kind only"


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '{"format": 2, "plans": []}', "[" * 100_000])
def test_damaged_list_of_approvals_approves_nothing(tmp_path: Path, text: str) -> None:
    Approvals(tmp_path).add(MAIN)
    (tmp_path / APPROVALS_FILE).write_text(text)
    with pytest.raises(RunFolderError, match="Nothing is answered without it"):
        Approvals(tmp_path).find(MAIN)


def test_a_plan_that_was_changed_in_the_file_is_not_the_approved_one(tmp_path: Path) -> None:
    Approvals(tmp_path).add(MAIN)
    file = tmp_path / APPROVALS_FILE
    content = json.loads(file.read_text())
    content["plans"][0]["plan"]["rounds"] = 9
    file.write_text(json.dumps(content))
    assert Approvals(tmp_path).find(MAIN) is None
    assert Approvals(tmp_path).find(Plan.model_validate(PLAN | {"rounds": 9})) is None

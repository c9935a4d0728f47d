"""``release: two_persons``: two different operators, each with the own key, for this very model."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import server.app
from fedmed.config.files import dump_config
from fedmed.config.server import ServerConfig
from fedmed.errors import ConfigError, FederationError, FedmedError, KeyFileError
from fedmed.keys import make_operator_key, make_release_key
from fedmed.processes import write_secret
from fedmed.storage.audit import AuditLog, verify_audit
from fedmed.storage.run_folder import RunFolder
from server.finish.chance import write_doubts
from server.release.decision import check_decided, decide_release, read_decision
from server.release.operators import Signed, check_signatures, hash_content, sign_release
from server.release.publish import prepare_release
from server.rounds.progress import LogListener
from server.supervision.supervisor import Supervisor

BASE = {"address": "a:1", "sites": ["a"], "classes": ["x", "y"], "model": {"name": "resnet18"}}


class Case:
    """A proven candidate in train form, and the keys of four persons, three of whom are operators."""

    def __init__(self, folder: Path) -> None:
        self.run, self.keys = RunFolder.create(folder / "run", "resume"), folder / "keys"
        for name in ("ada", "ben", "cy", "stranger"):
            make_operator_key(self.keys, name)
        operators = {name: str(self.keys / f"{name}.pub") for name in ("ada", "ben", "cy")}
        settings = {"release": "two_persons", "operators": operators, "batch_norm": "local"}
        settings["data"] = {"source": "sites", "image_size": 16}
        self.config = ServerConfig.model_validate(BASE | settings)
        self.write(self.config)
        shared = self.run.path / "shared" / "report"
        for made in (self.run.model, shared):
            made.mkdir(parents=True)
        (self.run.model / "model.safetensors").write_bytes(b"model")
        content = {
            "form": "train",
            "sha256": {"model.safetensors": hashlib.sha256(b"model").hexdigest()},
            "classes": ["x", "y"],
        }
        (self.run.model / "manifest.json").write_text(json.dumps(content))
        (shared / "index.html").write_text("report")
        (shared / "report.json").write_text("{}")
        self.run.finished_file.write_text("{}")

    def write(self, config: ServerConfig) -> None:
        self.run.config_file.write_text(dump_config(config))

    def sign(self, by: str, key: str | None = None) -> Signed:
        options = argparse.Namespace(by=by, key=self.keys / f"{key or by}.key", passphrase_file=None)
        return sign_release(self.run, self.config, options)

    def change_model(self) -> None:
        """Another model, as proven as the one before."""
        from fedmed.export.release_form import change_manifest

        change_manifest(self.run.model, None, {"trained_sha256": "ab" * 32})

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        entries = map(json.loads, self.run.audit_file.read_text().splitlines())
        return [(one["event"], one["fields"]) for one in entries if one["event"].startswith("release")]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_two_persons_release_and_each_is_in_log_and_manifest(case: Case, tmp_path: Path) -> None:
    before = hash_content(case.run)
    first = case.sign("ada")
    assert (first.text, first.is_complete) == ("ada has signed. One more person of 'operators' has to sign.", False)
    assert read_decision(case.run) is None
    second = case.sign("ben")
    assert second.is_complete
    assert second.text.startswith("ada and ben have released the model")
    decision = read_decision(case.run)
    assert decision is not None
    assert decision.by == "ada and ben"
    check_decided(case.run, decision)
    check_signatures(case.run, case.config)
    assert hash_content(case.run) == before  # what was signed is what is released
    manifest = json.loads((case.run.model / "manifest.json").read_text())
    assert (manifest["release"]["kind"], manifest["release"]["by"]) == ("two_persons", "ada and ben")
    assert [one["by"] for one in manifest["release"]["signatures"]] == ["ada", "ben"]
    assert [(event, fields["by"]) for event, fields in case.events] == [
        ("release_signed", "ada"), ("release_signed", "ben"), ("release_decided", "ada and ben"),
    ]  # fmt: skip
    assert {fields["content_sha256"] for event, fields in case.events[:2]} == {before}
    assert verify_audit(case.run.audit_file).ok
    make_release_key(tmp_path / "own")
    prepare_release(case.run, tmp_path / "own" / "release.key", AuditLog(case.run.audit_file))
    released = json.loads((case.run.path / "release" / "manifest.json").read_text())
    assert len(released["release"]["signatures"]) == 2
    with pytest.raises(FederationError, match="was released already, by ada and ben"):
        case.sign("cy")


def test_one_person_does_not_count_twice(case: Case) -> None:
    case.sign("ada")
    with pytest.raises(FederationError, match=r"ada has signed already\. Another person"):
        case.sign("ada")
    assert read_decision(case.run) is None
    assert len(case.events) == 1


def test_a_model_in_doubt_needs_two_persons_all_the_same(case: Case) -> None:
    write_doubts(case.run, ["It is no better than a guess."])
    with pytest.raises(FederationError, match=r"The run has 'release: two_persons'"):
        decide_release(case.run, "ada")
    supervisor = Supervisor(case.config, case.run, LogListener(), "nothing:app")
    assert not case.sign("ada").is_complete
    assert supervisor._must_wait()
    assert case.sign("ben").is_complete
    assert not supervisor._must_wait()
    check_signatures(case.run, case.config)
    release = json.loads((case.run.model / "manifest.json").read_text())["release"]
    assert (release["kind"], release["by"], len(release["signatures"])) == ("two_persons", "ada and ben", 2)
    assert release["doubts"] == case.events[-1][1]["doubts"] == ["It is no better than a guess."]


def test_of_an_automatic_run_one_person_decides_where_there_are_doubts(case: Case) -> None:
    """With ``release: automatic`` one person decides about a model in doubt, and nobody about another."""
    case.write(case.config.model_copy(update={"release": "automatic", "operators": {}}))
    with pytest.raises(FederationError, match=r"'release: automatic': its model is released as soon as it is proven"):
        decide_release(case.run, "ada")
    write_doubts(case.run, ["It is no better than a guess."])
    assert decide_release(case.run, "ada").by == "ada"


@pytest.mark.parametrize(
    ("by", "key", "error", "expected"),
    [
        ("stranger", "stranger", ConfigError, r"'stranger' is none of the 'operators'.*Known: ada, ben, cy"),
        ("ben", "ada", KeyFileError, r"ada\.key is not the key of ben: server\.yaml names .*ben\.pub"),
        ("ben", "stranger", KeyFileError, r"is not the key of ben"),
        ("ben", "missing", KeyFileError, r"missing\.key cannot be read"),
        ("ada\n", "missing", KeyFileError, "cannot be read"),
        ("", "ada", ConfigError, "must be the name of the person"),
    ],
)
def test_others_cannot_sign(case: Case, by: str, key: str, error: type[FedmedError], expected: str) -> None:
    case.sign("ada") if by != "ada\n" else None
    with pytest.raises(error, match=expected):
        case.sign(by, key)
    assert read_decision(case.run) is None


def test_a_key_that_two_operators_share_is_refused(case: Case) -> None:
    shared = {**case.config.operators, "ben": case.config.operators["ada"]}
    case.config = case.config.model_copy(update={"operators": shared})
    case.write(case.config)
    with pytest.raises(ConfigError, match="ben and ada have the same key"):
        case.sign("ben", "ada")


def test_a_signature_for_another_model_does_not_count(case: Case) -> None:
    case.sign("ada")
    case.change_model()
    second = case.sign("ben")
    assert not second.is_complete
    assert "The signature of ada was for another model, and counts no more." in second.text
    assert read_decision(case.run) is None
    assert case.sign("ada").is_complete


def test_a_model_that_was_changed_after_both_have_signed_is_not_handed_out(case: Case) -> None:
    case.sign("ada")
    case.sign("ben")
    case.change_model()
    with pytest.raises(FederationError, match=r"0 valid signatures.*ada: has signed for another model"):
        check_signatures(case.run, case.config)


def test_a_decision_that_was_written_by_hand_is_not_enough(case: Case) -> None:
    """Whoever can write into the run's folder but has no key."""
    case.sign("ada")
    (case.run.path / "release_decision.json").write_text(
        json.dumps({"by": "ada and ben", "time": "now", "manifest_sha256": "x"})
    )
    with pytest.raises(FederationError, match=r"1 valid signatures of different operators"):
        check_signatures(case.run, case.config)
    file = case.run.path / "release_signatures.json"
    content = json.loads(file.read_text())
    for forged in (
        {**content["signatures"][0], "by": "ben"},
        {**content["signatures"][0]},
        {**content["signatures"][0], "by": "stranger"},
        {**content["signatures"][0], "run_id": "other"},
    ):
        file.write_text(json.dumps({**content, "signatures": [content["signatures"][0], forged]}))
        with pytest.raises(FederationError, match="1 valid signatures of different operators"):
            check_signatures(case.run, case.config)
    for damaged in ("{", "[]", '{"signatures": [{"x": 1}]}', '{"signatures": 3}'):
        file.write_text(damaged)
        with pytest.raises(FederationError, match="cannot be read"):
            check_signatures(case.run, case.config)


def test_one_person_alone_cannot_take_the_shorter_way(case: Case, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"The run has 'release: two_persons', server\.yaml says manual"):
        decide_release(case.run, "ada")
    others = {"ada": str(case.keys / "ada.pub"), "ben": str(case.keys / "stranger.pub")}
    case.config = case.config.model_copy(update={"operators": others})
    with pytest.raises(ConfigError, match="others than those with which the run was started"):
        case.sign("ben", "stranger")


def test_two_operators_at_least() -> None:
    with pytest.raises(ValueError, match="needs two or more 'operators', found 1"):
        ServerConfig.model_validate({**BASE, "release": "two_persons", "operators": {"ada": "x"}})


def test_a_run_cannot_be_loosened_while_it_goes_on(tmp_path: Path) -> None:
    two = {**BASE, "release": "two_persons", "operators": {"ada": "/x", "ben": "/y"}}
    run = RunFolder.create(tmp_path / "run", "resume")
    run.write_config(ServerConfig.model_validate(two))
    (run.checkpoints / "round_0001").mkdir(parents=True)
    for change in ({"release": "manual"}, {"release": "automatic"}, {"operators": {"ada": "/x", "ben": "/z"}}):
        with pytest.raises(ConfigError, match="holds a run with other settings"):
            server.app._open_run(run, ServerConfig.model_validate(two | change))


def test_a_person_makes_a_key_with_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(server.app, "raise_on_signals", lambda: None)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.chdir(tmp_path)
    assert server.app.main(["--make-operator-key", "ada"]) == 1
    assert "needs a passphrase" in capsys.readouterr().err
    write_secret(tmp_path / "words", b"the words of ada\n")
    assert server.app.main(["--make-operator-key", "ada", "--passphrase-file", "words"]) == 0
    assert "operators:" in capsys.readouterr().out
    assert (tmp_path / "ada.key").read_bytes().startswith(b"-----BEGIN ENCRYPTED")
    assert server.app.main(["--make-operator-key", "../x", "--no-passphrase"]) == 1
    assert "cannot be the name of an operator" in capsys.readouterr().err


def test_the_command_signs_with_a_locked_key(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    make_operator_key(tmp_path / "locked", "dora", b"the words of dora")
    operators = {**case.config.operators, "dora": str(tmp_path / "locked/dora.pub")}
    case.config = case.config.model_copy(update={"operators": operators, "run_dir": str(case.run.path)})
    case.write(case.config)
    monkeypatch.setattr(server.app, "load_server_config", lambda path: case.config)
    monkeypatch.setattr(server.app, "raise_on_signals", lambda: None)
    monkeypatch.setattr("sys.stdin", None)
    command = ["--config", "x", "--release", "--by", "dora"]
    for words, code, said in (("wrong words here", 1, "was not opened by this passphrase"),
                              ("the words of dora", 0, "dora has signed")):  # fmt: skip
        monkeypatch.setenv("FEDMED_KEY_PASSPHRASE", words)
        assert server.app.main([*command, "--key", str(tmp_path / "locked/dora.key")]) == code
        captured = capsys.readouterr()
        assert said in captured.out + captured.err
    assert server.app.main(command) == 1
    assert "add --key FILE, the private key of dora" in capsys.readouterr().err

"""The command ``flower-server`` without its processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import server.app
import server.supervision.supervisor
from fedmed.config.server import ServerConfig, load_server_config
from fedmed.errors import FederationError
from fedmed.keys import make_release_key
from fedmed.processes import single_instance
from fedmed.storage.audit import AuditLog
from fedmed.storage.run_folder import RunFolder
from server.app import main
from tests.server.support.federation_folder import change, provision_folder


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provision_folder(tmp_path_factory.mktemp("app") / "fed").parent


@pytest.fixture
def file(tmp_path: Path, provisioned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """server.yaml of a federation of its own; signals stay pytest's."""
    monkeypatch.setattr(server.app, "raise_on_signals", lambda: None)
    shutil.copytree(provisioned, tmp_path / "fed")
    return tmp_path / "fed" / "server.yaml"


class FakeSupervisor:
    """Serves as ``work`` says."""

    work: Callable[[], None]
    states: list[BaseException | None]

    def __init__(
        self, config: ServerConfig, run: RunFolder, listener: object, server_app: str, *, config_file: str
    ) -> None:
        self.status = self

    def serve(self) -> None:
        type(self).work()

    def set_ended(self, error: BaseException | None) -> None:
        self.states.append(error)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> type[FakeSupervisor]:
    """What serves in place of the processes."""
    monkeypatch.setattr(server.supervision.supervisor, "Supervisor", FakeSupervisor)
    FakeSupervisor.work, FakeSupervisor.states = staticmethod(lambda: None), []
    return FakeSupervisor


def fail(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return staticmethod(work)


def start(file: Path, *arguments: str) -> int:
    return main(["--config", str(file), *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "x", "--status", "--verify-audit"],
        ["--config", "x", "--public-key", "y"],
        ["--config", "x", "--json"],
        ["--config", "x", "--release"],
        ["--config", "x", "--by", "Ada"],
        ["--config", "x", "--status", "--by", "Ada"],
        ["--config", "x", "--unknown"],
    ],
)
def test_wrong_arguments_are_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: flower-server" in capsys.readouterr().err


def test_help_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in ("--provision", "--add-site", "--revoke-site", "--status", "--release", "--verify-audit", "exit code"):
        assert word in out


@pytest.mark.usefixtures("supervisor")
def test_a_run_that_ends_well_is_code_0(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(file) == 0
    out = capsys.readouterr().out
    assert f"run folder: {file.parent / 'run'}" in out
    assert f"model: {file.parent / 'run' / 'model'}" in out
    assert RunFolder(file.parent / "run").read_settings() == load_server_config(file)


def test_what_ended_the_run_is_told_and_noted(
    file: Path, supervisor: type[FakeSupervisor], capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor.work = fail(FederationError("Too few sites."))
    assert start(file) == 1
    assert capsys.readouterr().err == "\nToo few sites.\n"
    assert start(file, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    supervisor.work = fail(KeyboardInterrupt())
    assert start(file) == 130
    assert f"flower-server --config {file}" in capsys.readouterr().err
    supervisor.work = fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        start(file)
    assert [type(error).__name__ for error in supervisor.states] == [
        "FederationError", "FederationError", "KeyboardInterrupt", "ZeroDivisionError",
    ]  # fmt: skip


def test_settings_and_folders_that_are_missing_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path / "none.yaml") == 1
    assert "none.yaml" in capsys.readouterr().err
    shutil.copy(Path(__file__).resolve().parents[2] / "configs" / "server.yaml", tmp_path)
    assert start(tmp_path / "server.yaml") == 1
    assert "--provision DIR" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert start(tmp_path / "server.yaml", "--status") == 1
    assert "no flower-server has been started" in capsys.readouterr().err


# --- the run's folder


@pytest.mark.usefixtures("supervisor")
def test_a_second_start_changes_nothing_of_the_running_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(file) == 0
    run = RunFolder(file.parent / "run")
    before = run.config_file.read_bytes()
    change(file, round_deadline_s=77)
    with single_instance(run.path / "server.lock", "a flower-server for this run folder"):
        assert start(file) == 1
    assert "A flower-server for this run folder is running already: process" in capsys.readouterr().err
    assert run.config_file.read_bytes() == before


@pytest.mark.usefixtures("supervisor")
@pytest.mark.parametrize("left", ["folders", "lock", "partial", "nothing"])
def test_what_a_start_leaves_that_was_stopped_at_once_is_no_obstacle(file: Path, left: str) -> None:
    run = file.parent / "run"
    run.mkdir()
    if left == "folders":
        RunFolder(run).make_folders()
        (run / "server.lock").write_text("1")
    elif left != "nothing":
        (run / {"lock": "server.lock", "partial": ".config.yaml.12-34.partial"}[left]).write_text("1")
    assert start(file) == 0
    assert (run / "config.yaml").is_file()


@pytest.mark.usefixtures("supervisor")
@pytest.mark.parametrize("name", ["thesis.txt", "logs/old.log"])
def test_a_folder_with_other_files_is_refused_and_untouched(
    file: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file.parent / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = sorted((file.parent / "run").rglob("*"))
    assert start(file) == 1
    err = capsys.readouterr().err
    assert "is no empty folder. Name another folder with run_dir." in err
    assert "--out" not in err
    assert sorted((file.parent / "run").rglob("*")) == before


@pytest.mark.usefixtures("supervisor")
def test_some_settings_may_change_while_a_run_goes_on_and_others_not(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(file) == 0
    run = RunFolder(file.parent / "run")
    change(file, rounds=5)
    assert start(file) == 0  # nothing is saved yet
    (run.checkpoints / "round_00001").mkdir()
    before = run.config_file.read_bytes()
    change(file, rounds=6, seed=9, min_sites=1)
    capsys.readouterr()
    assert start(file) == 1
    err = capsys.readouterr().err
    assert "holds a run with other settings: rounds, seed differ" in err
    assert "set another run_dir" in err
    assert run.config_file.read_bytes() == before
    config = change(file, rounds=5, seed=yaml.safe_load(before)["seed"], min_sites=1, round_deadline_s=5)
    assert start(file) == 0
    assert run.read_settings() == config


@pytest.mark.usefixtures("supervisor")
def test_manual_release_cannot_be_undone_by_editing_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(file) == 0
    (RunFolder(file.parent / "run").checkpoints / "round_00001").mkdir()
    change(file, release="manual")
    assert start(file) == 0
    change(file, release="automatic")
    assert start(file) == 1
    assert "other settings: release differ" in capsys.readouterr().err


@pytest.mark.usefixtures("supervisor")
def test_release_without_a_candidate_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(file, "--release", "--by", "Ada") == 1
    assert "There is no run in" in capsys.readouterr().err
    change(file, release="manual")
    assert start(file) == 0
    assert start(file, "--release", "--by", "Ada") == 1
    assert "has not finished" in capsys.readouterr().err
    assert start(file, "--release", "--by", " ") == 1
    assert "must be the name of the person" in capsys.readouterr().err


# --- sites and keys


@pytest.mark.usefixtures("supervisor")
def test_too_few_sites_on_the_list_are_told_at_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(file, min_sites=3)
    assert start(file) == 1
    assert "Only 2 sites are on the list, min_sites = 3 are needed for a round." in capsys.readouterr().err
    assert start(file, "--add-site", "hospital_c", "--no-passphrase") == 0  # not named in server.yaml
    assert start(file) == 0
    assert start(file, "--revoke-site", "hospital_a") == 0
    done = capsys.readouterr()
    assert "hospital_a is revoked." in done.out
    assert "WARNING: Only 2 sites are on the list" in done.err
    assert start(file) == 1
    RunFolder(file.parent / "run").finished_file.write_text("{}")  # it only serves the model now
    assert start(file) == 0


def test_revoking_a_site_too_many_is_no_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(file, min_sites=1)
    assert start(file, "--revoke-site", "hospital_a") == 0
    assert capsys.readouterr().err == ""
    assert start(file, "--revoke-site", "hospital_x") == 1
    assert "There is no site 'hospital_x'" in capsys.readouterr().err


@pytest.mark.usefixtures("supervisor")
@pytest.mark.parametrize("damage", ["other", "open", "missing"])
def test_the_release_key_is_tried_before_the_first_round(
    file: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = file.parent / "release.key"
    if damage == "other":
        make_release_key(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "release.key", key)
    elif damage == "open":
        key.chmod(0o644)
    else:
        key.unlink()
    assert start(file) == 1
    words = {"other": "are no pair", "open": "chmod 600", "missing": "cannot be read"}
    assert words[damage] in capsys.readouterr().err
    release = file.parent / "run" / "release"
    release.mkdir()
    (release / "manifest.json").write_text("{}")
    assert start(file) == 0  # what is signed needs no key any more


# --- --verify-audit


def write_checkpoint(run: RunFolder, number: int, content: Any) -> None:
    folder = run.checkpoints / f"round_{number:05d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_an_audit_log_that_was_cut_off_is_noticed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(file.parent / "run")
    log = AuditLog(run.audit_file)
    log.append("one")
    write_checkpoint(run, 1, {"state": {"audit_head": log.head}})
    log.append("two")
    write_checkpoint(run, 2, {"state": {"audit_head": log.head}})
    log.append("three")
    write_checkpoint(run, 3, "{")  # damaged; the one before counts
    assert start(file, "--verify-audit") == 0
    assert "The chain holds: 3 entries" in capsys.readouterr().out
    lines = run.audit_file.read_text().splitlines(keepends=True)
    run.audit_file.write_text("".join(lines[:2]))
    assert start(file, "--verify-audit") == 0  # what came after the checkpoint cannot be known
    run.audit_file.write_text(lines[0])
    capsys.readouterr()
    assert start(file, "--verify-audit") == 1
    assert "its end was cut off" in capsys.readouterr().out
    assert start(file, "--verify-audit", "--json") == 1
    assert json.loads(capsys.readouterr().out)["num_entries"] == 1

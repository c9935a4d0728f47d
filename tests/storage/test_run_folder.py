from pathlib import Path

import pytest

from fedmed.config import RunConfig
from fedmed.errors import RunFolderError
from fedmed.storage.environment import describe_environment
from fedmed.storage.run_folder import RunFolder


def make(path: Path) -> RunFolder:
    folder = RunFolder.create(path, "type this")
    folder.write_config(RunConfig(sites=2))
    return folder


def test_config_and_roster_come_back(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    folder.write_roster({7: "site_a", 9: "site_b"})
    again = RunFolder.open(tmp_path / "run")
    assert again.read_config() == RunConfig(sites=2)
    assert again.read_roster() == {7: "site_a", 9: "site_b"}


def test_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    (folder.checkpoints / "round_00000").mkdir()
    with pytest.raises(RunFolderError, match=r"holds a run already(.|\n)*type this"):
        RunFolder.create(tmp_path / "run", "type this")


def test_folder_of_a_start_that_failed_is_used_again_and_other_files_stay(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    folder.record_start()
    (folder.splits / "splits.json").write_text("old")
    again = RunFolder.create(tmp_path / "run", "type this")
    assert list(again.splits.iterdir()) == []
    make(tmp_path / "other")
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is no empty folder"):
        RunFolder.create(tmp_path / "other", "type this")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_folder_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is no empty folder"):
        RunFolder.create(tmp_path, "type this")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no config\.yaml"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_site_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "run")
    folder.write_roster({1: name})
    with pytest.raises(RunFolderError, match="names a site"):
        folder.read_roster()


def test_every_start_is_recorded(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    folder.record_start()
    folder.record_start()
    assert folder.read_environment()["versions"]["flwr"] == "1.42.0"  # type: ignore[index]
    assert folder.environment_file.read_text().count('"python"') == 2


def test_what_is_distilled_belongs_to_the_newest_start(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    assert folder.read_distillation() == {}
    folder.record_start()
    assert folder.read_distillation() == {}
    folder.record_distillation("client", {"name": "resnet18", "sha256": "0" * 64})
    assert folder.read_distillation() == {"fopro": "client", "teacher": {"name": "resnet18", "sha256": "0" * 64}}
    folder.record_start()
    folder.record_distillation("disabled", None)
    assert folder.read_distillation() == {"fopro": "disabled", "teacher": None}
    assert folder.environment_file.read_text().count('"fopro"') == 2


def test_environment_names_neither_machine_nor_user() -> None:
    import getpass
    import platform

    text = str(describe_environment())
    assert platform.node() not in text
    assert f"/{getpass.getuser()}/" not in text


def test_files_of_a_user_are_never_cleared_away(tmp_path: Path) -> None:
    """A folder with a config.yaml of the user's own and folders named like ours."""
    (tmp_path / "config.yaml").write_text("rounds: 3\n")
    for name in ("logs", "sites"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keep.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is no empty folder"):
        RunFolder.create(tmp_path, "type this")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError):
        RunFolder.create(tmp_path, "type this")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["config.yaml", "logs/keep.txt", "notes.txt", "sites/keep.txt"]


def test_a_start_that_failed_early_is_begun_anew(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    folder.write_config(RunConfig(sites=1))
    folder.record_start()
    (folder.logs / "old.log").write_text("the folder of the images does not exist")
    again = RunFolder.create(tmp_path / "run", "type this")
    assert not again.config_file.exists()
    assert not (again.logs / "old.log").exists()

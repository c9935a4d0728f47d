"""Folders that appear complete or not at all; files are tested with the checkpoints."""

import errno
import os
from pathlib import Path

import pytest

from fedmed.errors import CheckpointError
from fedmed.storage.atomic_files import atomic_folder


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder) as partial:
        before = names(folder)
        (partial / "a").write_text(text)
        (partial / "b").write_text(text)
        assert names(folder) == before


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "model", "one")
    (tmp_path / "deep" / "model" / "b").unlink()
    (tmp_path / "deep" / "model" / "c").touch()
    fill(tmp_path / "deep" / "model", "two")
    assert names(tmp_path / "deep") == ["model", "model/a", "model/b"]
    assert (tmp_path / "deep" / "model" / "a").read_text() == "two"


def test_a_failure_leaves_the_older_one_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "model", "one")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "model"):
        raise KeyError
    with (
        pytest.raises(CheckpointError, match=r"disk is full: .*model could not be saved"),
        atomic_folder(tmp_path / "model"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target == tmp_path / "model" and "replaced" not in str(source):
            raise OSError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"model could not be saved \(Permission denied\)"):
        fill(tmp_path / "model", "three")
    assert names(tmp_path) == ["model", "model/a", "model/b"]
    assert (tmp_path / "model" / "a").read_text() == "one"


@pytest.mark.parametrize("gone", [True, False])
def test_what_a_crash_has_left_is_in_nobodys_way(tmp_path: Path, gone: bool) -> None:
    """The crash came before the new folder got its name, and the older one has lost it; or behind."""
    fill(tmp_path / ".model.replaced.partial", "old")
    if not gone:
        fill(tmp_path / "model", "one")
    fill(tmp_path / "model", "two")
    assert names(tmp_path) == ["model", "model/a", "model/b"]
    assert (tmp_path / "model" / "a").read_text() == "two"

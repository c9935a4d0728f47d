"""Ray's sockets need a short path, wherever the folder for temporary files is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmed.errors import ProcessError
from simulations.backend.ray_folder import MOST_BYTES, OWN_PART, choose_ray_folder

ROOT = Path(__file__).resolve().parents[3]
FITS = MOST_BYTES - len(OWN_PART)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_path_is_replaced_by_a_short_folder_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/" + "x" * (FITS - 1))
    assert choose_ray_folder(tmp_path) is None
    monkeypatch.setenv(name, "/" + "x" * FITS)
    folder = Path(str(choose_ray_folder(tmp_path)))
    assert folder.parent == tmp_path
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (os.getuid(), 0o700)
    assert choose_ray_folder(tmp_path) == str(folder), "again"


def test_where_no_short_folder_can_be_made_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 60)
    with pytest.raises(ProcessError, match=rf"^Ray cannot start: .*Set RAY_TMPDIR .* at most {FITS} letters\.$"):
        choose_ray_folder(tmp_path / "missing")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"ray-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ProcessError, match="belongs to somebody else"):
        choose_ray_folder(tmp_path)


def test_ray_starts_with_a_long_folder_for_temporary_files(tmp_path: Path) -> None:
    """It failed with a traceback."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    code = (
        "from simulations.backend.pool import _start_ray\n"
        "import ray\n"
        "print(_start_ray(100), ray.is_initialized())\n"
        "ray.shutdown()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_TMPDIR"}
    environment |= {"TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True True\n", done.stderr

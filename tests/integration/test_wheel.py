"""The wheel holds what the commands need and works outside the checkout.

It is made without the native kernels, whose compilation takes most of the time; tests/native/test_native.py has wheels
with and without them.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedmed.own_packages import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("fedmed", "server", "client", "simulations", "configs", "pyproject.toml", "README.md", "LICENSE"):
        (sources / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sources],
        check=True,
        capture_output=True,
        env=os.environ | {"FEDMED_NATIVE": "0"},
    )
    return next(folder.glob("fedmed_hospitals-*.whl"))


def test_wheel_holds_code_settings_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "configs/simulation.yaml",
        "fedmed/py.typed",
        "client/site.py",
        "server/rounds/loop.py",
        "simulations/run.py",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    scripts = next(name for name in names if name.endswith("entry_points.txt"))
    told = zipfile.ZipFile(wheel).read(scripts).decode()
    assert all(f"{command} = fedmed.own_packages:" in told for command in COMMANDS)
    assert not any(name.startswith(("tests/", "runs/")) for name in names)


def test_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import simulations.run as run, sys; assert run.__file__.startswith(sys.path[0]), run.__file__;"
        "sys.exit(run.main(['--out', 'r', '--set', 'rounds=0']))"
    )
    script = tmp_path / "site" / "start.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    # The default settings were found in the wheel, and the wrong value was noticed.
    assert "--set rounds=0: 'rounds' is 0." in done.stderr

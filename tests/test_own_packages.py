"""A user's ``client.py`` on the path, as Flower's tutorials have one, takes the place of none of our packages."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedmed.own_packages import COMMANDS, PACKAGES, ROOT, find_shadowing
from fedmed.processes import child_environment
from fedmed.versions import find_versions

NAMES = ("client.py", "server.py", "simulations.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a user's own modules, which say that they were run."""
    for name in NAMES:
        (tmp_path / name).write_text("raise SystemExit('the user\\'s own module was imported')\n")
    return tmp_path


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([".", str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


def test_every_command_that_is_installed_is_known() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == set(COMMANDS)
    assert all(script.startswith("fedmed.own_packages:") for script in scripts.values())


def test_modules_in_the_way_are_found(folder: Path) -> None:
    assert find_shadowing([str(ROOT)]) == {}
    assert find_shadowing([str(ROOT), str(folder)]) == {}, "ours come first"
    found = find_shadowing([str(folder), str(ROOT)])
    assert found == {name.removesuffix(".py"): str(folder / name) for name in NAMES}


def test_folder_without_init_is_in_the_way_only_where_ours_is_not_on_the_path(tmp_path: Path) -> None:
    """An editable install finds our packages by a finder that is asked last, after folders of the same name."""
    (tmp_path / "configs").mkdir()
    assert find_shadowing([str(tmp_path), str(ROOT)]) == {}
    assert find_shadowing([str(tmp_path)]) == {"configs": str(tmp_path / "configs")}


@pytest.mark.parametrize("command", ["run_server", "run_client", "run_simulation"])
def test_commands_run_beside_modules_of_the_same_name(folder: Path, command: str) -> None:
    start = (
        f"import sys; from fedmed.own_packages import {command}; sys.argv[1:] = ['--version']; sys.exit({command}())"
    )
    told = find_versions("fedmed", "flwr", "torch")
    assert run(folder, "-c", start) == f"fedmed {told['fedmed']} (flwr {told['flwr']}, torch {told['torch']})\n"


def test_child_processes_get_our_packages_too(folder: Path) -> None:
    child = (
        "import json, client, server, simulations as s; print(json.dumps([m.__file__ for m in (client, server, s)]))"
    )
    start = (
        "import subprocess, sys, pathlib; from fedmed.own_packages import use_own_packages\n"
        "use_own_packages()\n"
        "from fedmed.processes import child_environment\n"
        f"command = [sys.executable, '-P', '-c', {child!r}]\n"
        "subprocess.run(command, env=child_environment(pathlib.Path('home')), check=True)"
    )
    found = ast.literal_eval(run(folder, "-c", start).splitlines()[-1])
    assert found == [str(ROOT / name / "__init__.py") for name in ("client", "server", "simulations")]


def test_nothing_is_changed_where_nothing_is_in_the_way(tmp_path: Path) -> None:
    start = "import os, sys; from fedmed.own_packages import use_own_packages; before = sys.path[:], dict(os.environ)\n"
    run(tmp_path, "-c", start + "use_own_packages(); assert (sys.path, dict(os.environ)) == before")
    assert set(PACKAGES) >= {"client", "server"}
    assert child_environment(tmp_path)["PYTHONSAFEPATH"] == "1"


@pytest.mark.slow
def test_simulation_runs_beside_modules_of_the_same_name(folder: Path) -> None:
    """Its own process, and Ray's workers, which take over the path."""
    start = "import sys; from fedmed.own_packages import run_simulation; sys.argv[1:] = {}; sys.exit(run_simulation())"
    small = [
        "rounds=1",
        "sites=2",
        "workers=2",
        "data.images_per_site=40",
        "data.image_size=32",
        "model.name=mobilenet_v2",
        "benefit=false",
    ]
    settings = [word for setting in small for word in ("--set", setting)]
    run(folder, "-c", start.format(["--out", "run", *settings]))
    assert json.loads((folder / "run" / "report" / "report.json").read_text())["rounds"] == 1

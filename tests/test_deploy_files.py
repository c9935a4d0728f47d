"""What can be checked of configs/deploy without Docker and without systemd running."""

import configparser
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "configs" / "deploy"
SIDES = ["server", "client"]
INSTRUCTIONS = {
    "FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR", "HEALTHCHECK",
}  # fmt: skip
SECRET = re.compile(r"-----BEGIN|(PASSWORD|PASSWD|TOKEN|SECRET|API_KEY)\s*=|https?://[^/\s]+:[^/\s]+@", re.IGNORECASE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = PROJECT["scripts"]


def read_dockerfile(side):
    """Return the instructions as (name, arguments), with continued lines joined."""
    instructions, open_line = [], ""
    for line in (DEPLOY / f"Dockerfile.{side}").read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        open_line += line.strip()
        if open_line.endswith("\\"):
            open_line = open_line[:-1]
            continue
        name, _, arguments = open_line.partition(" ")
        instructions.append((name, arguments.strip()))
        open_line = ""
    assert not open_line, "the last line asks for a continuation"
    return instructions


def last_stage(side):
    instructions = read_dockerfile(side)
    begin = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[begin:]


def only(instructions, name):
    found = [arguments for instruction, arguments in instructions if instruction == name]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


@pytest.mark.parametrize("side", SIDES)
class TestDockerfile:
    def test_every_line_is_an_instruction(self, side):
        for name, arguments in read_dockerfile(side):
            assert name in INSTRUCTIONS  # no ADD, which unpacks and downloads, and no ARG, which stays in the history
            assert arguments
            if name in {"RUN", "ENV", "LABEL"}:
                shlex.split(arguments)
            if name == "ENV":
                assert all("=" in part for part in shlex.split(arguments))

    def test_both_stages_are_the_same_system(self, side):
        bases = [arguments for name, arguments in read_dockerfile(side) if name == "FROM"]
        assert bases == ["python:3.12-slim AS build", "python:3.12-slim"]

    def test_what_is_copied_exists_and_is_code(self, side):
        allowed = {
            "requirements.lock", "pyproject.toml", "README.md", "LICENSE", "fedmed", "server", "client", "simulations",
            "configs",
        }  # fmt: skip
        copied = []
        for name, arguments in read_dockerfile(side):
            if name == "COPY" and not arguments.startswith("--from=build /opt/fedmed "):
                *sources, target = shlex.split(arguments)
                copied += sources
                assert target in {"./", f"./{sources[0]}"}
                assert all((ROOT / source).exists() for source in sources)
        assert set(copied) == allowed
        assert len(copied) == len(allowed)

    def test_the_build_sees_no_more_than_that(self, side):
        lines = [
            line
            for line in (DEPLOY / f"Dockerfile.{side}.dockerignore").read_text().splitlines()
            if line and not line.startswith("#")
        ]
        copied = {
            source
            for name, arguments in read_dockerfile(side)
            if name == "COPY" and "--from" not in arguments
            for source in shlex.split(arguments)[:-1]
        }
        assert lines[0] == "*"
        assert {line[1:] for line in lines if line.startswith("!")} == copied
        last_allowed = max(index for index, line in enumerate(lines) if line.startswith("!"))
        assert {"**/*.key", "**/*.pem", "**/kits"} <= set(lines[last_allowed:])

    def test_packages_are_checked_against_the_lock(self, side):
        installs = [
            arguments for name, arguments in read_dockerfile(side) if name == "RUN" and "install --no" in arguments
        ]
        assert len(installs) == 2
        assert "--require-hashes -r requirements.lock" in installs[0]
        assert "--no-deps --no-build-isolation ." in installs[1]  # and setuptools is in the lock:
        assert re.search(r"^setuptools==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)

    def test_the_python_of_the_image_is_one_that_we_support(self, side):
        version = re.match(r"python:(\d+\.\d+)-slim", only(last_stage(side), "FROM"))[1]
        assert SpecifierSet(PROJECT["requires-python"]).contains(version)

    def test_it_does_not_run_as_root(self, side):
        stage = last_stage(side)
        assert only(stage, "USER") == "10001:10001"
        names = [name for name, _ in stage]
        assert "RUN" not in names[names.index("USER") :]
        assert "--uid 10001 --gid 10001" in only(stage, "RUN")

    def test_state_is_in_a_volume_of_its_owner_only(self, side):
        stage = last_stage(side)
        assert json.loads(only(stage, "VOLUME")) == ["/var/lib/fedmed"]
        assert only(stage, "WORKDIR") == "/var/lib/fedmed"
        assert "--owner=fedmed --group=fedmed --mode=0700 /var/lib/fedmed" in only(stage, "RUN")

    def test_the_entry_point_is_our_command_without_a_shell(self, side):
        stage = last_stage(side)
        (program,) = json.loads(only(stage, "ENTRYPOINT"))
        assert program == f"flower-{side}"
        assert program in SCRIPTS
        assert json.loads(only(stage, "CMD")) == ["--config", f"/var/lib/fedmed/{side}.yaml"]

    def test_the_health_check_is_ours(self, side):
        options, command = only(last_stage(side), "HEALTHCHECK").split("CMD", 1)
        assert re.fullmatch(r"(--(interval|timeout|start-period)=\d+s |--retries=\d+ )+", options)
        python, dash_m, module, address = json.loads(command)
        assert (python, dash_m, address) == ("python", "-m", "127.0.0.1:8441")
        assert importlib.util.find_spec(module) is not None
        assert f"health: {address}" in (DEPLOY / f"Dockerfile.{side}").read_text()

    def test_only_the_server_has_a_port(self, side):
        ports = [arguments for name, arguments in read_dockerfile(side) if name == "EXPOSE"]
        assert ports == (["8443"] if side == "server" else [])


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_no_secret_and_no_path_of_ours(path):
    text = path.read_text()
    assert not SECRET.search(text)
    assert str(ROOT) not in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_nothing_else_lies_there():
    assert {path.name for path in DEPLOY.iterdir()} - {"README.md"} == {
        f"{name}{side}{end}"
        for side in SIDES
        for name, end in (("Dockerfile.", ""), ("Dockerfile.", ".dockerignore"), ("fedmed-", ".service"))
    }


def read_unit(side):
    unit = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    unit.optionxform = str
    unit.read(DEPLOY / f"fedmed-{side}.service")
    return unit


@pytest.mark.parametrize("side", SIDES)
class TestService:
    def test_the_command_is_ours(self, side):
        program, *arguments = shlex.split(read_unit(side)["Service"]["ExecStart"])
        folder, _, name = program.rpartition("/")
        assert (folder, name) == ("/opt/fedmed/bin", f"flower-{side}")
        assert name in SCRIPTS
        assert arguments == ["--config", f"/var/lib/fedmed-{side}/{side}.yaml"]

    def test_it_is_shut_in(self, side):
        service = read_unit(side)["Service"]
        assert service["NoNewPrivileges"] == "yes"
        assert service["ProtectSystem"] == "strict"
        assert service["ReadWritePaths"] == service["WorkingDirectory"] == f"/var/lib/fedmed-{side}"
        assert service["User"] == service["Group"] == f"fedmed-{side}"
        assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
        assert service["UMask"] == "0077"

    def test_it_comes_back_after_a_failure_only(self, side):
        service = read_unit(side)["Service"]
        assert service["Restart"] == "on-failure"
        assert service["KillMode"] == "mixed"  # the supervisor ends its children itself
        assert int(service["TimeoutStopSec"].removesuffix("s")) >= 30

    def test_a_gpu_stays_visible_at_a_hospital(self, side):
        """Each of these would hide /dev/nvidia*; ProtectClock does so by implying a DeviceAllow."""
        hiding = {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy"} & set(read_unit(side)["Service"])
        assert hiding == ({"PrivateDevices", "ProtectClock"} if side == "server" else set())

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
    def test_systemd_understands_every_line(self, side, tmp_path):
        """The program is put where the unit looks for it; a misspelt key shows that mistakes are found."""
        program = tmp_path / "bin" / f"flower-{side}"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        text = (DEPLOY / f"fedmed-{side}.service").read_text().replace("/opt/fedmed/bin", str(program.parent))
        outputs = []
        for folder, content in (("right", text), ("wrong", text.replace("NoNewPrivileges=", "NoNewPrivilege="))):
            unit = tmp_path / folder / f"fedmed-{side}.service"
            unit.parent.mkdir()
            unit.write_text(content)
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", unit], check=False, capture_output=True, text=True
            )
            outputs.append(done.stdout + done.stderr)
        if "NoNewPrivilege" not in outputs[1]:
            pytest.skip("systemd-analyze does not work on this machine")
        assert outputs[0] == ""

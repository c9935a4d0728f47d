"""No dependency phones home, and none leaves files outside of the folders that a person has named.

Each command runs under a fresh home folder. Two pairs of eyes look at it: an audit hook in every Python process
(``tests/support/watch``), and ``strace`` where it is there and allowed, which also sees what native code does
(onnxruntime, Ray's daemons). Where ``unshare`` is allowed, there is no network but loopback besides.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
V1 = ROOT / "tests" / "fixtures" / "v1"
SERVER = [sys.executable, "-c", "import sys; from server.app import main; sys.exit(main())"]
CLIENT = [sys.executable, "-c", "import sys; from client.app import main; sys.exit(main())"]
LAUNCH = [sys.executable, "-m", "tests.fixtures.launch"]
_LONGEST_S = 200.0
_CALLS = "connect,sendto,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2"
_LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.|localhost$|0\.0\.0\.0$|::$|$")
_SYSTEM = ("/dev/", "/proc/", "/sys/", "pipe:", "socket:")
_ADDRESS = re.compile(r'(?:connect|sendto)\(.*sa_family=AF_INET6?,.*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
_OPENED = re.compile(r'(?:openat\(AT_FDCWD, |open\()"([^"]+)", [A-Z_|]*(?:O_WRONLY|O_RDWR|O_CREAT)[^)]*\) += \d')
_MADE = re.compile(r'(?:mkdirat\(AT_FDCWD, |mkdir\(|creat\()"([^"]+)"[^)]*\) += \d')
_MOVED = re.compile(r'rename\w*\(.*"([^"]+)"(?:, \w+)?\) += 0')
# Brings up loopback, which is down in a new network namespace, and becomes the command.
_ALONE = (
    "import fcntl, os, socket, struct, sys\n"
    "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:\n"
    "    fcntl.ioctl(one, 0x8914, struct.pack('16sh', b'lo', 0x1 | 0x40) + bytes(22))\n"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@functools.cache
def is_allowed(*command: str) -> bool:
    """Return whether a program is there and may do what it is for."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command], capture_output=True, check=False, timeout=60).returncode == 0


@dataclass
class Watched:
    """What a command did."""

    code: int
    said: str
    reached: set[str] = field(default_factory=set)
    """Other machines, by name or address."""
    written: set[str] = field(default_factory=set)
    """Files outside of the command's own folders."""


class Machine:
    """A person's folders, fresh: home, place for temporary files, and the folder that the commands are typed in."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.home, self.temporary, self.work = folder / "home", temporary / "t", folder / "work"
        for path in (self.home, self.temporary, self.work):
            path.mkdir()
        self._notes, self._trace = folder / "notes", folder / "trace"
        # Of what a test environment sets, such as CI, nothing is passed on.
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'watch'}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",  # else the library's own folder gets compiled files
            "FEDMED_WATCH": str(self._notes),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, command: list[str], stop_after_s: float | None = None) -> Watched:
        """Run a command to its end, or stop it as Ctrl-C does after some seconds."""
        for path in (self._notes, self._trace):
            path.unlink(missing_ok=True)
        before: list[str] = []
        if is_allowed("unshare", "-rn", sys.executable, "-c", _ALONE, "true"):
            before += ["unshare", "-rn", sys.executable, "-c", _ALONE]
        if is_allowed("strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"):
            before += ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "300", "-e", f"trace={_CALLS}"]
            before += ["-o", str(self._trace)]
        with subprocess.Popen(
            [*before, *command],
            cwd=self.work,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            timers = [threading.Timer(_LONGEST_S, os.killpg, (process.pid, signal.SIGKILL))]
            if stop_after_s is not None:
                timers.append(threading.Timer(stop_after_s, os.killpg, (process.pid, signal.SIGINT)))
            for timer in timers:
                timer.start()
            said = process.communicate()[0]
            for timer in timers:
                timer.cancel()
        return self._judge(Watched(process.returncode, said))

    def _judge(self, found: Watched) -> Watched:
        reached, written = set(), set()
        if self._notes.exists():
            notes = [line.partition(" ")[::2] for line in self._notes.read_text(errors="replace").splitlines()]
            reached |= {value for what, value in notes if what in {"CONNECT", "LOOKUP"}}
            written |= {value for what, value in notes if what == "WRITE"}
        if self._trace.exists():
            trace = self._trace.read_text(errors="replace")
            reached |= set(_ADDRESS.findall(trace))
            written |= {path for pattern in (_OPENED, _MADE, _MOVED) for path in pattern.findall(trace)}
        own = (str(self.work), str(self.temporary), str(self._notes), str(self._trace), *_SYSTEM)
        found.reached = {address for address in reached if not _LOOPBACK.match(address)}
        found.written = {path for path in written if path.startswith("/") and not path.startswith(own)}
        found.written |= {str(path) for path in self.home.rglob("*")}
        return found

    def expect_quiet(self, command: list[str], code: int | None = 0, stop_after_s: float | None = None) -> str:
        """Run a command; it must end as it should, reach nobody and leave nothing behind elsewhere."""
        found = self.run(command, stop_after_s)
        assert code is None or found.code == code, found.said
        assert found.reached == set(), found.said
        assert found.written == set(), found.said
        return found.said


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="fm") as temporary:  # Ray's sockets need a short path
        yield Machine(tmp_path, Path(temporary))


def test_watch_sees_what_it_is_for(machine: Machine) -> None:
    """A connection, a question for a name and a file outside; or the rest of this file would show nothing."""
    code = (
        "import socket, pathlib\n"
        "pathlib.Path.home().joinpath('left').write_text('x')\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one: one.connect_ex(('192.0.2.7', 9))\n"
        "try: socket.getaddrinfo('telemetry.invalid', 80)\n"
        "except OSError: pass\n"
    )
    found = machine.run([sys.executable, "-c", code])
    assert {"192.0.2.7", "telemetry.invalid"} <= found.reached
    assert str(machine.home / "left") in found.written


@pytest.mark.ci
def test_commands_of_both_sides(machine: Machine) -> None:
    shutil.copy(ROOT / "configs" / "server.yaml", machine.work)
    assert "--provision" in machine.expect_quiet([*SERVER, "--help"])
    machine.expect_quiet([*SERVER, "--provision", "fed", "--keys-at-sites", "--config", "server.yaml"])
    shutil.copytree(V1 / "federation", machine.work / "then")
    assert "finished" in machine.expect_quiet([*SERVER, "--config", "then/server.yaml", "--status"])
    site = ["--config", "then/kits/site_01/client.yaml"]
    assert "The chain holds" in machine.expect_quiet([*CLIENT, *site, "--verify-audit"])
    assert "240 images" in machine.expect_quiet([*CLIENT, *site, "--check", "--offline"], code=None)


def test_program_of_a_model_here_and_copied_away(machine: Machine) -> None:
    shutil.copytree(V1 / "artefact", machine.work / "artefact")
    for name in ("predict.py", "predict_tables.py", "predict_watch.py"):
        shutil.copy(ROOT / "fedmed" / name, machine.work / "artefact" / "model")
    image = "artefact/image.png"
    machine.expect_quiet([sys.executable, "-m", "fedmed.predict", "--model", "artefact/model", image])
    machine.expect_quiet([sys.executable, "artefact/model/predict.py", image, "--csv", "out.csv"])
    assert (machine.work / "out.csv").is_file()


@pytest.mark.slow
def test_simulation_and_export(machine: Machine) -> None:
    shutil.copy(V1 / "finished_run.yaml", machine.work / "run.yaml")
    quick = ["--set", "rounds=1", "--set", "training.epochs_per_round=1", "--set", "benefit=false"]
    machine.expect_quiet([*LAUNCH, "simulate", "--config", "run.yaml", "--out", "run", *quick])
    machine.expect_quiet([*LAUNCH, "export", "run", "--out", "model"])
    assert (machine.work / "run" / "report" / "index.html").is_file()
    assert (machine.work / "model" / "model.onnx").is_file()


@pytest.mark.slow
def test_server_that_waits_for_its_sites(machine: Machine) -> None:
    shutil.copy(ROOT / "configs" / "server.yaml", machine.work)
    machine.expect_quiet([*SERVER, "--provision", "fed", "--no-passphrase", "--config", "server.yaml"])
    machine.expect_quiet([*SERVER, "--config", "fed/server.yaml"], code=130, stop_after_s=25)
    assert (machine.work / "fed" / "run" / "config.yaml").is_file()

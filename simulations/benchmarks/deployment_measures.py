"""One federation of real processes, watched from outside: when its rounds close, and the memory of its processes.

Memory is the sum of the processes' proportional set sizes: a page that several of them share counts once.
"""

import itertools
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import yaml

from client.guard.approvals import Approvals
from fedmed.config import Plan
from fedmed.processes import find_free_port
from fedmed.storage.history import read_history
from fedmed.storage.run_folder import RunFolder
from server.finish.chance import DOUBTS_FILE
from server.provisioning.provision import provision
from simulations.benchmarks.links import HOST, Address, Lines

ROUND_PARTS = ("before", "updates up", "average", "model down", "save")
"""Of a round: up to the request to train, up to the last update, up to the request to evaluate, up to the last tables,
up to the line in the history."""
_CLASSES = ["pattern_plain", "pattern_mesh", "pattern_globules"]
_SITE_DATA = {"source": "phantom", "images_per_site": 40, "num_classes": len(_CLASSES), "image_size": 16}
_COMMAND = "import sys, {0}.app; sys.exit({0}.app.main(sys.argv[1:], {0}_app={1!r}))"
_APPS = {
    "server": "simulations.benchmarks.deployment_server:server_app",
    "client": "simulations.benchmarks.deployment_apps:client_app",
}
_LINE = re.compile(r"(\S+ \S+) INFO fedmed\.server (?:round (\d+)(?:: (train|evaluate) at| (closed))|\S+: (answered))")
_LOOK_EVERY_S = 0.005
_MEMORY_EVERY_S = 0.1
_PATIENCE_S = 1200.0
_GRACE_S = 30.0

Command = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Case:
    """A federation to measure."""

    megabytes: int
    """Size of the model; 1 MB is 10^6 bytes."""
    num_sites: int
    mbit_s: float | None = None
    """Speed of each site's line; None: as fast as the machine is."""
    num_timed: int = 4
    """Rounds whose time is taken; memory is measured in one before and one after them."""


@dataclass
class Figures:
    """What was measured."""

    round_s: float = 0.0
    """Median of the timed rounds."""
    rounds_s: list[float] = field(default_factory=list)
    parts_s: dict[str, float] = field(default_factory=dict)
    """Where the time of a round goes, see :data:`ROUND_PARTS`; medians."""
    server_cpu_s: float = 0.0
    sites_cpu_s: float = 0.0
    """Work of all processes of a side in a round; unlike the time, it depends little on what else the machine does."""
    bytes_each_way: int = 0
    """Of the model to one site, and as many of its update back, in a timed round."""
    server_mib: dict[str, float] = field(default_factory=dict)
    """Memory of each process of the coordinating site at the moment of their highest sum."""
    client_mib: dict[str, float] = field(default_factory=dict)
    """The same for one site."""
    server_disk_mib: float = 0.0
    """Most that the coordinating site's folder held in the last rounds."""
    disk_growth_mib: float = 0.0
    """By how much that folder had grown between the end of the first round and the end of the last timed one."""


def measure(case: Case, folder: Path) -> Figures:
    """Run a federation to its end and return its figures.

    Parameters
    ----------
    case : Case
        What to run.
    folder : Path
        For everything; must be empty.
    """
    address = (HOST, find_free_port())
    with ExitStack() as stack:
        ports = [address[1]] * case.num_sites
        if case.mbit_s is not None:
            ports = stack.enter_context(Lines(address, case.num_sites, case.mbit_s)).ports
        kits = _provision(case, folder, address, ports)
        run = RunFolder(folder / "federation" / "run")
        server = stack.enter_context(_start("server", folder / "federation" / "server.yaml", folder / "server.txt"))
        _approve(run, kits, server)
        clients = [
            stack.enter_context(_start("client", kit / "client.yaml", folder / f"{kit.name}.txt")) for kit in kits
        ]
        figures, closed, commands = Figures(), list[float](), [server, *clients]
        sides = ([server.pid], [client.pid for client in clients])
        with _watch_memory({"server": server.pid, "client": clients[0].pid}, folder / "federation") as memory:
            _watch_rounds(run, commands, 1, closed)
            memory.wanted = False
            disk = measure_folder(folder / "federation")
            before = [read_cpu_s(pids) for pids in sides]
            _watch_rounds(run, commands, case.num_timed + 1, closed)
            after = [read_cpu_s(pids) for pids in sides]
            figures.disk_growth_mib = (measure_folder(folder / "federation") - disk) / 2**20
            memory.wanted = True
            # The made-up model is at chance, so that its release waits for a person.
            _wait(lambda: server.poll() is not None or (run.path / DOUBTS_FILE).exists(), commands)
    figures.server_cpu_s, figures.sites_cpu_s = ((b - a) / case.num_timed for a, b in zip(before, after, strict=True))
    figures.rounds_s = [end - begin for begin, end in itertools.pairwise(closed[: case.num_timed + 1])]
    figures.round_s = statistics.median(figures.rounds_s)
    figures.parts_s = read_parts((run.logs / "executor.log").read_text(), case.num_timed)
    figures.server_mib, figures.client_mib = memory.peaks["server"], memory.peaks["client"]
    figures.server_disk_mib = memory.disk_mib
    figures.bytes_each_way = _read_bytes(run, case)
    return figures


def read_parts(log: str, num_timed: int) -> dict[str, float]:
    """Return the median seconds of the parts of a round, from the log of the ServerApp."""
    found: dict[str, list[float]] = {part: [] for part in ROUND_PARTS}
    marks: list[float] = []
    last_answer = 0.0
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        now = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        if match[5]:
            last_answer = now
        elif match[3] == "train":
            marks = [*marks[:1], now]
        elif match[3] == "evaluate":
            marks += [last_answer, now]
        elif match[4]:
            marks += [last_answer, now]
            if 1 < int(match[2]) <= num_timed + 1:
                for part, begin, end in zip(ROUND_PARTS, marks, marks[1:], strict=False):
                    found[part].append(end - begin)
            marks = [now]
    return {part: statistics.median(seconds) for part, seconds in found.items() if seconds}


def _read_bytes(run: RunFolder, case: Case) -> int:
    """Return the bytes that every timed round sent to one site, which are those that it got back."""
    records = read_history(run.history_file)[1 : case.num_timed + 1]
    counts = {number for record in records for number in (record.bytes_to_sites, record.bytes_from_sites)}
    if len(counts) != 1:
        raise SystemExit(f"a round should send each site one model and get one update; bytes were {sorted(counts)}")
    return counts.pop() // case.num_sites


def _provision(case: Case, folder: Path, address: Address, ports: list[int]) -> list[Path]:
    names = [f"site_{number:02d}" for number in range(1, case.num_sites + 1)]
    where = f"{address[0]}:{address[1]}"
    plain = folder / "server.yaml"
    settings = {
        "name": "benchmark",
        "address": where,
        "listen": where,
        "sites": names,
        "rounds": case.num_timed + 2,
        "min_sites": case.num_sites,
        "round_deadline_s": _PATIENCE_S,
        "collect_wait_s": _PATIENCE_S,
        "classes": _CLASSES,
        "model": {"name": "benchmark_ballast", "megabytes": case.megabytes},
        "data": {"source": "sites", "image_size": 16, "synthetic": True},
        "choice": "tables",
        "benefit": False,
        "calibrate": False,
    }
    plain.write_text(yaml.safe_dump(settings))
    kits = [site.folder for site in provision(folder / "federation", plain)]
    for name, kit, port in zip(names, kits, ports, strict=True):
        file = kit / "client.yaml"
        changes = {
            "server": f"{HOST}:{port}",
            "data": _SITE_DATA,
            "data_sites": case.num_sites,
            "data_site": name,
            "threads": 1,
            # The apps of the benchmark answer with made-up numbers, which a hospital's thresholds would not let out.
            "policy": {"suppression": {"k": 1, "k_row": 1}, "validation_tables": True, "min_images": 2},
        }
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    return kits


def _approve(run: RunFolder, kits: list[Path], server: Command) -> None:
    """Approve the plan of the server's greeting at every site, as people there do with ``flower-client --approve``."""
    hello = run.path / "link" / "hello.json"
    _wait(hello.is_file, [server])
    plan = Plan.model_validate(json.loads(hello.read_text())["plan"])
    for kit in kits:
        Approvals(kit / "state").add(plan)


@contextmanager
def _start(side: str, config: Path, log: Path) -> Iterator[Command]:
    """Run one of the two commands with the apps of the benchmark; show what it said if it failed."""
    arguments = [sys.executable, "-c", _COMMAND.format(side, _APPS[side]), "--config", str(config)]
    with log.open("wb") as output:
        command = subprocess.Popen(  # noqa: S603
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield command
    finally:
        if command.poll():
            print(f"{log.stem}:\n{log.read_text(errors='replace')}", file=sys.stderr)
        command.terminate()
        try:
            command.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            command.kill()
            command.wait()


def _watch_rounds(run: RunFolder, commands: list[Command], number: int, closed: list[float]) -> None:
    """Wait until some rounds are closed, and note when each was."""

    def look() -> bool:
        lines = run.history_file.read_bytes().count(b"\n") if run.history_file.exists() else 0
        closed.extend([time.monotonic()] * (lines - len(closed)))
        return len(closed) >= number

    _wait(look, commands)


def _wait(condition: Callable[[], bool], commands: list[Command]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end or any(command.poll() for command in commands):
            raise SystemExit("a federation of the benchmark failed or did not end in time; what it said is above")
        time.sleep(_LOOK_EVERY_S)


@dataclass
class Memory:
    """By the name of a command: MiB of each of its processes at the moment of their highest sum."""

    peaks: dict[str, dict[str, float]]
    disk_mib: float = 0.0
    """Most that the watched folder held."""
    wanted: bool = True
    """Off while times are taken, since measuring takes time as well."""


@contextmanager
def _watch_memory(pids: dict[str, int], folder: Path) -> Iterator[Memory]:
    memory, ended = Memory({name: {} for name in pids}), threading.Event()

    def watch() -> None:
        while not ended.wait(_MEMORY_EVERY_S):
            for name, pid in pids.items() if memory.wanted else ():
                memory.peaks[name] = max(memory.peaks[name], read_pss_mib(pid), key=lambda mib: sum(mib.values()))
            if memory.wanted:
                memory.disk_mib = max(memory.disk_mib, measure_folder(folder) / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def read_pss_mib(pid: int) -> dict[str, float]:
    """Return the proportional set sizes, in MiB, of a process and of all that it has started."""
    found: dict[str, float] = {}
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                command = member.cmdline()
                name = command[command.index("-m") + 1] if "-m" in command else "command"
                found[name] = found.get(name, 0.0) + member.memory_full_info().pss / 2**20
    return found


def measure_folder(folder: Path) -> int:
    """Return the bytes of all files under a folder; a file with two names counts once, what vanishes meanwhile not."""
    found: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.stat(follow_symlinks=False)
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def read_cpu_s(pids: list[int]) -> float:
    """Return the processor time that some processes and all that they have started have used so far."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for member in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    total += sum(member.cpu_times()[:2])
    return total

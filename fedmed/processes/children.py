"""Child processes of a supervisor, and how they end with it."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from fedmed.errors import ProcessError
from fedmed.processes.logs import rotate_log

PASSPHRASE_VARIABLE = "FEDMED_KEY_PASSPHRASE"  # noqa: S105  (its name, no secret)
"""Environment variable with the passphrase of a key, for scripts and services; children do not get it."""
_PR_SET_PDEATHSIG = 1
_PARENT_POLL_S = 0.5
# Messages are large and alike: with these settings of the C library their memory is used again instead of being given
# back and fetched anew page by page, which took twice as long as everything else that is done with a message.
_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456"


def child_environment(home: Path, extra: Mapping[str, str] | None = None, *, network: bool = False) -> dict[str, str]:
    """Return the environment of a child process.

    Parameters
    ----------
    home : Path
        Folder for what Flower keeps.
    extra : mapping of str to str, optional
        Further variables. Everybody on the machine with the same user can read them: no secrets.
    network : bool
        Whether the process connects to other machines. If not, it does not get the proxies of this process
        (``HTTPS_PROXY`` and the like), which may hold a password.
    """
    environment = {name: value for name, value in os.environ.items() if network or not _names_proxy(name)}
    environment.pop(PASSPHRASE_VARIABLE, None)
    bin_folder = str(Path(sys.executable).parent)
    paths = [path for path in environment.get("PATH", "").split(os.pathsep) if path and path != bin_folder]
    environment["PATH"] = os.pathsep.join([bin_folder, *paths])
    environment |= {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOG_LEVEL": "CRITICAL",  # of its console only; our log file takes everything
        "PYTHONUNBUFFERED": "1",
        # Without it ``python -m`` would prefer a torch.py in the working directory, for example one within a kit.
        "PYTHONSAFEPATH": "1",
    }
    environment.setdefault("GLIBC_TUNABLES", _MEMORY)
    return environment | dict(extra or {})


def _names_proxy(variable: str) -> bool:
    """Return whether programs look for a proxy in a variable; they disagree on capital letters."""
    name = variable.lower()
    return name.endswith("_proxy") and name != "no_proxy"


class Child:
    """One supervised process.

    Parameters
    ----------
    name : str
        For messages.
    command : sequence of str
        Program and arguments. Arguments are public on a machine: no secrets.
    log_file : Path
        Takes what the child prints; kept small by :meth:`start` and :meth:`poll`. Not the file that the child itself
        gives to :func:`set_up_logging`.
    env : mapping of str to str
        Whole environment.
    pass_fds : sequence of int
        File descriptors that the child inherits.
    on_line : callable, optional
        Gets every line of the child's standard output, in a thread of its own, instead of the log file.

    Notes
    -----
    Linux ends a child that called :func:`watch_parent` together with the *thread* that started it: start children from
    a thread that lives as long as they shall.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        *,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_file = log_file
        self._env = dict(env)
        self._pass_fds = tuple(pass_fds)
        self._on_line = on_line
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the newest start; None before the first."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process.

        Raises
        ------
        ProcessError
            If it cannot be started, or still runs.
        """
        if self.poll() is None and self._process is not None:
            raise ProcessError(f"{self.name} is running already (process {self.pid}).")
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            rotate_log(self.log_file, in_use=False)
            log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._process = subprocess.Popen(  # noqa: S603  the command is our own
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if self._on_line else log,
                    stderr=log,
                    env=self._env,
                    pass_fds=self._pass_fds,
                    start_new_session=True,
                    encoding="utf-8",
                    errors="replace",
                )
            finally:
                os.close(log)
        except OSError as error:
            raise ProcessError(
                f"{self.name} cannot be started: {error.strerror or error}. Check that the disk has space, that the "
                "folder of the logs may be written and that fedmed is completely installed."
            ) from error
        if self._process.stdout:
            self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
            self._reader.start()

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), or None before the start and while it runs."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is None:
            with suppress(OSError):  # a full disk is for the supervisor's own check to report
                rotate_log(self.log_file, in_use=True)
        elif self._reader and self._reader is not threading.current_thread():
            self._reader.join(timeout=1.0)  # the last lines come before the exit code
        return code

    def stop(self, grace_s: float = 8.0) -> None:
        """End the process: SIGTERM, and after ``grace_s`` seconds SIGKILL for all of its session."""
        process = self._process
        if process is None or self.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.poll()

    def tail(self, lines: int) -> str:
        """Return the last lines of the log file, empty if there is none."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 500 * lines))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""

    def _read(self, stream: IO[str]) -> None:
        assert self._on_line is not None
        with stream:
            for line in stream:
                try:
                    self._on_line(line.rstrip("\n"))
                except Exception:
                    # The pipe has to be emptied whatever happens, or the child would stop at its next line.
                    logging.getLogger("fedmed.processes").exception("a line of %s could not be handled", self.name)


def watch_parent(parent_pid: int) -> None:
    """End this process at the latest one second after its parent.

    Parameters
    ----------
    parent_pid : int
        Process id of the direct parent.
    """
    if sys.platform == "linux":
        # At once, and even if this process hangs in native code.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_PARENT_POLL_S)
        os._exit(1)

    if os.getppid() != parent_pid:
        os._exit(1)
    threading.Thread(target=watch, name="watch-parent", daemon=True).start()

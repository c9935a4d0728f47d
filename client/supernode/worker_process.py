"""The SuperNode's side of its worker: starts it, hands it messages, and replaces it when it dies or hangs."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.hospital.site_key import inherit_passphrase
from client.supernode.pipe import Pipe, Task, WorkerTold
from fedmed.errors import FedmedError, PolicyError, ProcessError
from fedmed.processes import Child, child_environment

_STALL_S = 60.0  # within one frame
_TICK_S = 5.0
_MAX_FAILED_STARTS = 3


class WorkerLostError(FedmedError):
    """The worker ended while it had a message; its text may be told to the server."""

    shareable = True


class WorkerLateError(FedmedError):
    """The worker took longer than the server waits."""


@dataclass(frozen=True)
class Reply:
    """What the worker answered."""

    objects: dict[str, bytes]
    """From :func:`client.supernode.objects.deflate_message`."""
    failure: str | None = None
    """Why the work was not done, for the people at this site only; None: it was done."""
    said: tuple[str, ...] = ()
    """Lines for the console."""


class WorkerProcess:
    """One worker, restarted as often as needed.

    Parameters
    ----------
    app : str
        ``module:attribute`` of the ClientApp.
    threads : int
        PyTorch threads.
    state_dir : Path
        Its folder ``logs`` gets the worker's logs.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(self, app: str, threads: int, state_dir: Path, device: str = "auto") -> None:
        self._logs = logs = state_dir / "logs"
        self._options = ["--app", app, "--threads", str(threads), "--device", device]
        self._options += ["--log", str(logs / "worker.log")]
        self._output = logs / "worker.out"
        self._environment = child_environment(state_dir / "flwr")
        self._child: Child | None = None
        self._pipe: Pipe[Task, WorkerTold] | None = None
        self._is_ready = False
        self._num_failed_starts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs now or ran last."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the process and return at once; it gets ready while the SuperNode connects.

        Call it in the main thread only: Linux ends the worker together with the thread that started it.
        """
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [
                sys.executable,
                "-m",
                "client.supernode.worker",
                "--fd",
                str(number),
                "--parent",
                str(os.getpid()),
            ]
            arguments, descriptors = inherit_passphrase()
            command += [*self._options, *arguments]
            self._child = Child("worker", command, self._output, self._environment, (number, *descriptors))
            self._pipe = Pipe(ours, _STALL_S)
            self._child.start()

    def perform(self, task: Task, objects: dict[str, bytes], deadline: float, check: Callable[[], None]) -> Reply:
        """Have a message answered.

        Parameters
        ----------
        task, objects : Task, dict
            See :meth:`client.supernode.worker.Worker.answer`. The objects are let go once they are handed over.
        deadline : float
            When to give up, in :func:`time.monotonic` seconds.
        check : callable
            Called every few seconds of waiting; what it raises ends the waiting, and the worker if it is at work.

        Returns
        -------
        Reply
            The reply, and why it is an error if it is one.

        Raises
        ------
        WorkerLostError
            If the process ended while it was at work; a new one has been started.
        WorkerLateError
            If it was still busy at the deadline; a new one has been started.
        PolicyError
            If the message cannot be read, or there is too little memory for it.
        ProcessError
            If the process does not start.
        """
        pipe = self._wait_until_ready(deadline, check)
        try:
            pipe.send({**task, "kind": "task"}, objects)
            objects.clear()
            self._wait(pipe, deadline, check)
            header, reply = pipe.receive()
        except EOFError:
            text = f"the site's worker process ended ({self._describe_end()})"
            self.start()
            raise WorkerLostError(text) from None
        except Exception:
            self.start()
            raise
        if header.get("kind") == "no memory":
            raise PolicyError("this site has too little memory for the request")
        if header.get("kind") != "reply":
            raise PolicyError("the request is damaged or has another form than was agreed")
        return Reply(reply, header.get("failure"), tuple(header.get("said", ())))

    def stop(self) -> None:
        """End the process at once; it keeps nothing that is not on disk."""
        self._is_ready = False
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._child is not None and self._child.poll() is None:
            if self._child.pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)  # with the processes that it started itself
            self._child.stop()

    def _wait_until_ready(self, deadline: float, check: Callable[[], None]) -> Pipe[Task, WorkerTold]:
        while True:
            assert self._pipe is not None, "start comes first"
            if self._is_ready:
                return self._pipe
            self._wait(self._pipe, deadline, check)
            try:
                answer = self._pipe.receive()[0]
            except EOFError:
                answer = {"text": self._describe_end()}
            if answer.get("kind") == "ready":
                self._is_ready, self._num_failed_starts = True, 0
                continue
            self._num_failed_starts += 1
            if self._num_failed_starts >= _MAX_FAILED_STARTS:
                raise ProcessError(
                    f"The worker process does not start ({answer.get('text')}). Look into worker.log and worker.out in "
                    f"{self._logs}; 'flower-client --check' finds the usual causes."
                )
            self.start()

    def _wait(self, pipe: Pipe[Task, WorkerTold], deadline: float, check: Callable[[], None]) -> None:
        while not pipe.wait(min(_TICK_S, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise WorkerLateError("the worker process did not finish in time")
            check()

    def _describe_end(self) -> str:
        assert self._child is not None, "start comes first"
        end = time.monotonic() + 2.0
        while (code := self._child.poll()) is None and time.monotonic() < end:
            time.sleep(0.01)  # the socket closes a moment before the process has ended
        if code is None:
            return "it does not answer"
        if code >= 0:
            return f"exit code {code}"
        hint = ", perhaps because the machine has too little memory" if code == -signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{hint}"

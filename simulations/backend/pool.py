"""The processes behind :mod:`simulations.backend.grid`: Ray is started and lost workers are replaced here."""

import functools
import gc
import logging
import math
import os
import secrets
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "ray" not in sys.modules:
    # Ray reads these when it is imported. Its ports run whatever code they are sent: keep them off the network, and
    # ask for a secret, because other users of this machine can reach them too. Ray has no other switch for the
    # loopback address.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # the behaviour to come; without it Ray warns

import ray
from flwr.app import Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from ray._private.node import Node  # no public switch keeps its process for statistics from starting
from ray.exceptions import RayError, RayTaskError

from fedmed.errors import ConfigError, FederationError
from simulations.backend.ray_folder import choose_ray_folder
from simulations.backend.worker import Envelope, Parcel, Worker, split_message

_logger = logging.getLogger(__name__)

_IN_FLIGHT = 2  # one that is worked on, and the next, so that a worker need not wait for the driver
_MAX_DEATHS = 2


@dataclass
class Task:
    """A message on its way; ``outcome`` is the reply once there is one."""

    envelope: Envelope
    payload: tuple[Any, ...]  # PackedArrays, or references to them in shared memory
    num_deaths: int = 0
    outcome: Parcel | None = None

    @property
    def message_id(self) -> str:
        """The id that the grid gave."""
        return self.envelope.metadata.message_id

    def finish(self, outcome: Parcel) -> None:
        """Set the reply and let go of what was sent."""
        self.outcome = outcome
        self.payload = ()  # the last task to let go frees the shared memory


class Slot:
    """The place of one worker: the process that fills it now, and the tasks that wait for it.

    Tasks are handed to the process a few at a time, because what Ray has queued can no longer be taken back.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._num_failed_starts = 0
        self._waiting: deque[Task] = deque()
        self._running: dict[Any, Task] = {}  # in the order in which the worker takes them
        self._launch()

    def add(self, task: Task) -> None:
        """Queue a task."""
        self._waiting.append(task)

    def feed(self) -> None:
        """Hand tasks to the worker if it is ready for them."""
        while self._is_ready and self._waiting and len(self._running) < _IN_FLIGHT:
            task = self._waiting.popleft()
            self._running[self._actor.handle.remote(task.envelope, *task.payload)] = task

    def references(self) -> list[Any]:
        """Return what to wait for."""
        return list(self._running) if self._is_ready else [self._prepared]

    def settle(self, reference: Any) -> None:
        """Take note of something that came back.

        Raises
        ------
        FederationError
            If the worker cannot be started.
        """
        if not self._is_ready:
            self._settle_start()
        elif reference in self._running and not self._take(reference):
            self._replace_dead()

    def drop(self, message_ids: set[str]) -> None:
        """Forget tasks, and replace the worker if it has one of them in hand."""
        self._waiting = deque(task for task in self._waiting if task.message_id not in message_ids)
        if any(task.message_id in message_ids for task in self._running.values()):
            self._replace([task for task in self._running.values() if task.message_id not in message_ids])

    def stop(self) -> None:
        """End the worker's process."""
        ray.kill(self._actor)

    def _launch(self) -> None:
        self._actor = self._start()
        self._is_ready = False
        self._prepared = self._actor.prepare.remote()

    def _settle_start(self) -> None:
        try:
            ray.get(self._prepared)
        except RayTaskError as error:
            cause = error.cause
            raise FederationError(f"A worker cannot load the app: {type(cause).__name__}: {cause}") from error
        except RayError as error:
            self._num_failed_starts += 1
            if self._num_failed_starts == _MAX_DEATHS:
                raise FederationError(
                    f"A worker died {_MAX_DEATHS} times while it started ({type(error).__name__}). "
                    "Most often memory is short: use fewer workers."
                ) from error
            self.stop()
            self._launch()
        else:
            self._is_ready, self._num_failed_starts = True, 0

    def _take(self, reference: Any) -> bool:
        """Take a reply that has come back; False if the worker died instead."""
        try:
            outcome: Parcel = ray.get(reference)
        except RayError:
            return False
        self._running.pop(reference).finish(outcome)
        return True

    def _replace_dead(self) -> None:
        finished, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in list(self._running):
            # Tasks are worked on in order: the first without a reply is the one that the worker died of.
            if reference not in finished or not self._take(reference):
                break
        suspect, *others = self._running.values()
        _logger.warning("A worker died while it worked on %s and is replaced.", suspect.message_id)
        suspect.num_deaths += 1
        self._replace(others)
        if suspect.num_deaths < _MAX_DEATHS:
            self._waiting.append(suspect)
        else:
            suspect.finish(_make_death_reply(suspect.envelope))

    def _replace(self, unfinished: list[Task]) -> None:
        self.stop()
        self._running.clear()
        self._waiting.extendleft(reversed(unfinished))
        self._launch()


def _make_death_reply(envelope: Envelope) -> Parcel:
    message = make_message(envelope.metadata, content=RecordDict())
    error = Error(ErrorCode.CLIENT_APP_CRASHED, f"worker died {_MAX_DEATHS} times while it worked on this message")
    return split_message(Message(error, reply_to=message))[0], ()


class Pool:
    """A row of workers.

    Parameters
    ----------
    num_workers : int
        How many will be started.
    num_gpus : float
        Share of a GPU of each.
    environment : dict
        Environment variables of each.
    object_store_mib : int
        Shared memory of Ray, if it has to be started.

    Raises
    ------
    ConfigError
        If there are too few GPUs.
    """

    def __init__(self, num_workers: int, num_gpus: float, environment: dict[str, str], object_store_mib: int) -> None:
        self._slots: list[Slot] = []
        num_gpus = math.floor(num_gpus * 1e4) / 1e4  # Ray rounds to this, and six times 0.1667 do not fit on one GPU
        self._owns_ray = _start_ray(object_store_mib)
        try:
            _check_gpus(num_workers, num_gpus)
        except BaseException:
            self.close()
            raise
        # No CPUs, or Ray would hold back workers when the cores are fewer; restarts are the business of Slot.
        self._actor = ray.remote(Worker).options(
            num_cpus=0, num_gpus=num_gpus, max_restarts=0, runtime_env={"env_vars": environment}
        )

    def start_worker(self, *arguments: Any) -> None:
        """Start one more worker; the arguments are those of ``Worker``."""
        self._slots.append(Slot(functools.partial(self._actor.remote, *arguments)))

    def close(self) -> None:
        """End the workers, and Ray if this pool started it."""
        for slot in self._slots:
            slot.stop()
        self._slots = []
        if self._owns_ray:
            self._owns_ray = False
            with _quiet_resources():
                ray.shutdown()

    def share(self, value: Any) -> Any:
        """Put something into shared memory; it is freed with the last reference."""
        return ray.put(value)

    def add(self, worker: int, task: Task) -> None:
        """Give a task to a worker."""
        self._slots[worker].add(task)
        self._slots[worker].feed()

    def drop(self, message_ids: set[str]) -> None:
        """Forget tasks; see :meth:`Slot.drop`."""
        self.advance(0.0)
        for slot in self._slots:
            slot.drop(message_ids)

    def advance(self, longest_s: float) -> None:
        """Wait until something comes back, take all that is there, and hand out new tasks.

        Raises
        ------
        FederationError
            If a worker cannot be started.
        """
        slots = {reference: slot for slot in self._slots for reference in slot.references()}
        if not slots:
            return
        if longest_s > 0:
            ray.wait(list(slots), num_returns=1, timeout=longest_s, fetch_local=False)
        done, _ = ray.wait(list(slots), num_returns=len(slots), timeout=0)
        for reference in done:
            slots[reference].settle(reference)
        for slot in self._slots:
            slot.feed()


@contextmanager
def _quiet_resources() -> Iterator[None]:
    """Keep back Python's warnings that Ray leaves files and child processes open; it ends them in ways of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@contextmanager
def _without_dashboard() -> Iterator[None]:
    """Have Ray start without its process for statistics, which it starts even where they are switched off.

    That process asks the machine's provider who it is (169.254.169.254 and metadata.google.internal), and nothing here
    needs it.
    """
    start = Node.start_api_server
    Node.start_api_server = _start_nothing  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Node.start_api_server = start  # type: ignore[method-assign]


def _start_nothing(node: Node, **_: object) -> None:
    node._webui_url = None


def _start_ray(object_store_mib: int) -> bool:
    """Start Ray on this machine; False if it runs already."""
    if ray.is_initialized():
        return False
    with _quiet_resources(), _without_dashboard():
        ray.init(
            address="local",
            num_cpus=0,  # the workers ask for none, and for each one Ray would keep a spare process
            object_store_memory=object_store_mib * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=choose_ray_folder(),
            # Later Ray puts the working directory first on a worker's path, and with it a user's client.py.
            runtime_env={"worker_process_setup_hook": "fedmed.own_packages.import_own_packages"},
        )
    return True


def make_environment(threads: int, num_gpus: float) -> dict[str, str]:
    """Return what has to be in a worker's environment before it imports anything."""
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment["FLWR_TELEMETRY_ENABLED"] = "0"
    environment["PYTHONPATH"] = os.pathsep.join(
        str(Path(entry).resolve()) for entry in sys.path if Path(entry).exists()
    )
    # Huge pages for large blocks of memory: copying 45 MB takes 4 ms instead of 28 (Linux, glibc from 2.35).
    environment["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if num_gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _check_gpus(num_workers: int, num_gpus: float) -> None:
    """Check that Ray can give every worker its share; it would wait for ever otherwise."""
    if num_gpus == 0:
        return
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    found = int(resources.get("GPU", 0))
    capacity = found * int(1 / num_gpus) if num_gpus < 1 else int(found / num_gpus)
    if capacity < num_workers:
        raise ConfigError(
            f"{num_workers} workers want {num_gpus:g} of a GPU each, but the {found} GPUs found are enough for "
            f"{capacity}. Use fewer workers, or a smaller share."
        )

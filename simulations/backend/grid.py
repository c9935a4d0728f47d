"""Flower's ``Grid`` for many simulated sites on one machine: long-lived Ray actors that each serve several sites.

Flower's own simulation pickles the model once per message, keeps no data between messages and is deprecated in the
version we use. Here a site is pinned to a worker, which keeps what it has loaded; a model that goes to all sites is put
into shared memory once; a worker that dies or hangs is replaced and what it had in hand is given out again.

With ``ray_pool`` and ``ray_worker`` this is all of the simulation that touches the insides of flwr: ``TaskIdentity``
must be set in every process that creates messages, and a message gets its id from the grid.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from simulations.backend.pool import Pool, Task, make_environment
from simulations.backend.worker import build_arrays, copy_bytes, join_message, pack_arrays, split_message

_SMALLEST_SHARED = 65_536  # bytes; less than this goes faster inside the call itself


@dataclass(frozen=True)
class SimulatedNode:
    """One site of a simulation.

    Parameters
    ----------
    node_id : int
        Flower's number for it.
    config : mapping
        Its ``node_config``.
    weight : float
        Expected work, in any unit; used to balance the workers.
    """

    node_id: int
    config: Mapping[str, str | int | float | bool]
    weight: float = 1.0


def balance_nodes(weights: Mapping[int, float], num_workers: int) -> dict[int, int]:
    """Give each node a worker: the largest first, always to the worker with the least work.

    Parameters
    ----------
    weights : mapping of int to float
        Expected work of each node id, in any unit; equal ones are taken in the order of their ids.
    num_workers : int
        At least 1.

    Returns
    -------
    dict
        Worker, from 0, of each node id.

    Raises
    ------
    ValueError
        If there is no node or no worker, or a weight is negative or not finite.

    Notes
    -----
    The largest load is at most 4/3 of the best possible (R. L. Graham, "Bounds on multiprocessing timing anomalies",
    1969).
    """
    if num_workers < 1 or not weights:
        raise ValueError(f"Found {len(weights)} nodes and {num_workers} workers; there must be at least one of each.")
    wrong = {node_id: weight for node_id, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)}
    if wrong:
        raise ValueError(f"The weights {wrong} of nodes are not allowed; they must be numbers of at least 0.")
    loads = [0.0] * num_workers
    home: dict[int, int] = {}
    for node_id in sorted(weights, key=lambda node_id: (-weights[node_id], node_id)):
        home[node_id] = loads.index(min(loads))
        loads[home[node_id]] += weights[node_id]
    return home


class RayGrid(Grid):
    """Flower's ``Grid`` over workers on this machine.

    Starts Ray unless it runs already, and then also ends it. The workers get ready while the driver goes on.
    Use the grid as a context manager, or call :meth:`close`. It adds no randomness: replies depend neither on the
    number of workers nor on who is faster, unless the app's do.

    Parameters
    ----------
    client_app : str
        ``module:attribute`` of the ``ClientApp``, imported in each worker.
    nodes : sequence of SimulatedNode
        The sites.
    num_workers : int
        Processes; at most one per node is started.
    threads : int
        Threads of torch in each of them.
    num_gpus_per_worker : float
        Share of a GPU; with 0 the workers see none.
    run_config : mapping, optional
        Flower's settings of the run, the same at all nodes.
    worker_environment : mapping of str to str, optional
        Further environment variables of the workers; they win over the grid's own.
    log_dir : Path, optional
        Existing folder for ``worker_<number>.log``, which holds warnings and the tracebacks of the app.
    object_store_mib : int
        Shared memory for messages on their way; what does not fit goes to disk.
    poll_s : float
        The longest time that :meth:`pull_messages` waits for a first reply.

    Raises
    ------
    ValueError
        If an argument is out of range.
    ConfigError
        If the machine has too few GPUs.
    """

    def __init__(
        self,
        client_app: str,
        nodes: Sequence[SimulatedNode],
        *,
        num_workers: int,
        threads: int,
        num_gpus_per_worker: float = 0.0,
        run_config: Mapping[str, str | int | float | bool] | None = None,
        worker_environment: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
        object_store_mib: int = 2048,
        poll_s: float = 0.1,
    ) -> None:
        if client_app.count(":") != 1 or threads < 1:
            raise ValueError(
                f"Found client_app '{client_app}' and threads {threads}; allowed are 'module:attribute' and at least 1."
            )
        weights = {node.node_id: node.weight for node in nodes}
        if len(weights) < len(nodes):
            raise ValueError(f"The node ids {sorted(node.node_id for node in nodes)} are not all different.")
        num_workers = min(num_workers, len(nodes))
        self._home = balance_nodes(weights, num_workers)
        self._poll_s = poll_s
        self._numbers = itertools.count(1)
        self._tasks: dict[str, Task] = {}
        self.set_run(Run.create_empty(run_id=1))
        environment = make_environment(threads, num_gpus_per_worker) | dict(worker_environment or {})
        self._pool = Pool(num_workers, num_gpus_per_worker, environment, object_store_mib)
        for number in range(num_workers):
            configs = {node.node_id: dict(node.config) for node in nodes if self._home[node.node_id] == number}
            log_file = None if log_dir is None else log_dir.resolve() / f"worker_{number}.log"
            self._pool.start_worker(client_app, configs, dict(run_config or {}), threads, log_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray if this grid started it. Messages on their way are lost."""
        self._pool.close()
        self._tasks = {}

    def set_run(self, run: Run) -> None:
        """Set the run; messages can be created from then on.

        Parameters
        ----------
        run : Run
            Only its id matters here.
        """
        self._run = run
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, SUPERLINK_NODE_ID

    @property
    def run(self) -> Run:
        """The run; number 1 unless another was set."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message, as ``Message(...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return all node ids, in the order in which the nodes were given."""
        return list(self._home)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages.

        Parameters
        ----------
        messages : iterable of Message
            An ``ArrayRecord`` that several of them share is put into shared memory once, until the last reply is there.

        Returns
        -------
        list of str
            Their ids, in order.

        Raises
        ------
        ValueError
            If a node does not exist; nothing is sent then.
        """
        messages = list(messages)
        unknown = sorted({message.metadata.dst_node_id for message in messages} - set(self._home))
        if unknown:
            raise ValueError(f"There are no nodes {unknown}; there are {sorted(self._home)}.")
        shared: dict[tuple[Any, ...], Any] = {}
        return [self._push(message, shared) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies that have come in.

        Parameters
        ----------
        message_ids : iterable of str
            From :meth:`push_messages`; others, and those that were answered already, are ignored.

        Yields
        ------
        Message
            One at a time, so that only one need be in memory. Waits up to ``poll_s`` if there is none.

        Raises
        ------
        FederationError
            If the workers cannot be started.
        """
        return self._pull(list(message_ids), self._poll_s)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies.

        Parameters
        ----------
        messages : iterable of Message
            What to send.
        timeout : float, optional
            Seconds after which waiting ends; messages without a reply are then abandoned.

        Returns
        -------
        list of Message
            The replies, in the order in which they came.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        waiting = dict.fromkeys(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (left := end - time.monotonic()) > 0:
            for reply in self._pull(list(waiting), min(left, self._poll_s)):
                del waiting[reply.metadata.reply_to_message_id]
                replies.append(reply)
        self.abandon(waiting)
        return replies

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Drop messages; a worker that is busy with one of them is replaced, as it may never come to an end.

        Parameters
        ----------
        message_ids : iterable of str
            Unknown ones are ignored.
        """
        ids = {message_id for message_id in message_ids if self._tasks.pop(message_id, None) is not None}
        if ids:
            self._pool.drop(ids)

    def _push(self, message: Message, shared: dict[tuple[Any, ...], Any]) -> str:
        message_id = f"message-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = message_id
        envelope, records = split_message(message)
        task = Task(envelope, tuple(self._share(record, shared) for record in records))
        self._tasks[message_id] = task
        self._pool.add(self._home[message.metadata.dst_node_id], task)
        return message_id

    def _share(self, record: ArrayRecord, shared: dict[tuple[Any, ...], Any]) -> Any:
        """Return a record's content packed, or a reference to it: the same for all records around the same bytes."""
        same = tuple((name, a.dtype, a.shape, a.stype, id(a.data)) for name, a in record.items())
        if same not in shared:
            packed = pack_arrays(record, key=f"arrays-{next(self._numbers)}")
            is_small = sum(buffer.nbytes for buffer in packed.buffers) < _SMALLEST_SHARED
            shared[same] = packed if is_small else self._pool.share(packed)
        return shared[same]

    def _pull(self, message_ids: list[str], longest_s: float) -> Iterator[Message]:
        wanted = [message_id for message_id in message_ids if message_id in self._tasks]
        end = time.monotonic() + longest_s
        self._pool.advance(0.0)
        while wanted and not any(self._has_reply(message_id) for message_id in wanted):
            left = end - time.monotonic()
            if left <= 0:
                return
            self._pool.advance(left)
        for message_id in wanted:
            if self._has_reply(message_id):
                yield _open_reply(self._tasks.pop(message_id))
                self._pool.advance(0.0)  # the caller may have been busy for long

    def _has_reply(self, message_id: str) -> bool:
        task = self._tasks.get(message_id)
        return task is not None and task.outcome is not None


def _open_reply(task: Task) -> Message:
    """Build the reply; nothing of it stays in shared memory."""
    assert task.outcome is not None, "a task with a reply has its outcome"
    envelope, packed = task.outcome
    return join_message(envelope, [build_arrays(part, copy_bytes(part)) for part in packed])

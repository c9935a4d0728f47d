"""What runs inside a worker of :mod:`simulations.backend.grid`, and how messages are taken apart for the way.

Ray copies whatever a pickle contains, but hands the buffers of numpy arrays over in shared memory. The bytes of
Flower's arrays therefore travel as numpy views of themselves, apart from the rest of the message.
"""

import copy
import logging
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedmed.errors import describe_error
from fedmed.protocol.apps import load_app, warm_up

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedArrays:
    """One ``ArrayRecord``.

    Parameters
    ----------
    key : str
        Names the content within one grid: records with the same key are the same.
    heads : tuple
        Name, dtype, shape and stype of each array.
    buffers : tuple of ndarray
        The bytes of each array, uint8 of shape (number of bytes,), without a copy.
    """

    key: str
    heads: tuple[tuple[str, str, tuple[int, ...], str], ...]
    buffers: tuple[npt.NDArray[np.uint8], ...]


@dataclass(frozen=True)
class Envelope:
    """A message without its arrays.

    Parameters
    ----------
    metadata : Metadata
        Flower's own.
    error : Error, optional
        Set instead of records.
    records : tuple, optional
        Name and record in order; None stands for the next ``ArrayRecord``.
    """

    metadata: Metadata
    error: Error | None
    records: tuple[tuple[str, MetricRecord | ConfigRecord | None], ...] | None


Parcel = tuple[Envelope, tuple[PackedArrays, ...]]


def split_message(message: Message) -> tuple[Envelope, list[ArrayRecord]]:
    """Take the array records out of a message, which stays as it is."""
    metadata = copy.copy(message.metadata)
    if message.has_error():
        return Envelope(metadata, message.error, None), []
    content = message.content
    records = tuple((name, None if isinstance(record, ArrayRecord) else record) for name, record in content.items())
    return Envelope(metadata, None, records), [record for record in content.values() if isinstance(record, ArrayRecord)]


def join_message(envelope: Envelope, arrays: Iterable[ArrayRecord]) -> Message:
    """Undo :func:`split_message`."""
    if envelope.records is None:
        return make_message(envelope.metadata, error=envelope.error)
    rest = iter(arrays)
    content = RecordDict({name: next(rest) if record is None else record for name, record in envelope.records})
    return make_message(envelope.metadata, content=content)


def pack_arrays(record: ArrayRecord, key: str) -> PackedArrays:
    """Describe a record's arrays and view their bytes, without a copy."""
    heads = tuple((name, array.dtype, array.shape, array.stype) for name, array in record.items())
    return PackedArrays(key, heads, tuple(np.frombuffer(array.data, dtype=np.uint8) for array in record.values()))


def copy_bytes(packed: PackedArrays) -> tuple[bytes, ...]:
    """Copy the bytes of a record out of shared memory; Flower's arrays must own theirs."""
    return tuple(buffer.tobytes() for buffer in packed.buffers)


def build_arrays(packed: PackedArrays, data: Iterable[bytes]) -> ArrayRecord:
    """Build a record of its own around bytes from :func:`copy_bytes`."""
    parts = zip(packed.heads, data, strict=True)
    return ArrayRecord({name: Array(dtype, shape, stype, part) for (name, dtype, shape, stype), part in parts})


class Worker:
    """Answers the messages of its nodes, one after another; lives in a process of its own.

    Parameters
    ----------
    client_app : str
        ``module:attribute`` of a ``ClientApp``.
    node_configs : mapping of int to UserConfig
        The settings of each node that is served here.
    run_config : UserConfig
        The settings of the run.
    threads : int
        Threads of torch.
    log_file : Path, optional
        Gets the tracebacks, which may name patients and so never leave the site in a message.
    """

    def __init__(
        self,
        client_app: str,
        node_configs: Mapping[int, UserConfig],
        run_config: UserConfig,
        threads: int,
        log_file: Path | None,
    ) -> None:
        # Ctrl-C reaches every process of the terminal; the driver alone decides when a worker ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if log_file is not None:
            form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
            logging.basicConfig(filename=log_file, format=form, level=logging.INFO, force=True)
            logging.captureWarnings(True)
        self._client_app, self._threads = client_app, threads
        self._node_configs, self._run_config = node_configs, run_config
        self._contexts: dict[int, Context] = {}
        self._received: dict[str, tuple[bytes, ...]] = {}
        self._app: ClientApp | None = None

    def prepare(self) -> None:
        """Import the app and torch and take one optimizer step, which imports more than torch itself does.

        Raises
        ------
        Exception
            Whatever importing the app raises.
        """
        self._app = load_app(self._client_app, ClientApp)
        warm_up(self._threads)

    def handle(self, envelope: Envelope, *packed: PackedArrays) -> Parcel:
        """Answer one message; what the app raises becomes an error reply."""
        message = join_message(envelope, [build_arrays(part, data) for part, data in self._receive(packed)])
        try:
            reply = self._answer(message)
        except (Exception, SystemExit) as error:
            _logger.exception("Node %d: '%s' failed.", message.metadata.dst_node_id, message.metadata.message_type)
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, describe_error(error)), reply_to=message)
        reply.metadata.__dict__["_message_id"] = f"{message.metadata.message_id}-reply"
        envelope, records = split_message(reply)
        return envelope, tuple(pack_arrays(record, "reply") for record in records)

    def _receive(self, packed: tuple[PackedArrays, ...]) -> list[tuple[PackedArrays, tuple[bytes, ...]]]:
        """Pair records with their bytes; those of the message before are not copied again."""
        self._received = {part.key: self._received.get(part.key) or copy_bytes(part) for part in packed}
        return [(part, self._received[part.key]) for part in packed]

    def _answer(self, message: Message) -> Message:
        assert self._app is not None, "messages come after prepare"
        metadata = message.metadata
        TaskIdentity.task_id, TaskIdentity.run_id = metadata.dst_node_id, metadata.run_id
        TaskIdentity.node_id = metadata.dst_node_id
        if time.time() > metadata.created_at + metadata.ttl:
            error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message was older than its time to live")
            return Message(error, reply_to=message)
        reply = self._app(message, self._get_context(metadata))
        if not isinstance(reply, Message):
            raise TypeError(
                f"The app answered '{metadata.message_type}' with {type(reply).__name__}, not with a Message."
            )
        return reply

    def _get_context(self, metadata: Metadata) -> Context:
        node_id = metadata.dst_node_id
        if node_id not in self._contexts:
            self._contexts[node_id] = Context(
                run_id=metadata.run_id,
                node_id=node_id,
                node_config=dict(self._node_configs[node_id]),
                state=RecordDict(),
                run_config=dict(self._run_config),
            )
        return self._contexts[node_id]

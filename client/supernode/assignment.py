"""One message of the server, from its announcement to the answer."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from client.guard.message_log import record_refusal
from client.supernode.activation import SignsOfLife
from client.supernode.failures import FleetError, Outlook
from client.supernode.fleet import Download, Fleet
from client.supernode.objects import deflate_message, take_announcement
from client.supernode.pipe import Task
from client.supernode.retry import Retry, Tell
from client.supernode.worker_process import Reply, WorkerLateError, WorkerLostError, WorkerProcess
from fedmed.config.client import ClientConfig
from fedmed.errors import PolicyError, tame
from fedmed.protocol.kinds import list_flower_types

ALLOWED_APP = "fedmed/fedmed"

_logger = logging.getLogger("fedmed.supernode")


@dataclass(frozen=True)
class Desk:
    """What is needed to carry out assignments.

    Parameters
    ----------
    config, config_file : ClientConfig, Path
        Settings of the site, and where the worker reads them.
    fleet, retry, signs, worker, tell
        Line to the server, what to do when it breaks, signs of life, who does the work, and who hears of it.
    """

    config: ClientConfig
    config_file: Path
    fleet: Fleet
    retry: Retry
    signs: SignsOfLife
    worker: WorkerProcess
    tell: Tell


class Assignment:
    """A message that the server has announced.

    Parameters
    ----------
    desk : Desk
        Who carries it out.
    node_id : int
        This site, as the server calls it.
    announcement : ProtoMessage
        The message without its content.
    tree : ObjectTree
        The ids of its objects.
    """

    def __init__(self, desk: Desk, node_id: int, announcement: ProtoMessage, tree: ObjectTree) -> None:
        self._desk, self._node_id = desk, node_id
        self._announcement, self._tree = announcement, tree
        metadata = announcement.metadata
        self.kind = metadata.message_type
        self._run_id = metadata.run_id
        left_s = min(metadata.ttl, metadata.created_at + metadata.ttl - time.time())
        self._deadline = time.monotonic() + max(0.0, left_s)

    def carry_out(self) -> None:
        """Fetch the message, have it answered and send the answer.

        Raises
        ------
        FleetError
            If nobody waits for the answer any more, or it cannot be sent.
        """
        desk, asked = self._desk, time.monotonic()
        begin, log = asked, "supernode.log"
        try:
            self._check_app()
            objects = self._fetch()
            num_bytes = sum(map(len, objects.values()))
            desk.tell("task", f"Received '{self.kind}' ({num_bytes / 1e6:.1f} MB).", kind=self.kind, bytes=num_bytes)
            begin, log = time.monotonic(), "worker.log"
            reply = self._work(objects)
        except WorkerLateError as late:
            raise FleetError(f"{late}.", Outlook.RUN_OVER) from late
        except (PolicyError, WorkerLostError) as refusal:
            record_refusal(Path(desk.config.state_dir), tame(self.kind, 60), str(refusal))
            reply = Reply(self._make_error(refusal), str(refusal))
        seconds = time.monotonic() - begin
        for line in reply.said:
            desk.tell("said", line)
        if reply.failure is not None:
            log_file = Path(desk.config.state_dir) / "logs" / log
            text = f"'{self.kind}' was not done: {reply.failure.rstrip('.')}. Its log: {log_file}."
            desk.tell("failed", text, kind=self.kind)
        num_bytes = self._send(reply.objects, seconds)
        fetch_s, send_s = begin - asked, time.monotonic() - begin - seconds
        _logger.info("'%s': %.3f s to fetch, %.3f s of work, %.3f s to send", self.kind, fetch_s, seconds, send_s)
        if reply.failure is not None:
            return
        text = f"Answered '{self.kind}' after {seconds:.1f} s ({num_bytes / 1e6:.1f} MB)."
        if not num_bytes:
            text = f"The answer to '{self.kind}' came too late for the server ({seconds:.1f} s)."
        desk.tell("reply", text, kind=self.kind, seconds=seconds, bytes=num_bytes)

    def _check_app(self) -> None:
        app = self._get_app()
        if app != ALLOWED_APP:
            raise PolicyError(f"the run is one of the app '{app[:80]}'; this site runs '{ALLOWED_APP}' only")
        allowed = list_flower_types()
        if self.kind not in allowed:
            raise PolicyError(f"requests '{self.kind[:80]}' are not answered here; {', '.join(allowed)} are")

    def _get_app(self) -> str:
        desk = self._desk
        return desk.retry.repeat(lambda: desk.fleet.get_app(self._node_id, self._run_id), self._deadline)

    def _fetch(self) -> dict[str, bytes]:
        desk, message_id = self._desk, self._tree.object_id
        ids = list(dict.fromkeys(node.object_id for node in iterate_object_tree(self._tree)))
        max_bytes = desk.config.policy.max_message_mib * 2**20
        download = Download(self._node_id, self._run_id, max_bytes, self._deadline)
        desk.retry.repeat(lambda: desk.fleet.pull_objects(download, ids), self._deadline)
        desk.retry.repeat(lambda: desk.fleet.confirm(self._node_id, self._run_id, message_id), self._deadline)
        return download.objects

    def _work(self, objects: dict[str, bytes]) -> Reply:
        desk = self._desk
        task: Task = {
            "root": self._tree.object_id,
            "message_type": self.kind,
            "run_id": self._run_id,
            "node_id": self._node_id,
            "node_config": {"client-config": str(desk.config_file)},
            "max_bytes": desk.config.policy.max_message_mib * 2**20,
        }
        desk.signs.watch(self._run_id)
        try:
            return desk.worker.perform(task, objects, self._deadline, desk.signs.check)
        finally:
            desk.signs.watch(None)

    def _make_error(self, refusal: PolicyError | WorkerLostError) -> dict[str, bytes]:
        request = message_from_proto(self._announcement)
        return deflate_message(Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(refusal)), reply_to=request))

    def _send(self, reply: dict[str, bytes], seconds: float) -> int:
        """Send a reply, as often as it takes; return its bytes."""
        message, tree = take_announcement(reply)
        root = tree.object_id
        desk, node_id, run_id = self._desk, self._node_id, self._run_id

        def send() -> int:
            wanted, session = desk.fleet.push_message(node_id, message, tree, seconds)
            # The server counts a reply as there when its root is: that goes last.
            inner = {object_id: reply[object_id] for object_id in wanted if object_id != root}
            desk.fleet.push_objects(node_id, run_id, session, inner)
            if root in wanted:
                desk.fleet.push_objects(node_id, run_id, session, {root: reply[root]})
            return sum(len(reply[object_id]) for object_id in wanted)

        try:
            return desk.retry.repeat(send, self._deadline)
        except KeyError:
            raise FleetError("The server asks for what is no part of the reply.", Outlook.FATAL) from None

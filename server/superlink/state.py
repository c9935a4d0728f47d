"""The SuperLink's memory of messages and sites, with what a real federation needs beyond Flower's own.

* A site that was started again gets what it has not answered yet once more, at once and by itself.
* A reply counts when it has arrived completely; one that has is never lost because its site went away meanwhile.
* A site that is away for a moment keeps its message; only after a while the ServerApp is told that it is gone.
* What nobody waits for any more is removed.
"""

import logging
import threading
import time
from collections.abc import Collection

from flwr.app import Error, Message

# Touched internals: the SuperLink's state in SQL, its tables, and how it turns rows into messages. Flower has no public
# extension point for delivery; its own delivers a message once and loses it when the site ends before it has answered.
from flwr.common.constant import ErrorCode, Status
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.server.superlink.linkstate.utils import (
    convert_sint64_values_in_dict_to_uint64,
    create_message_error_unavailable_ins_message,
    create_message_error_unavailable_res_message,
    dict_to_message,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.state.schema.corestate_models import ObjectPushSession
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes, Node
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.federation import FederationManager
from sqlalchemy import delete, select, update

from server.superlink.limits import UploadedBytes
from server.superlink.object_store import FileObjectStore, FileObjectStoreFactory

OFFLINE_GRACE_S = 30.0
_STATUS_VALID_S = 0.5
_UNSIGNED = ["run_id", "src_node_id", "dst_node_id"]

log = logging.getLogger("fedmed.superlink")


class DeploymentLinkState(SqlLinkState):
    """Flower's state in SQLite, with contents in files.

    Parameters
    ----------
    database : str
        File of the database.
    federation_manager : FederationManager
        Flower's.
    store : FileObjectStore
        Where the contents are; in the same database.
    """

    def __init__(self, database: str, federation_manager: FederationManager, store: FileObjectStore) -> None:
        super().__init__(database, federation_manager, store)
        self._store = store
        # SQLite makes waiting writers sleep for growing times; a lock wakes them at once.
        self._write_lock = threading.Lock()
        self._tokens: dict[str, tuple[float, int | None]] = {}
        self._running: dict[int, tuple[float, bool]] = {}
        self._uploaded = UploadedBytes()

    def store_object(
        self, run_id: int, session_id: str, object_id: str, object_content: bytes, most_bytes: int | None = None
    ) -> bool:
        """Take a content that was announced; hashing and writing happen outside of the database's transaction.

        Parameters
        ----------
        run_id, session_id, object_id, object_content
            As for the parent class, but never without a session.
        most_bytes : int, optional
            Most bytes of the whole session.

        Raises
        ------
        ReplyTooLarge
            If it would be more.
        """
        if not session_id:
            return False
        self._uploaded.add(session_id, len(object_content), most_bytes)
        stored = False
        try:
            stored = self._store_staged(run_id, session_id, object_id, object_content)
        finally:
            if not stored:
                self._uploaded.take_back(session_id, len(object_content))
        return stored

    def _store_staged(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        try:
            staged = self._store.stage(object_id, object_content)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not what its hash says"
            log.error("A part of a message could not be stored: %s.", reason)
            return False
        try:
            with self._write_lock:
                # The parent class hands the content through to FileObjectStore.put, which takes both.
                return bool(super().store_object(run_id, session_id, object_id, staged))  # type: ignore[arg-type]
        finally:
            staged.discard()

    def _cleanup_push_session(self, session_id: str, *, cleanup_messages: bool) -> None:
        """Remove a session whose parts are all here, or which was given up."""
        super()._cleanup_push_session(session_id, cleanup_messages=cleanup_messages)
        self._uploaded.forget(session_id)

    def is_running(self, run_id: int) -> bool:
        """Return whether a run goes on, as of a moment ago: parts come by the hundred."""
        checked_at, running = self._running.get(run_id, (0.0, False))
        if not running or time.monotonic() - checked_at > _STATUS_VALID_S:
            status = self.get_run_status({run_id}).get(run_id)
            running = status is not None and status.status == Status.RUNNING
            self._running[run_id] = (time.monotonic(), running)
        return running

    def find_run(self, token: str) -> int | None:
        """Return the run that the holder of a token acts for, as of a moment ago."""
        checked_at, run_id = self._tokens.get(token, (0.0, None))
        if run_id is None or time.monotonic() - checked_at > _STATUS_VALID_S:
            task = self.get_task_by_token(token) if token else None
            run_id = None if task is None else int(task.run_id)
            self._tokens = {token: (time.monotonic(), run_id)}
        return run_id

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        """Do nothing: one more transaction for every part of a message, for a number that we count ourselves."""

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """Return the replies that are complete, and an error for every message that will have none.

        Parameters
        ----------
        message_ids : set of str
            The messages that were sent.
        run_id : int
            Their run.
        """
        if not message_ids:
            return []
        with self.session():
            replies = self._claim_replies(message_ids, run_id)
            for message_id in self._find_lost(message_ids - set(replies), run_id):
                replies[message_id] = create_message_error_unavailable_ins_message(message_id, run_id)
                self._store_generated_message(replies[message_id])
            for message in self._find_left(message_ids - set(replies)):
                reply = create_message_error_unavailable_res_message(message.metadata, "node_unavail")
                reply.error = Error(
                    code=ErrorCode.NODE_UNAVAILABLE,
                    reason=f"the site is not connected any more and has not come back within {OFFLINE_GRACE_S:g} s",
                )
                reply.metadata.__dict__["_message_id"] = reply.object_id
                replies[message.metadata.message_id] = reply
                self._store_generated_message(reply)
        return list(replies.values())

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Note that a site's process has started, and deliver once more what it has not answered."""
        with self.session() as session:
            if not super().activate_node(node_id, heartbeat_interval):
                return False
            unanswered = set(
                session.scalars(
                    select(MessageIns.message_id).where(
                        MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.delivered_at != ""
                    )
                )
            )
            begun = self._replies_to(unanswered)
            unanswered -= {asked for reply, asked in begun.items() if self._has_arrived(reply)}
            # What the process before had sent of a reply is worth nothing: the new one makes its own.
            self._forget_replies({reply for reply, asked in begun.items() if asked in unanswered})
            session.execute(update(MessageIns).where(MessageIns.message_id.in_(unanswered)).values(delivered_at=""))
        return True

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Remove messages, the contents that were sent, and the rows of their replies."""
        with self.session():
            super().delete_messages(message_ins_ids)
            for message_id in message_ins_ids:
                self._store.delete(message_id)

    def drop_messages(self, message_ids: Collection[str | None]) -> None:
        """Remove messages and replies that nobody waits for; a site that still works on one gets no error."""
        ids = {message_id for message_id in message_ids if message_id}
        with self.session():
            self._forget_replies(set(self._replies_to(ids)))
            self.delete_messages(ids)

    def purge(self, orphans_older_than_s: float = 600.0) -> int:
        """Remove messages that have expired, uploads that were given up, and whatever nothing refers to.

        Returns
        -------
        int
            Number of messages, uploads and files that were removed.
        """
        current = now()
        with self.session() as session:
            expired = set(
                session.scalars(
                    select(MessageIns.message_id).where(MessageIns.created_at + MessageIns.ttl < current.timestamp())
                )
            )
            if expired:
                self.drop_messages(expired)
            given_up = session.scalars(
                select(ObjectPushSession.session_id).where(ObjectPushSession.expires_at <= current)
            ).all()
            for session_id in given_up:
                self._cleanup_push_session(session_id, cleanup_messages=True)
            self._uploaded.keep_only(set(session.scalars(select(ObjectPushSession.session_id))))
        return len(expired) + len(given_up) + self._store.sweep(orphans_older_than_s)

    def _claim_replies(self, message_ids: set[str], run_id: int) -> dict[str, Message]:
        """Return the complete replies by the message they answer; each is returned once."""
        complete = [reply for reply in self._replies_to(message_ids) if self._has_arrived(reply)]
        if not complete:
            return {}
        with self.session() as session:
            rows = session.scalars(
                update(MessageRes)
                .where(
                    MessageRes.message_id.in_(complete),
                    MessageRes.run_id == uint64_to_int64(run_id),
                    MessageRes.delivered_at == "",
                )
                .values(delivered_at=now().isoformat())
                .returning(MessageRes)
            ).all()
            messages = [_to_message(row) for row in rows]
        return {message.metadata.reply_to_message_id: message for message in messages}

    def _find_lost(self, message_ids: set[str], run_id: int) -> list[str]:
        """Return the messages that are unknown or have expired."""
        with self.session() as session:
            alive = set(
                session.scalars(
                    select(MessageIns.message_id).where(
                        MessageIns.message_id.in_(message_ids),
                        MessageIns.run_id == uint64_to_int64(run_id),
                        MessageIns.created_at + MessageIns.ttl > now().timestamp(),
                    )
                )
            )
        return sorted(message_ids - alive)

    def _find_left(self, message_ids: set[str]) -> list[Message]:
        """Return the messages whose site was revoked, or has been away for too long."""
        oldest = now().timestamp() - OFFLINE_GRACE_S
        with self.session() as session:
            rows = session.scalars(
                select(MessageIns)
                .join(Node, Node.node_id == MessageIns.dst_node_id)
                .where(
                    MessageIns.message_id.in_(message_ids),
                    (Node.status == NodeStatus.UNREGISTERED) | (Node.online_until < oldest),
                )
            ).all()
            return [_to_message(row) for row in rows]

    def _replies_to(self, message_ids: Collection[str | None]) -> dict[str, str]:
        """Return reply -> message for what has been announced as a reply and not been handed over."""
        with self.session() as session:
            rows = session.execute(
                select(MessageRes.message_id, MessageRes.reply_to_message_id).where(
                    MessageRes.reply_to_message_id.in_(message_ids), MessageRes.delivered_at == ""
                )
            ).all()
        return {str(reply): str(asked) for reply, asked in rows}

    def _has_arrived(self, message_id: str) -> bool:
        """Return whether the root of a message is here; sites send it last."""
        return self._store.path_of(message_id).is_file()

    def _forget_replies(self, message_ids: set[str]) -> None:
        with self.session() as session:
            session.execute(delete(MessageRes).where(MessageRes.message_id.in_(message_ids)))
            for message_id in message_ids:
                self._store.delete(message_id)


class DeploymentLinkStateFactory(LinkStateFactory):
    """Gives Flower's SuperLink the state above.

    Parameters
    ----------
    database : str
        File of the database.
    federation_manager : FederationManager
        Flower's.
    stores : FileObjectStoreFactory
        Where the contents are.
    """

    def __init__(self, database: str, federation_manager: FederationManager, stores: FileObjectStoreFactory) -> None:
        super().__init__(database, federation_manager, stores)
        store = stores.store()
        assert isinstance(store, FileObjectStore), "the factory makes no other"
        self.link_state = DeploymentLinkState(database, federation_manager, store)
        self.link_state.initialize()
        self.state_instance = self.link_state


def _to_message(row: MessageIns | MessageRes) -> Message:
    values = {column.name: getattr(row, column.name) for column in row.__table__.columns}
    convert_sint64_values_in_dict_to_uint64(values, _UNSIGNED)
    return dict_to_message(values)

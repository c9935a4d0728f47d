"""Flower's link state, with the questions that every request asks answered from memory for a moment."""

import time

# Touched internals: the state behind Flower's SuperLink; its clean-up runs at every request of the ServerApp.
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStore
from flwr.superlink.federation import FederationManager

_KEY_VALID_S = 0.5
_CLEANUP_EVERY_S = 2.0


class QuickLinkState(SqlLinkState):
    """Remembers briefly which site a key belongs to; a revoked key is refused at once, in a race half a second later.

    Parameters
    ----------
    database : str
        File of the database.
    federation_manager : FederationManager
        Flower's.
    store : ObjectStore
        Where contents are.
    """

    def __init__(self, database: str, federation_manager: FederationManager, store: ObjectStore) -> None:
        super().__init__(database, federation_manager, store)
        self._nodes_of_keys: dict[bytes, tuple[float, int]] = {}
        self._next_cleanup = 0.0

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        """Return a site's node, as of a moment ago: every request asks twice."""
        known = self._nodes_of_keys.get(public_key)
        if known is not None and time.monotonic() - known[0] <= _KEY_VALID_S:
            return known[1]
        self._nodes_of_keys.pop(public_key, None)
        node_id = super().get_node_id_by_public_key(public_key)
        if node_id is not None:
            self._nodes_of_keys[public_key] = time.monotonic(), node_id
        return node_id

    def delete_node(self, owner_aid: str, node_id: int) -> None:
        """Revoke a site and forget its key."""
        super().delete_node(owner_aid, node_id)
        self._nodes_of_keys.clear()

    def _cleanup_expired_task_tokens(self) -> None:
        """Do what Flower does at every request of the ServerApp, but not at every one."""
        if time.monotonic() >= self._next_cleanup:
            self._next_cleanup = time.monotonic() + _CLEANUP_EVERY_S
            super()._cleanup_expired_task_tokens()

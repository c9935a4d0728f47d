import hashlib
import os
import time
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import InflatableObject, add_header_to_object_body
from flwr.supercore.object_store import NoObjectInStoreError
from sqlalchemy import text

from server.superlink.object_store import FileObjectStore, FileObjectStoreFactory

# Flower's migrations use a setting of alembic that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")


class CustomDataClass(InflatableObject):
    """An object with children, as Flower's checks allow it in tests."""

    def __init__(self, body: bytes, *children: "CustomDataClass") -> None:
        self.body, self._children = body, {child.object_id: child for child in children}

    @property
    def children(self):
        return self._children or None

    def deflate(self) -> bytes:
        return add_header_to_object_body(self.body, self)


def tree_of(part: InflatableObject) -> ObjectTree:
    return ObjectTree(object_id=part.object_id, children=[tree_of(child) for child in (part.children or {}).values()])


@pytest.fixture
def store(tmp_path: Path) -> FileObjectStore:
    # The rows of messages are in the same database, which the migrations of any of Flower's stores make.
    found = FileObjectStoreFactory(str(tmp_path / "link.db"), tmp_path / "objects").store()
    assert isinstance(found, FileObjectStore)
    return found


def files(store: FileObjectStore) -> list[str]:
    return sorted(path.name for path in store._folder.rglob("*") if path.is_file())


def keep(store: FileObjectStore, root: CustomDataClass) -> None:
    for object_id in store.preregister(7, tree_of(root)):
        parts = {root.object_id: root} | (root.children or {})
        store.put(object_id, parts[object_id].deflate())


def test_a_content_is_a_file_named_by_its_hash_and_not_in_the_database(store: FileObjectStore) -> None:
    part = CustomDataClass(b"abc")
    assert store.preregister(7, tree_of(part)) == [part.object_id]
    assert store.get(part.object_id) == b""
    store.put(part.object_id, part.deflate())
    assert store.get(part.object_id) == part.deflate() == b"CustomDataClass  3\x00abc"
    assert store.path_of(part.object_id).relative_to(store._folder) == Path(part.object_id[:2], part.object_id)
    assert hashlib.sha256(store.path_of(part.object_id).read_bytes()).hexdigest() == part.object_id
    assert store.preregister(8, tree_of(part)) == []
    with store.session() as session:
        assert session.execute(text("SELECT content, is_available FROM objects")).all() == [(b"", 1)]


def test_unknown_objects_have_no_content_and_no_path_outside(store: FileObjectStore) -> None:
    assert store.get("ab" * 32) is None
    assert store.get("../../etc/passwd") is None
    assert store._folder in store.path_of("../../etc/passwd").parents


def test_a_content_that_is_not_what_its_id_says_is_refused(store: FileObjectStore) -> None:
    part, other = CustomDataClass(b"abc"), CustomDataClass(b"abd")
    store.preregister(7, tree_of(part))
    with pytest.raises(ValueError, match="does not match content hash"):
        store.put(part.object_id, other.deflate())
    with pytest.raises(NoObjectInStoreError):
        store.put(other.object_id, other.deflate())
    assert files(store) == []
    assert store.get(part.object_id) == b""


def test_deleting_a_message_removes_the_files_that_only_it_used(store: FileObjectStore) -> None:
    shared, own = CustomDataClass(b"shared"), CustomDataClass(b"own")
    first, second = CustomDataClass(b"1", shared, own), CustomDataClass(b"2", shared)
    keep(store, first)
    keep(store, second)
    assert len(files(store)) == 4
    store.delete(shared.object_id)  # others refer to it
    assert len(files(store)) == 4
    store.delete(first.object_id)
    assert files(store) == sorted([second.object_id, shared.object_id])
    store.delete(second.object_id)
    assert files(store) == []
    assert len(store) == 0


def test_an_instruction_stays_until_its_row_is_gone(store: FileObjectStore) -> None:
    message = CustomDataClass(b"m")
    keep(store, message)
    with store.session() as session:
        session.execute(text("INSERT INTO message_ins (message_id) VALUES (:id)"), {"id": message.object_id})
    store.delete(message.object_id)
    assert files(store) == [message.object_id]
    with store.session() as session:
        session.execute(text("DELETE FROM message_ins"))
    store.delete(message.object_id)
    assert files(store) == []


def test_sweeping_removes_what_killed_processes_left_behind(store: FileObjectStore) -> None:
    orphan, wanted = CustomDataClass(b"orphan"), CustomDataClass(b"wanted")
    keep(store, orphan)
    keep(store, wanted)
    with store.session() as session:
        session.execute(text("INSERT INTO message_res (message_id) VALUES (:id)"), {"id": wanted.object_id})
    stray = store.path_of("cd" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x")
    staged = store.stage(orphan.object_id, orphan.deflate()).path
    assert store.sweep(older_than_s=600.0) == 0
    an_hour_ago = time.time() - 3600
    for path in (stray, staged, store.path_of(orphan.object_id), store.path_of(wanted.object_id)):
        os.utime(path, (an_hour_ago, an_hour_ago))
    assert store.sweep(older_than_s=600.0) == 3
    assert files(store) == [wanted.object_id]


def test_a_run_takes_its_objects_along(store: FileObjectStore) -> None:
    keep(store, CustomDataClass(b"m", CustomDataClass(b"part")))
    store.delete_objects_in_run(7)
    assert files(store) == []
    keep(store, CustomDataClass(b"m"))
    store.clear()
    assert files(store) == []
    assert len(store) == 0


def test_a_full_disk_leaves_no_half_a_file(store: FileObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    part = CustomDataClass(b"abc")
    store.preregister(7, tree_of(part))

    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space"):
        store.put(part.object_id, part.deflate())
    assert files(store) == []

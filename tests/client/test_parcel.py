"""Our way of taking messages apart against Flower's own."""

import os
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from client.parcel import deflate_message, inflate_message, take_announcement, take_apart

CHUNK = 5 * 2**20


def make(content=None, error=None):
    metadata = Metadata(3, "", 1, 5, "", "", time.time(), 60.0, "train")
    return make_message(metadata, content, error)


def make_array(data):
    return Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)


CONTENTS = {
    "nothing": RecordDict(),
    "plain": RecordDict({"request": ConfigRecord({"json": "{}"}), "numbers": MetricRecord({"loss": 0.5})}),
    "empty array": RecordDict({"model": ArrayRecord({"bytes": make_array(b"")})}),
    "one piece": RecordDict({"model": ArrayRecord({"bytes": make_array(os.urandom(CHUNK))})}),
    "pieces that are alike": RecordDict({"model": ArrayRecord({"bytes": make_array(bytes(3 * CHUNK + 7))})}),
    "arrays that share pieces": RecordDict(
        {"a": ArrayRecord({"x": make_array(b"q" * (CHUNK + 1)), "y": make_array(b"q" * (2 * CHUNK))})}
    ),
    "numpy": RecordDict({"a": ArrayRecord([np.arange(6.0).reshape(2, 3), np.array([True])])}),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_same_objects_as_flower_and_back(content):
    message = make(content)
    theirs = {object_id: item.deflate() for object_id, item in get_all_nested_objects(message).items()}
    parts = deflate_message(message)
    assert message.metadata.message_id == message.object_id
    announcement, tree = take_announcement(parts)
    assert parts == theirs
    assert tree == get_object_tree(message)
    assert {node.object_id for node in iterate_object_tree(tree)} == set(parts)
    assert (announcement.metadata.message_id, announcement.metadata.run_id) == (tree.object_id, 3)
    assert not announcement.content.items

    task = {"root": tree.object_id, "message_type": "train", "run_id": 3, "node_id": 5}
    ours = inflate_message(task, dict(parts))
    flowers = inflate_object_from_contents(tree.object_id, dict(parts))
    assert isinstance(flowers, Message)
    assert ours.content == flowers.content == content
    assert ours.metadata.message_id == tree.object_id


def test_large_pieces_are_views():
    data = os.urandom(2 * CHUNK)
    parts = take_apart(make(RecordDict({"model": ArrayRecord({"bytes": make_array(data)}, keep_input=True)})))
    views = [piece for pieces in parts.values() for piece in pieces if isinstance(piece, memoryview)]
    assert [len(view) for view in views] == [CHUNK, CHUNK]
    assert all(view.obj is data for view in views)


def test_an_error_has_no_content():
    parts = deflate_message(make(error=Error(1, "because")))
    announcement, tree = take_announcement(parts)
    assert list(parts) == [tree.object_id]
    assert announcement.error.reason == "because"
    task = {"root": tree.object_id, "message_type": "train", "run_id": 3, "node_id": 5}
    with pytest.raises(ValueError, match="not a request"):
        inflate_message(task, parts)


def test_a_piece_that_is_something_else_is_refused():
    parts = deflate_message(make(CONTENTS["one piece"]))
    _, tree = take_announcement(parts)
    chunk = next(object_id for object_id, content in parts.items() if content.startswith(b"ArrayChunk"))
    parts[chunk] = next(content for content in parts.values() if content.startswith(b"RecordDict"))
    task = {"root": tree.object_id, "message_type": "train", "run_id": 3, "node_id": 5}
    with pytest.raises(ValueError, match="something else"):
        inflate_message(task, parts)

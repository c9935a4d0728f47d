"""Our way of taking messages apart against Flower's own."""

import json
import os
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from client.supernode.objects import deflate_message, inflate_message, take_announcement, take_apart

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


def take_with_body(change):
    """Take a message of one array apart, with the description of the array changed."""
    parts = deflate_message(make(CONTENTS["pieces that are alike"]))
    _, tree = take_announcement(parts)
    array = next(object_id for object_id, content in parts.items() if content.startswith(b"Array "))
    head, _, body = parts[array].partition(b"\x00")
    values = json.loads(body)
    change(values)
    parts[array] = head + b"\x00" + json.dumps(values).encode()
    return {"root": tree.object_id, "message_type": "train", "run_id": 3, "node_id": 5}, parts


def repeat(values, times=3200, declare=True):
    """Have the first piece of 5 MiB many times, 16 GB in all."""
    values["arraychunk_ids"] = values["arraychunk_ids"][:1] * times
    if declare:
        values["shape"] = [CHUNK * times]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda values: repeat(values, declare=False), "more bytes than its type and shape"),
        (lambda values: repeat(values, 4, declare=False), "more bytes than its type and shape"),
        (repeat, "larger than this site allows"),
        (lambda values: values.update(shape=[-1, -(10**12)]), "shape of an array is none"),
        (lambda values: values.update(shape=[10.0**12]), "shape of an array is none"),
        (lambda values: values.update(shape=10**12), "no type or no shape"),
        (lambda values: values.update(dtype=None), "no type or no shape"),
        (lambda values: values.update(dtype="magic"), "type of an array is none"),
        (lambda values: values.update(dtype="S0"), "more bytes than its type and shape"),
    ],
)
def test_pieces_that_are_repeated_do_not_fill_the_memory(change, problem):
    task, parts = take_with_body(change)
    with pytest.raises(ValueError, match=problem):
        inflate_message(task, parts)


def test_all_arrays_together_stay_within_the_limit_of_the_task():
    content = CONTENTS["arrays that share pieces"]
    num_bytes = 3 * CHUNK + 1
    for max_bytes in (num_bytes, num_bytes - 1):
        parts = deflate_message(make(content))
        _, tree = take_announcement(parts)
        task = {"root": tree.object_id, "message_type": "train", "run_id": 3, "node_id": 5, "max_bytes": max_bytes}
        if max_bytes == num_bytes:
            assert inflate_message(task, parts).content == content
        else:
            with pytest.raises(ValueError, match="larger than this site allows"):
                inflate_message(task, parts)

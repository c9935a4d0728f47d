"""Messages taken apart into Flower's objects and put together again.

Flower names every object by the SHA-256 of its bytes, a head and a body. A message is an object whose children are
its records, theirs the arrays, and theirs pieces of 5 MiB. Flower's own code copies those pieces five times; here
they are copied once on the way in and not at all on the way out, because a message may be 300 MB.
"""

import json
import math

import numpy as np
from flwr.app import Array, Message
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from client.supernode.pipe import Blob, Task

MAX_BYTES = 2 * 2**30
"""Most bytes of all arrays of a message, where the site sets no other limit."""
_MESSAGE, _TREE = "message", "tree"
_NUMPY_HEAD_BYTES = 4096  # Flower's own arrays are .npy files


def inflate_message(task: Task, objects: dict[str, bytes]) -> Message:
    """Build a message from its objects, of which nothing is left afterwards, to save memory.

    Parameters
    ----------
    task : Task
        What was announced.
    objects : dict of str to bytes
        The objects by id.

    Raises
    ------
    ValueError
        If the objects are not the message that was announced.
    """
    arrays = _inflate_arrays(objects, int(task.get("max_bytes", MAX_BYTES)))
    message = inflate_object_from_contents(task["root"], objects, objects=arrays)
    objects.clear()
    if not isinstance(message, Message) or message.has_error():
        raise ValueError("What arrived is not a request.")
    metadata = message.metadata
    announced = task["message_type"], task["run_id"], task["node_id"]
    if (metadata.message_type, metadata.run_id, metadata.dst_node_id) != announced:
        raise ValueError("The message that arrived is not the one that was announced.")
    metadata.__dict__["_message_id"] = task["root"]  # no part of the object, as it is the object's name
    return message


def take_apart(message: Message) -> dict[str, tuple[Blob, ...]]:
    """Take a message apart: its announcement under two names of its own, and every object by its id.

    Each is given as pieces to be joined; they are views of the message where that saves memory.
    """
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        announcement = message_to_proto(remove_content_from_message(message))
        parts: dict[str, tuple[Blob, ...]] = {
            _MESSAGE: (announcement.SerializeToString(deterministic=True),),
            _TREE: (get_object_tree(message).SerializeToString(deterministic=True),),
        }
        return parts | {object_id: _deflate(item) for object_id, item in get_all_nested_objects(message).items()}


def deflate_message(message: Message) -> dict[str, bytes]:
    """Do what :func:`take_apart` does, with the pieces joined."""
    return {name: b"".join(pieces) for name, pieces in take_apart(message).items()}


def take_announcement(parts: dict[str, bytes]) -> tuple[ProtoMessage, ObjectTree]:
    """Take the announcement out of what :func:`deflate_message` returned; the objects are left."""
    return ProtoMessage.FromString(parts.pop(_MESSAGE)), ObjectTree.FromString(parts.pop(_TREE))


def _deflate(item: InflatableObject) -> tuple[Blob, ...]:
    if not isinstance(item, ArrayChunk):
        return (item.deflate(),)
    head = HEAD_VALUE_DIVIDER.join((ArrayChunk.__qualname__, "", str(len(item.data))))
    return head.encode() + HEAD_BODY_DIVIDER, item.data


def _inflate_arrays(objects: dict[str, bytes], max_bytes: int) -> dict[str, InflatableObject]:
    """Build the arrays of a message, and take them and their pieces out of the objects.

    A piece may occur in an array many times, so that little that arrives can become much: sizes are added up first.
    """
    arrays: dict[str, InflatableObject] = {}
    used: set[str] = set()
    for object_id, content in objects.items():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            values = json.loads(bytes(_body(content)))
            pieces = [_body(objects[children[index]], ArrayChunk) for index in values["arraychunk_ids"]]
            num_bytes = sum(map(len, pieces))
            max_bytes -= num_bytes
            if num_bytes > _declared_bytes(values["dtype"], values["shape"]) + _NUMPY_HEAD_BYTES:
                raise ValueError("An array has more bytes than its type and shape say.")
            if max_bytes < 0:
                raise ValueError("The arrays of the message are larger than this site allows.")
            data = b"".join(pieces)
            arrays[object_id] = Array(values["dtype"], tuple(values["shape"]), values["stype"], data)
            used |= {object_id, *children}
    for object_id in used:
        del objects[object_id]
    return arrays


def _declared_bytes(dtype: object, shape: object) -> int:
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError("An array has no type or no shape.")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("The shape of an array is none.")
    try:
        return np.dtype(dtype).itemsize * math.prod(shape)
    except TypeError:
        raise ValueError("The type of an array is none.") from None


def _body(content: bytes, kind: type[InflatableObject] | None = None) -> memoryview:
    begin = content.index(HEAD_BODY_DIVIDER)
    if kind is not None and not content.startswith((kind.__qualname__ + HEAD_VALUE_DIVIDER).encode()):
        raise ValueError("A part of an array is something else.")
    return memoryview(content)[begin + len(HEAD_BODY_DIVIDER) :]

"""Messages taken apart into Flower's objects and put together again.

Flower names every object by the SHA-256 of its bytes: a message is an object whose children are its records, theirs
the arrays, and theirs pieces of 5 MiB.
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

_MESSAGE, _TREE = "message", "tree"


def inflate_message(task: Mapping[str, Any], objects: dict[str, bytes]) -> Message:
    """Build a message from its objects, of which nothing is left afterwards, to save memory.

    Parameters
    ----------
    task : mapping
        What was announced: ``root`` (id of the message), ``message_type``, ``run_id``, ``node_id``.
    objects : dict of str to bytes
        The objects by id.

    Raises
    ------
    ValueError
        If the objects are not the message that was announced.
    """
    message = inflate_object_from_contents(task["root"], objects)
    if not isinstance(message, Message) or message.has_error():
        raise ValueError("What arrived is not a request.")
    metadata = message.metadata
    announced = task["message_type"], task["run_id"], task["node_id"]
    if (metadata.message_type, metadata.run_id, metadata.dst_node_id) != announced:
        raise ValueError("The message that arrived is not the one that was announced.")
    metadata.__dict__["_message_id"] = task["root"]  # no part of the object, as it is the object's name
    return message


def deflate_message(message: Message) -> dict[str, bytes]:
    """Take a message apart: its announcement under two names of its own, and every object by its id."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        announcement = message_to_proto(remove_content_from_message(message))
        parts = {
            _MESSAGE: announcement.SerializeToString(deterministic=True),
            _TREE: get_object_tree(message).SerializeToString(deterministic=True),
        }
        return parts | {object_id: item.deflate() for object_id, item in get_all_nested_objects(message).items()}


def take_announcement(parts: dict[str, bytes]) -> tuple[ProtoMessage, ObjectTree]:
    """Take the announcement out of what :func:`deflate_message` returned; the objects are left."""
    return ProtoMessage.FromString(parts.pop(_MESSAGE)), ObjectTree.FromString(parts.pop(_TREE))

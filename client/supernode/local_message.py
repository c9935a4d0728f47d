"""A message that no server has sent, for checks of what this site would answer."""

from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity


def make_local_message(content: RecordDict, kind: str) -> Message:
    """Return a message to this site. Flower's messages name the task that they belong to; here it is none.

    Parameters
    ----------
    content : RecordDict
        What it brings.
    kind : str
        Flower's message type, for example ``evaluate.calibrate``.
    """
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return Message(content, dst_node_id=1, message_type=kind)

"""A Grid in this very process, to test the round loop without an engine.

A ClientApp is called directly when its reply is pulled. Tests may drop or change answers.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedmed.errors import FedmedError

Tamper = Callable[[str, Message, Message], Message | None]


class LocalGrid(Grid):
    """Runs a ClientApp for each message when its reply is pulled.

    Parameters
    ----------
    client_app : ClientApp
        Called for every message.
    node_configs : dict of int to dict
        Node id -> node config with ``site``.
    tamper : callable, optional
        ``(site, request, reply) -> reply or None``; None loses the reply.
    order : callable, optional
        Changes the order in which replies arrive.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: dict[int, dict[str, Any]],
        tamper: Tamper | None = None,
        order: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self._app, self._configs, self._tamper, self._order = client_app, node_configs, tamper, order
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count()
        self.sent: list[tuple[str, str]] = []
        self.offline: set[int] = set()
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return [node for node in self._configs if node not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message_id = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            self.sent.append((str(self._configs[message.metadata.dst_node_id]["site"]), message.metadata.message_type))
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in self._order([one for one in message_ids if one in self._waiting]):
            message = self._waiting.pop(message_id)
            reply = self._answer(message)
            if reply is not None:
                yield reply

    def _answer(self, message: Message) -> Message | None:
        config = self._configs[message.metadata.dst_node_id]
        context = Context(
            run_id=1, node_id=message.metadata.dst_node_id, node_config=config, state=RecordDict(), run_config={}
        )
        try:
            reply = self._app(message, context)
        except Exception as error:
            reply = Message(Error(code=0, reason=_describe(error)), reply_to=message)
        return self._tamper(str(config["site"]), message, reply) if self._tamper else reply


def _describe(error: BaseException) -> str:
    """Say in full what happened, as a test wants to know it; errors of ours by their sentence."""
    return str(error) if isinstance(error, FedmedError) else f"{type(error).__name__}: {error}"

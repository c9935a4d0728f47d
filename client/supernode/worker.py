"""``python -m client.supernode.worker``: the process in which the installed ClientApp answers messages, one by one.

It lives as long as the SuperNode that started it, so that PyTorch is imported once and the site's images stay in
memory. It has no network connection: messages come and go through an inherited socket.
"""

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from client.hospital.said import take_lines
from client.hospital.site_key import add_inherit_option
from client.supernode.objects import inflate_message, take_apart
from client.supernode.pipe import Blob, Pipe, Task, WorkerTold
from fedmed.errors import FedmedError, describe_error
from fedmed.processes import set_up_logging, watch_parent
from fedmed.protocol.apps import load_app, warm_up

_logger = logging.getLogger("fedmed.worker")


@dataclass(frozen=True)
class WorkerAnswer:
    """A reply, and what is told at the site only."""

    parts: dict[str, tuple[Blob, ...]]
    """The reply, from :func:`client.supernode.objects.take_apart`."""
    failure: str | None = None
    """Why the work was not done, in full; it may name files and never leaves the site. None: it was done."""
    said: tuple[str, ...] = ()
    """Lines for the console."""


class SiteWorker:
    """Turns requests into replies.

    Parameters
    ----------
    app : ClientApp
        What is installed at this site.
    """

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._context: Context | None = None

    def answer(self, task: Task, objects: dict[str, bytes]) -> WorkerAnswer:
        """Answer one message; what the app raises becomes an error reply.

        Parameters
        ----------
        task : Task
            What was announced.
        objects : dict of str to bytes
            The message in Flower's form, by object id. It is emptied, to save memory.

        Returns
        -------
        WorkerAnswer
            The reply, and why it is an error if it is one.

        Raises
        ------
        ValueError
            If the objects are not the message that was announced.
        """
        message = inflate_message(task, objects)
        failure = None
        try:
            reply = self._run(message, task)
        except (Exception, SystemExit) as error:
            _logger.exception("'%s' failed.", message.metadata.message_type)
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, describe_error(error)), reply_to=message)
            failure = explain_locally(error)
        del message  # large; the reply does without
        return WorkerAnswer(take_apart(reply), failure, tuple(take_lines()))

    def _run(self, message: Message, task: Task) -> Message:
        # Flower's runners set this; Message and the mods read it.
        TaskIdentity.task_id, TaskIdentity.run_id = task["node_id"], task["run_id"]
        TaskIdentity.node_id = task["node_id"]
        reply = self._app(message, self._get_context(task))
        if not isinstance(reply, Message):
            raise TypeError(
                f"The app answered '{message.metadata.message_type}' with {type(reply).__name__}, not with a Message."
            )
        return reply

    def _get_context(self, task: Task) -> Context:
        context = self._context
        if context is None or (context.run_id, context.node_id) != (task["run_id"], task["node_id"]):
            context = self._context = Context(
                run_id=task["run_id"],
                node_id=task["node_id"],
                node_config=dict(task["node_config"]),
                state=RecordDict(),
                run_config={},
            )
        return context


def explain_locally(error: BaseException) -> str:
    """Say what happened to the people at the site: our own errors in full, of others the class."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FedmedError) and text else type(error).__name__


def serve(pipe: Pipe[WorkerTold, Task], client_app: str, threads: int, device_wish: str = "auto") -> int:
    """Answer tasks until the other end is gone; return the exit code."""
    try:
        worker = SiteWorker(load_app(client_app, ClientApp))
        warm_up(threads, device_wish)
    except (Exception, SystemExit) as error:
        _logger.exception("The app cannot be loaded.")
        name, detail = type(error).__name__, str(error)
        text = detail if isinstance(error, FedmedError) and detail else name
        pipe.send({"kind": "failed", "text": f"{name}: {detail}" if isinstance(error, ImportError) else text})
        return 3
    pipe.send({"kind": "ready"})
    while True:
        try:
            task, objects = pipe.receive()
        except EOFError:
            return 0
        try:
            answer = worker.answer(task, objects)
        except Exception as error:
            _logger.exception("A message cannot be read.")
            pipe.send({"kind": "no memory" if isinstance(error, MemoryError) else "unreadable"})
        else:
            pipe.send({"kind": "reply", "failure": answer.failure, "said": list(answer.said)}, answer.parts)
            del answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    parser.add_argument("--app", required=True, help="module:attribute of the ClientApp")
    parser.add_argument("--threads", type=int, required=True, help="threads of PyTorch")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda, as in client.yaml")
    parser.add_argument("--log", type=Path, help="log file; it may hold private details and never leaves the site")
    parser.add_argument("--parent", type=int, required=True, help="process id of the SuperNode")
    add_inherit_option(parser)  # the worker signs how far the audit log goes
    options = parser.parse_args(arguments)
    watch_parent(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the SuperNode alone decides when its worker ends
    os.set_inheritable(options.fd, False)
    if options.log is not None:
        set_up_logging(options.log)
    return serve(Pipe(socket.socket(fileno=options.fd)), options.app, options.threads, options.device)


if __name__ == "__main__":
    sys.exit(main())

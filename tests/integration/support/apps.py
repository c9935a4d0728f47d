"""Apps for processes under test: a tiny network, and a site that misbehaves when a file tells it to.

``FEDMED_TEST_FAULTS`` names a folder. A file ``SITE.json`` in it holds ``{"kind": …, "round": …, "once": …}``.
With ``FEDMED_TEST_TRAIN_FORM`` the model is released in train form, which saves seconds where that is not the matter.
"""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site import app as site_app
from fedmed.export import write_model
from fedmed.protocol.messages import MODEL, REPORT, REQUEST, make_content, read_model, read_values
from fedmed.protocol.tensors import pack_tensors, unpack_tensors
from fedmed.storage.atomic_files import explain_write_failure
from fedmed.storage.checkpoints import RunCheckpoints
from server import federation as server_federation
from server.federation import create_deployed_app
from server.finish.chosen import ChosenModel
from server.rounds.session import Session
from tests.support import federation

__all__ = ["client_app", "server_app"]

assert federation  # importing it registers the model "tiny"
server_app = create_deployed_app()


def _fill_the_disk(folder: Path) -> None:
    """Let the checkpoint of the round that a file names fail as on a full disk, once."""
    save = RunCheckpoints.save

    def save_or_fail(self: RunCheckpoints, round_number: int, *arguments: Any, **options: Any) -> Path:
        marker = folder / "disk_full"
        if marker.is_file() and marker.read_text() == str(round_number):
            marker.unlink()
            error = OSError(errno.ENOSPC, "No space left on device")
            raise explain_write_failure(self.root / f"round_{round_number:05d}", error)
        return save(self, round_number, *arguments, **options)

    RunCheckpoints.save = save_or_fail  # type: ignore[method-assign]


def _keep_train_form(session: Session, model: ChosenModel, best_round: int | None) -> None:
    write_model(session.run.model, model.model_path, session.plan, chosen_round=model.round)


if "FEDMED_TEST_TRAIN_FORM" in os.environ:
    server_federation.make_candidate = _keep_train_form

if "FEDMED_TEST_FAULTS" in os.environ:
    _fill_the_disk(Path(os.environ["FEDMED_TEST_FAULTS"]))


class FaultyApp(ClientApp):
    """The installed app, which misbehaves on demand."""

    def __call__(self, message: Message, context: Context) -> Message:
        fault = _find_fault(message)
        if fault is not None:
            _misbehave_before(fault)
        reply = site_app(message, context)
        return reply if fault is None else _change(reply, fault["kind"])


client_app = FaultyApp()


def _find_fault(message: Message) -> dict[str, Any] | None:
    folder = os.environ.get("FEDMED_TEST_FAULTS")
    name = os.environ.get("FEDMED_TEST_SITE")
    if folder is None or message.metadata.message_type != "train":
        return None
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        return None
    fault: dict[str, Any] = json.loads(path.read_text())
    if read_values(message, REQUEST)["round"] != fault["round"]:
        return None
    (Path(folder) / f"{name}.seen").touch()
    if fault.get("once", True):
        path.unlink()
    return fault


def _misbehave_before(fault: dict[str, Any]) -> None:
    if fault["kind"] in {"slow", "hang"}:
        time.sleep(fault.get("seconds", 10_000))
    if fault["kind"] == "exit":
        os._exit(9)
    if fault["kind"] == "raise":
        raise RuntimeError("patient 12345 has a bad image")


def _change(reply: Message, kind: str) -> Message:
    values, tensors = read_values(reply, REPORT), unpack_tensors(read_model(reply))
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    if kind == "nan":
        tensors[first] = tensors[first] * float("nan")
    elif kind == "shape":
        tensors[first] = torch.zeros(3, 3)
    elif kind == "keys":
        del tensors[first]
    elif kind == "huge":
        tensors = {name: t * 1000 if t.is_floating_point() else t for name, t in tensors.items()}
    elif kind == "count":
        values["num_images"] = 10**9
    reply.content[REPORT] = make_content(REPORT, values)[REPORT]
    reply.content[MODEL] = make_content(REPORT, values, model=pack_tensors(tensors))[MODEL]
    return reply

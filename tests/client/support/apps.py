"""A ClientApp that does what a test asks for."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.hospital.site_key import open_site_key
from fedmed.errors import DataError, PolicyError

app = ClientApp()
not_an_app = object()


def make_request(do: str = "flip", data: bytes = b"", **values) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
    request = ConfigRecord({"json": json.dumps({"do": do, **values})})
    return RecordDict({"request": request, "model": ArrayRecord({"bytes": array}, keep_input=True)})


def read_data(message: Message) -> bytes:
    return message.content["model"]["bytes"].data


def read_report(message: Message) -> dict:
    return json.loads(message.content["report"]["json"])


def flip(data: bytes) -> bytes:
    return data[::-1]


@app.query()
def query(message: Message, context: Context) -> Message:
    import torch

    values = {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "daemon_threads": sorted(thread.name for thread in threading.enumerate()),
        "node_config": dict(context.node_config),
        "run_config": dict(context.run_config),
        "run_id": context.run_id,
        "node_id": context.node_id,
        "message_id": message.metadata.message_id,
        "state": len(context.state),
        "telemetry": os.environ.get("FLWR_TELEMETRY_ENABLED"),
        "random": torch.rand(1).item(),
    }
    context.state[f"seen-{len(context.state)}"] = ConfigRecord({"n": 1})
    return Message(RecordDict({"report": ConfigRecord({"json": json.dumps(values)})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    request = json.loads(message.content["request"]["json"])
    match request["do"]:
        case "policy":
            raise PolicyError("policy.max_rounds: found 9, allowed 3\nsecond line")
        case "private":
            raise DataError("/data/patient_0815.png cannot be read")
        case "key":
            raise KeyError("patient_0815")
        case "open the site's key":
            open_site_key(SimpleNamespace(name="north", key=request["file"], key_passphrase_file=None))
        case "exit":
            raise SystemExit(5)
        case "nothing":
            return None
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once":
            mark = Path(request["mark"])
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            Path(request["mark"]).touch()
            time.sleep(600)
    data = flip(read_data(message))
    array = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
    return Message(RecordDict({"model": ArrayRecord({"bytes": array}, keep_input=True)}), reply_to=message)

"""Tiny apps for the tests of the grid; each action does one thing that a real app may do."""

import os
import signal
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmed.errors import DataError

app = ClientApp()
no_app = "something else"


def __getattr__(name: str) -> ClientApp:
    """Die of being asked for the app 'deadly', as a worker does that runs out of memory while it starts."""
    if name == "deadly":
        os._exit(1)
    raise AttributeError(name)


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Count the calls in the context, and say where and how they run."""
    count = int(context.state.metric_records["calls"]["n"]) + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"n": count})
    config = ConfigRecord(
        {
            "site": str(context.node_config["site"]),
            "rate": context.run_config["rate"],
            "pid": os.getpid(),
            "threads": torch.get_num_threads(),
            "omp": os.environ["OMP_NUM_THREADS"],
            "telemetry": os.environ["FLWR_TELEMETRY_ENABLED"],
            "extra": os.environ.get("FEDMED_TEST_EXTRA", ""),
            "cwd": os.getcwd(),
            "ignores_sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        }
    )
    return Message(RecordDict({"config": config, "calls": context.state["calls"]}), reply_to=message)


@app.train("fail")
def fail(message: Message, context: Context) -> Message:
    kind = message.content.config_records["how"]["kind"]
    if kind == "exit":
        raise SystemExit(3)
    if kind == "none":
        return None  # type: ignore[return-value]
    raise {"own": DataError, "foreign": ValueError}[str(kind)]("patient 4711 has no image\nsecond line")


@app.train("die")
def die(message: Message, context: Context) -> Message:
    """Kill the own process as often as the file named in the message says."""
    path = Path(str(message.content.config_records["how"]["file"]))
    left = int(path.read_text())
    if left:
        path.write_text(str(left - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return Message(message.content, reply_to=message)


@app.train("hang")
def hang(message: Message, context: Context) -> Message:
    time.sleep(3600)
    raise AssertionError


@app.train("double")
def double(message: Message, context: Context) -> Message:
    """Answer with twice the arrays, plus the node's number."""
    (record,) = message.content.array_records.values()
    arrays = [2 * array + context.node_id for array in record.to_numpy_ndarrays()]
    return Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=message)

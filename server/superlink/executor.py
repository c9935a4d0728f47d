"""Child process of ``flower-server``: runs the installed ServerApp.

Flower's own executor unpacks an app bundle, may install packages, and starts a further process. This one takes the task
from the SuperLink and runs what is installed. Standard output belongs to the ServerApp's events, one JSON object a
line; everything else goes to the log.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported, however this process was started

import httpx
from flwr.app import Context, RecordDict

# Touched internals: the conversation with the SuperLink's Runtime API by which a process takes a task, gets its input
# and says how it ended, and the identity that a message takes its sender from. Flower's own processes do the same.
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedmed.errors import FedmedError, ProcessError
from fedmed.processes import Stopped, raise_on_signals, read_secret, set_up_logging, watch_parent
from fedmed.protocol.apps import load_app
from server.superlink.grid import DeploymentGrid

DONE, EXPLAINED, FAILED = 0, 3, 4
"""Exit codes: finished; a failure that was told on standard output; anything else."""
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_WAIT_FOR_TASK_S = 60.0
_POLL_S = 0.05

log = logging.getLogger("fedmed.executor")


@dataclass(frozen=True)
class ExecutorLaunch:
    """Settings of this process."""

    runtime_port: int
    superexec_secret_file: str
    server_app: str
    run_dir: str
    parent_pid: int
    log_file: str
    threads: int = 1

    @property
    def address(self) -> str:
        """Of the SuperLink's private listener."""
        return f"127.0.0.1:{self.runtime_port}"


def acquire_task(address: str, secret: bytes, timeout_s: float = _WAIT_FOR_TASK_S) -> str:
    """Wait for the run that the supervisor has started, and return the token of its task.

    Parameters
    ----------
    address : str
        Of the SuperLink's private listener.
    secret : bytes
        Shared with the SuperLink.
    timeout_s : float
        Longest time to wait.

    Raises
    ------
    ProcessError
        If there is none.
    """
    authentication = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    end = time.monotonic() + timeout_s
    with RuntimeHttpClient.from_server_address(address, True, None, [version, authentication]) as client:
        client._client = httpx.Client(trust_env=False, timeout=timeout_s)  # no proxy to the loopback interface
        while time.monotonic() < end:
            answer = client.AcquireTask(request)
            if answer.HasField("task") and answer.token:
                return str(answer.token)
            time.sleep(_POLL_S)
    raise ProcessError(f"The SuperLink process had no run for the ServerApp within {timeout_s:g} s. Start again.")


class ServerTask:
    """The one task of this process: a run of the ServerApp.

    Parameters
    ----------
    grid : DeploymentGrid
        Way to the SuperLink.
    """

    def __init__(self, grid: DeploymentGrid) -> None:
        self._grid = grid
        self._client = grid._runtime_client
        self._heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(self._client))

    def begin(self, run_dir: str) -> Context:
        """Take the input and return the context for the ServerApp."""
        self._heartbeat.start()
        answer = self._client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = answer.task_id
        TaskIdentity.run_id = answer.run.run_id
        TaskIdentity.node_id = answer.context.node_id
        self._grid.set_run(run_from_proto(answer.run))
        context = context_from_proto(answer.context)
        context.run_config = {"run-dir": run_dir}
        return context

    def end(self, context: Context | None, *, completed: bool, details: str) -> None:
        """Tell the SuperLink how it ended, as well as it goes."""
        if context is not None:
            context.state = RecordDict()
        request = PushTaskOutputRequest(
            context=None if context is None else context_to_proto(context),
            sub_status=SubStatus.COMPLETED if completed else SubStatus.FAILED,
            details=details,
        )
        if self._heartbeat.is_running:
            self._heartbeat.stop()  # before the end is told: the token of an ended task is refused
        try:
            self._client.PushTaskOutput(request)
        except httpx.HTTPError as error:
            log.warning("the SuperLink could not be told of the end (%s)", type(error).__name__)
        self._grid.close()


def run_task(launch: ExecutorLaunch, server_app: Callable[[DeploymentGrid, Context], None]) -> None:
    """Take the task from the SuperLink and run the ServerApp on it."""
    token = acquire_task(launch.address, read_secret(Path(launch.superexec_secret_file)))
    task = ServerTask(grid := DeploymentGrid(launch.address, token=token))
    context, completed, details = None, False, "the process was stopped"
    try:
        context = task.begin(launch.run_dir)
        server_app(grid, context)
        completed, details = True, ""
    except Exception as error:
        details = str(error) if isinstance(error, FedmedError) else type(error).__name__
        raise
    finally:
        task.end(context, completed=completed, details=details)


def main() -> int:
    """Run the process and return its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--launch", type=Path, required=True)
    launch = ExecutorLaunch(**json.loads(parser.parse_args().launch.read_text()))
    watch_parent(launch.parent_pid)
    set_up_logging(Path(launch.log_file))
    os.umask(0o077)
    try:
        raise_on_signals()
        import torch  # noqa: PLC0415  (seconds; after the watch over the parent and the log)

        torch.set_num_threads(launch.threads)
        server_app = load_app(launch.server_app, ServerApp)
        run_task(launch, lambda grid, context: server_app(grid=grid, context=context))
    except FedmedError as error:
        log.warning("%s", error, exc_info=True)
        _tell({"event": "error", "error": str(error)})
        return EXPLAINED
    except Stopped:
        log.info("stopped")
        return FAILED
    except Exception:
        log.exception("the ServerApp failed")
        return FAILED
    return DONE


def _tell(event: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

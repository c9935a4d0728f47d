"""The supervisor's way to the SuperLink: who may take part, which run goes on."""

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported

import httpx
import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

# Touched internals: the client of the Control API, which Flower's own command line uses; it has no public one.
from flwr.common.constant import Status
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from fedmed.errors import FederationError, KeyFileError, ProcessError
from fedmed.protocol.http import OPEN_PATH

APP_ID = "fedmed/fedmed"
SERVER_APP = "server.federation:app"
CLIENT_APP = "client.site:app"
_POLL_S = 0.05
_TIMEOUT_S = 30.0


class NodeState(NamedTuple):
    """How the SuperLink sees a site."""

    status: str
    last_activated_at: str
    online_until: float

    @property
    def online(self) -> bool:
        """Whether the site is connected."""
        return self.status == NodeStatus.ONLINE


class _Token:
    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token.strip()}"

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["authorization"] = self._header
        return call_next(context)


class Control:
    """Client of the SuperLink's Control API.

    All methods raise :class:`FederationError` if the SuperLink does not answer as it should.

    Parameters
    ----------
    port : int
        Private port of the SuperLink on this machine.
    token : str
        What the SuperLink was told to ask for.
    """

    def __init__(self, port: int, token: str) -> None:
        self._address = f"127.0.0.1:{port}"
        self._token = token.strip()
        self._client = ControlHttpClient.from_server_address(
            self._address, True, None, [_Token(token), RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        )
        # Flower's client would ask a proxy of the environment even for the loopback interface.
        self._client._client = httpx.Client(trust_env=False, timeout=_TIMEOUT_S)

    def open_gate(self) -> None:
        """Let the sites in: the list of sites is the present one.

        Raises
        ------
        FederationError
            If the SuperLink does not answer.
        """
        url, headers = f"http://{self._address}{OPEN_PATH}", {"authorization": f"Bearer {self._token}"}
        try:
            httpx.post(url, headers=headers, trust_env=False, timeout=_TIMEOUT_S).raise_for_status()
        except httpx.HTTPStatusError as error:
            raise _refused("open", error) from None
        except httpx.TransportError as error:
            raise _unreachable(error) from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def wait_ready(self, timeout_s: float, exit_code: Callable[[], int | None] = lambda: None) -> None:
        """Wait until the SuperLink answers.

        Parameters
        ----------
        timeout_s : float
            Longest time to wait.
        exit_code : callable
            Returns the code with which its process has ended, None while it runs.

        Raises
        ------
        ProcessError
            If it does not within the time, or has ended.
        """
        end = time.monotonic() + timeout_s
        with httpx.Client(trust_env=False, timeout=2.0) as client:
            while time.monotonic() < end:
                try:
                    if client.get(f"http://{self._address}/health").status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                code = exit_code()
                if code is not None:
                    raise ProcessError(
                        f"The SuperLink process ended with code {code} before it was ready. Its logs, superlink.log "
                        "and superlink.out in the folder logs of the run's folder, say why."
                    )
                time.sleep(_POLL_S)
        raise ProcessError(
            f"The SuperLink process did not get ready within {timeout_s:g} s. Its log, logs/superlink.log in the run's "
            "folder, says why."
        )

    def sync_sites(
        self, allow: dict[str, str], on_problem: Callable[[KeyFileError], None] | None = None
    ) -> dict[str, int]:
        """Make the SuperLink accept exactly these sites.

        Parameters
        ----------
        allow : dict
            Name of the site -> its public key as one line of OpenSSH.
        on_problem : callable, optional
            Is told of a site whose key cannot be used, belongs to another site, or was revoked before. Such a site
            stays as the SuperLink knows it, or stays out; all others are seen to. Default: the problem is raised.

        Returns
        -------
        dict
            Name of the site -> its number in Flower.

        Raises
        ------
        KeyFileError
            See ``on_problem``.
        """
        report = on_problem or _raise
        wanted = _read_keys(allow, report)
        nodes = self._call("ListNodes", ListNodesRequest()).nodes_info
        known = {node.public_key: node for node in nodes if node.status != NodeStatus.UNREGISTERED}
        roster: dict[str, int] = {}
        unreadable = set(allow) - set(wanted.values())
        for key, node in known.items():
            if key in wanted:
                roster[wanted[key]] = node.node_id
            elif node.name in unreadable:
                roster[node.name] = node.node_id
            else:
                self._call("UnregisterNode", UnregisterNodeRequest(node_id=node.node_id))
        for key, name in wanted.items():
            if name not in roster:
                try:
                    roster[name] = self._register(name, key)
                except KeyFileError as error:
                    report(error)
        return {name: roster[name] for name in allow if name in roster}

    def list_nodes(self) -> dict[int, NodeState]:
        """Return every registered site's number and state."""
        nodes = self._call("ListNodes", ListNodesRequest()).nodes_info
        return {
            node.node_id: NodeState(node.status, node.last_activated_at, node.online_until)
            for node in nodes
            if node.status != NodeStatus.UNREGISTERED
        }

    def stop_stale_runs(self) -> list[int]:
        """Stop the runs that an earlier start has left behind; their messages are removed."""
        runs = self._call("ListRuns", ListRunsRequest()).run_dict
        stale = [run_id for run_id, run in runs.items() if run.status.status != Status.FINISHED]
        for run_id in stale:
            self.stop_run(run_id)
        return stale

    def start_run(self, run_dir: Path) -> int:
        """Start a run and return its number.

        Flower wants an app bundle. Ours holds nothing but names: what runs is what is installed.
        """
        bundle = _make_bundle(run_dir)
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        run_id = int(self._call("StartRun", StartRunRequest(fab=fab_to_proto(fab))).run_id)
        if run_id == 0:
            raise FederationError("The SuperLink did not start a run; its log, logs/superlink.log, says why.")
        return run_id

    def stop_run(self, run_id: int) -> None:
        """Stop a run; its messages are removed."""
        self._call("StopRun", StopRunRequest(run_id=run_id))

    def _register(self, name: str, key: bytes) -> int:
        try:
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)
        except httpx.HTTPStatusError as error:
            if error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise _refused("RegisterNode", error) from None
            raise KeyFileError(
                f"The key of the site '{name}' cannot be used again: it was revoked before "
                f"(the SuperLink answered {error.response.status_code}). Have the site make a new key and add it with "
                "--add-site."
            ) from None
        except httpx.TransportError as error:
            raise _unreachable(error) from None

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._client, method)(request)
        except httpx.HTTPStatusError as error:
            raise _refused(method, error) from None
        except httpx.TransportError as error:
            raise _unreachable(error) from None


def _raise(error: KeyFileError) -> None:
    raise error


def _refused(method: str, error: httpx.HTTPStatusError) -> FederationError:
    return FederationError(
        f"The SuperLink process refused the command {method} with status {error.response.status_code}; its log, "
        "logs/superlink.log in the run's folder, says why."
    )


def _unreachable(error: httpx.TransportError) -> FederationError:
    return FederationError(
        f"The SuperLink process does not answer ({type(error).__name__}); it is busy or starts again. Its log is "
        "logs/superlink.log in the run's folder."
    )


def _read_keys(allow: dict[str, str], report: Callable[[KeyFileError], None]) -> dict[bytes, str]:
    """Return key as Flower stores it -> name of the site; sites whose key cannot be used are left out."""
    names: dict[bytes, str] = {}
    for name, line in allow.items():
        try:
            data = _read_key(name, line)
            if data in names:
                raise KeyFileError(
                    f"The sites '{names[data]}' and '{name}' have the same public key in sites.json. Each site needs "
                    "its own; make a new one with --add-site."
                )
            names[data] = name
        except KeyFileError as error:
            report(error)
    return names


def _read_key(name: str, line: str) -> bytes:
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KeyFileError(
            f"The public key of the site '{name}' in sites.json is no elliptic-curve key of OpenSSH. Make a new "
            "one with --add-site."
        )
    return public_key_to_bytes(key)


def _make_bundle(run_dir: Path) -> bytes:
    """Return an app bundle: a zip file with the app's description and a list of what is in it."""
    description = tomli_w.dumps(_describe_app(run_dir)).encode()
    listed = f"pyproject.toml,{hashlib.sha256(description).hexdigest()},{len(description) * 8}"
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("pyproject.toml", description)
        file.writestr(".info/CONTENT", listed)
    return bundle.getvalue()


def _describe_app(run_dir: Path) -> dict[str, Any]:
    publisher, name = APP_ID.split("/")
    app = {
        "publisher": publisher,
        "components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
        "config": {"run-dir": str(run_dir)},
    }
    project = {"name": name, "version": "0.1.0", "description": "names of installed apps", "license": "Apache-2.0"}
    return {"project": project, "tool": {"flwr": {"app": app}}}

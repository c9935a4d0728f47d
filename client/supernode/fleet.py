"""The site's line to the server: Flower's Fleet API and a few requests of our own, over one port, outwards only."""

import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.hospital.site_key import open_site_key
from client.supernode.connection import make_http_client, store_answer
from client.supernode.failures import FleetError, Outlook, explain_status, explain_transport
from fedmed.config.client import ClientConfig
from fedmed.errors import PolicyError
from fedmed.keys import fingerprint
from fedmed.protocol.hello import Hello
from fedmed.protocol.http import COLLECTED_PATH, HELLO_PATH, PULL_TIMEOUT_S, RELEASE_HEADER, RELEASE_PATH
from fedmed.protocol.release import SHA256

_PULL_MESSAGES, _DEACTIVATE = "/flwr.proto.Fleet/PullMessages", "/flwr.proto.Fleet/DeactivateNode"
# A site that leaves shall not wait for a server that is gone.
_READ_TIMEOUTS_S = {_PULL_MESSAGES: PULL_TIMEOUT_S, _DEACTIVATE: 5.0}
_NUM_CONNECTIONS = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


_T = TypeVar("_T")


@dataclass(frozen=True)
class Pulled:
    """What the server had when it was asked for a message.

    Parameters
    ----------
    message : ProtoMessage, optional
        The message without its content.
    tree : ObjectTree, optional
        The ids of its objects.
    release : str, optional
        SHA-256 of the manifest of the released model, once there is one.
    """

    message: ProtoMessage | None
    tree: ObjectTree | None
    release: str | None


@dataclass
class Download:
    """The objects of one message, as far as they have arrived.

    Parameters
    ----------
    node_id, run_id : int
        This site and the message's run.
    max_bytes : int
        Most bytes that are accepted.
    deadline : float
        Until when to wait for objects that the server does not have yet, in :func:`time.monotonic` seconds.
    objects : dict of str to bytes
        By id.
    """

    node_id: int
    run_id: int
    max_bytes: int
    deadline: float
    objects: dict[str, bytes] = field(default_factory=dict)

    def add(self, object_id: str, content: bytes) -> None:
        """Keep an object that has arrived.

        Raises
        ------
        FleetError
            If it is not what its id says.
        PolicyError
            If it is too much.
        """
        if hashlib.sha256(content).hexdigest() != object_id:
            raise FleetError("A part of the message arrived damaged.", Outlook.RETRY)
        self.objects[object_id] = content
        if sum(map(len, list(self.objects.values()))) > self.max_bytes:
            limit = self.max_bytes // 2**20
            raise PolicyError(f"the request is larger than this site allows (policy.max_message_mib: {limit})")


class Fleet:
    """Everything that this site can ask of the server.

    Each method raises :class:`~client.supernode.failures.FleetError` with one line for a person if the request fails.

    Parameters
    ----------
    config : ClientConfig
        ``server``, ``ca``, ``key``, ``proxy`` and ``insecure`` of ``client.yaml``.

    Raises
    ------
    KeyFileError
        If the key or the certificate of the authority cannot be used.
    """

    def __init__(self, config: ClientConfig) -> None:
        key = open_site_key(config)
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self.fingerprint = fingerprint(line)
        self._public_key = public_key_to_bytes(key.public_key())
        self._server = config.server
        self._url = f"{'http' if config.insecure else 'https'}://{config.server}"
        self._http, self._proxy = make_http_client(config, key)
        self._fleet = FleetHttpClient(self._url, interceptors=[self], verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self._fleet.close()
        self._fleet._client = self._http  # why: see client.supernode.connection
        self._pool = ThreadPoolExecutor(_NUM_CONNECTIONS, "transfer")
        self._release: str | None = None
        self._apps: dict[int, str] = {}

    def __enter__(self) -> Self:
        """Return the line itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the line."""
        self.close()

    def close(self) -> None:
        """Close all connections without waiting for what is on its way."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Set the time limit of a request, and note what the server says of a release; flwr's client calls this."""
        if context.rpc_method in _READ_TIMEOUTS_S:
            context.request.extensions["timeout"]["read"] = _READ_TIMEOUTS_S[context.rpc_method]
        response = call_next(context)
        if context.rpc_method == _PULL_MESSAGES:
            release = response.headers.get(RELEASE_HEADER, "")
            self._release = release if SHA256.fullmatch(release) else None
        return response

    def activate(self) -> int:
        """Connect this site and return its node id."""
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        return self._call(lambda: self._fleet.ActivateNode(request)).node_id

    def deactivate(self, node_id: int) -> None:
        """Disconnect this site."""
        self._call(lambda: self._fleet.DeactivateNode(DeactivateNodeRequest(node_id=node_id)))

    def send_heartbeat(self, node_id: int) -> bool:
        """Tell the server that this site is there; return whether the server knows it."""
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        return self._call(lambda: self._fleet.SendNodeHeartbeat(request)).success

    def pull_message(self, node_id: int) -> Pulled:
        """Ask for a message; the server answers when it has one, or after a while without."""
        answer = self._call(lambda: self._fleet.PullMessages(PullMessagesRequest(node=Node(node_id=node_id))))
        if not answer.messages_list:
            return Pulled(None, None, self._release)
        return Pulled(answer.messages_list[0], answer.message_object_trees[0], self._release)

    def get_app(self, node_id: int, run_id: int) -> str:
        """Return the name of the app that a run belongs to; it is asked for once a run, and cannot change."""
        if run_id not in self._apps:
            self.check_run(node_id, run_id)
        return self._apps[run_id]

    def check_run(self, node_id: int, run_id: int) -> None:
        """Ask whether a run goes on; if it has ended, the failure says so."""
        request = GetRunRequest(node=Node(node_id=node_id), run_id=run_id)
        self._apps[run_id] = self._call(lambda: self._fleet.GetRun(request)).run.fab_id

    def pull_objects(self, download: Download, object_ids: Iterable[str]) -> None:
        """Fetch the objects that a download still lacks, over several connections.

        What has arrived stays in the download if this fails: call again to go on.

        Raises
        ------
        PolicyError
            If there are more bytes than allowed.
        """
        node = Node(node_id=download.node_id)

        def pull(object_id: str, stop: threading.Event) -> None:
            request = PullObjectRequest(node=node, run_id=download.run_id, object_id=object_id)
            pause = _FIRST_PAUSE_S
            while not stop.is_set():
                answer = self._call(lambda: self._fleet.PullObject(request))
                if answer.object_available:
                    return download.add(object_id, answer.object_content)
                if not answer.object_found or time.monotonic() > download.deadline:
                    raise FleetError("The server no longer has this message.", Outlook.RUN_OVER)
                stop.wait(pause)  # the ServerApp is still uploading it
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            return None

        self._in_parallel(pull, [object_id for object_id in object_ids if object_id not in download.objects])

    def confirm(self, node_id: int, run_id: int, message_id: str) -> None:
        """Tell the server that a message has arrived."""
        request = ConfirmMessageReceivedRequest(node=Node(node_id=node_id), run_id=run_id, message_object_id=message_id)
        self._call(lambda: self._fleet.ConfirmMessageReceived(request))

    def push_message(
        self, node_id: int, message: ProtoMessage, tree: ObjectTree, seconds: float
    ) -> tuple[list[str], str]:
        """Announce a reply; return the ids of the objects that the server wants, and the name of the session."""
        request = PushMessagesRequest(
            node=Node(node_id=node_id),
            messages_list=[message],
            message_object_trees=[tree],
            clientapp_runtime_list=[seconds],
        )
        answer = self._call(lambda: self._fleet.PushMessages(request))
        return list(answer.objects_to_push), answer.session_id

    def push_objects(self, node_id: int, run_id: int, session: str, objects: Mapping[str, bytes]) -> None:
        """Send objects over several connections.

        Raises
        ------
        FleetError
            Also if the session has ended: announce the reply again.
        """
        node = Node(node_id=node_id)

        def push(object_id: str, stop: threading.Event) -> None:
            if stop.is_set():
                return
            content = objects[object_id]
            request = PushObjectRequest(
                node=node, run_id=run_id, object_id=object_id, object_content=content, session_id=session
            )
            if not self._call(lambda: self._fleet.PushObject(request)).stored:
                raise FleetError("The server forgot the reply meanwhile; sending it again.", Outlook.RETRY)

        self._in_parallel(push, list(objects))

    def hello(self) -> Hello:
        """Return what the server says about itself and the federation."""

        def ask() -> Hello:
            answer: Hello = self._post(HELLO_PATH, {}).json()
            if not isinstance(answer, dict):
                raise ValueError("not an object")
            return answer

        return self._call(ask)

    def download_release(self, file: str, target: Path, max_bytes: int | None = None) -> None:
        """Store a file of the released model under a name of this site's choice.

        Parameters
        ----------
        file : str
            Its name at the server.
        target : Path
            Where it goes.
        max_bytes : int, optional
            Most bytes that are accepted; at the first one beyond, nothing is left of the file.

        Raises
        ------
        FleetError
            Also if the file is larger.
        """

        def download() -> None:
            with self._http.stream("GET", f"{self._url}{RELEASE_PATH}{file}") as response:
                if not response.is_success:
                    response.read()  # what it says is looked at to explain it
                response.raise_for_status()
                store_answer(response, target, max_bytes)

        self._call(download)

    def report_collected(self, manifest_sha256: str) -> None:
        """Tell the server that this site has the released model."""
        self._call(lambda: self._post(COLLECTED_PATH, {"manifest_sha256": manifest_sha256}))

    def _post(self, path: str, values: Mapping[str, str]) -> httpx.Response:
        return self._http.post(f"{self._url}{path}", content=json.dumps(values)).raise_for_status()

    def _call(self, send: Callable[[], _T]) -> _T:
        try:
            return send()
        except httpx.HTTPStatusError as error:
            raise explain_status(error.response, self._server, self.fingerprint) from error
        except httpx.RequestError as error:
            raise explain_transport(error, self._server, self._proxy) from error
        except (ValueError, RecursionError) as error:  # of flwr's client, if the answer is no protobuf, or of JSON
            text = f"What listens at {self._server} is not flower-server of this version; compare the address."
            raise FleetError(text, Outlook.FATAL) from error

    def _in_parallel(self, work: Callable[[str, threading.Event], None], object_ids: list[str]) -> None:
        stop = threading.Event()
        futures = [self._pool.submit(work, object_id, stop) for object_id in object_ids]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for future in futures:
                future.cancel()
        wait(futures)  # those that were on their way
        for future in futures:
            if not future.cancelled():
                future.result()

"""A real SuperLink process and its two neighbours, a site and a ServerApp, for tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import RunStatus
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.supernode.signature import RequestSignature
from fedmed.keys import Authority
from fedmed.processes import child_environment, find_free_port
from server.superlink.control import Control
from server.superlink.executor import ServerTask, acquire_task
from server.superlink.grid import DeploymentGrid


@dataclass
class Link:
    """A SuperLink process in a folder of its own."""

    folder: Path
    insecure: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    public_port: int = field(default_factory=find_free_port)
    private_port: int = field(default_factory=find_free_port)
    process: Any = None

    @property
    def objects(self) -> Path:
        return self.folder / "objects"

    @property
    def release(self) -> Path:
        return self.folder / "release"

    @property
    def refused(self) -> list[dict[str, str]]:
        file = self.folder / "refused.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "ca.pem").is_file():
            Authority.create(self.folder).issue_server_certificate(self.folder, ["localhost", "127.0.0.1"])
        self.release.mkdir(exist_ok=True)
        (self.folder / "collected").mkdir(exist_ok=True)
        for name in ("executor.secret", "control.token"):
            with open(os.open(self.folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                file.write(f"{name}-{'x' * 40}")
        (self.folder / "hello.json").write_text(json.dumps({"study": {"id": "s"}, "round": 3}))

    def start(self) -> Control:
        self.prepare()
        launch = {
            "public_host": "127.0.0.1",
            "public_port": self.public_port,
            "private_port": self.private_port,
            "certificate": str(self.folder / "server.pem"),
            "key": str(self.folder / "server.key"),
            "insecure": self.insecure,
            "database": str(self.folder / "link.db"),
            "objects_dir": str(self.objects),
            "superexec_secret_file": str(self.folder / "executor.secret"),
            "control_token_file": str(self.folder / "control.token"),
            "hello_file": str(self.folder / "hello.json"),
            "release_dir": str(self.release),
            "collected_dir": str(self.folder / "collected"),
            "refused_file": str(self.folder / "refused.jsonl"),
            "parent_pid": os.getpid(),
            "log_file": str(self.folder / "superlink.log"),
            **self.more,
        }
        file = self.folder / "launch.json"
        file.write_text(json.dumps(launch))
        with (self.folder / "superlink.out").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.superlink.process", "--launch", str(file)],
                stdout=out,
                stderr=out,
                env=child_environment(self.folder / "flwr"),
            )
        control = Control(self.private_port, (self.folder / "control.token").read_text())
        control.wait_ready(60)
        return control

    def stop(self) -> int:
        self.process.terminate()
        return int(self.process.wait(10))

    def count_files(self) -> int:
        return sum(path.is_file() for path in self.objects.rglob("*"))


@contextmanager
def running_link(folder: Path, **settings: Any) -> Iterator[tuple[Link, Control]]:
    link = Link(folder, **settings)
    control = link.start()
    try:
        yield link, control
    finally:
        control.close()
        link.stop()


class Site:
    """What a hospital's process does on the wire, one request after the other."""

    def __init__(self, link: Link, private_key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self.key = private_key or ec.generate_private_key(ec.SECP384R1())
        self.address = f"127.0.0.1:{link.public_port}"
        self.insecure = link.insecure
        self.ca = link.folder / "ca.pem"
        self._signature = RequestSignature(self.key)
        self.client = FleetHttpClient.from_server_address(
            self.address,
            link.insecure,
            None if link.insecure else self.ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), self],
        )
        self.node = Node()

    @property
    def public_line(self) -> str:
        return self.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def activate(self) -> int:
        request = ActivateNodeRequest(public_key=public_key_to_bytes(self.key.public_key()), heartbeat_interval=30)
        self.node = Node(node_id=self.client.ActivateNode(request).node_id)
        return self.node.node_id

    def deactivate(self) -> None:
        self.client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))

    def pull(self) -> PullMessagesResponse:
        return self.client.PullMessages(PullMessagesRequest(node=self.node))

    def read(self, answer: PullMessagesResponse, *, confirm: bool = True) -> Message:
        tree = answer.message_object_trees[0]
        run_id = answer.messages_list[0].metadata.run_id
        contents: dict[str, bytes] = {}
        for part in iterate_object_tree(tree):
            request = PullObjectRequest(node=self.node, run_id=run_id, object_id=part.object_id)
            while not (found := self.client.PullObject(request)).object_available:
                assert found.object_found
                time.sleep(0.01)
            contents[part.object_id] = found.object_content
        if confirm:
            self.client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=tree.object_id)
            )
        message = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def announce(self, reply: Message) -> tuple[str, dict[str, bytes]]:
        """Send the head of a reply; return the session and the objects to send, the root last."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            answer = self.client.PushMessages(
                PushMessagesRequest(
                    node=self.node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                )
            )
            wanted = set(answer.objects_to_push)
            return answer.session_id, {name: part.deflate() for name, part in objects.items() if name in wanted}

    def send_part(self, reply: Message, session: str, object_id: str, content: bytes) -> bool:
        request = PushObjectRequest(
            node=self.node,
            run_id=reply.metadata.run_id,
            object_id=object_id,
            object_content=content,
            session_id=session,
        )
        return bool(self.client.PushObject(request).stored)

    def send(self, reply: Message) -> None:
        session, parts = self.announce(reply)
        for object_id, content in parts.items():
            assert self.send_part(reply, session, object_id, content)

    def ask(self, method: str, path: str, **settings: Any) -> httpx.Response:
        """Send a signed request of our own."""
        scheme = "http" if self.insecure else "https"
        verify: Any = True
        if not self.insecure:
            import ssl

            verify = ssl.create_default_context(cafile=str(self.ca))
        with httpx.Client(verify=verify, trust_env=False, auth=self._signature) as client:
            return client.request(method, f"{scheme}://{self.address}{path}", **settings)

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Sign a request; flwr's client calls this."""
        request = context.request
        target = request.url.raw_path.decode()
        request.headers.update(self._signature.sign(request.method, target, request.content))
        return call_next(context)

    def close(self) -> None:
        self.client.close()


@contextmanager
def running_task(link: Link, control: Control, run_dir: Path) -> Iterator[tuple[DeploymentGrid, Context]]:
    """Start a run and take its task, as the executor does."""
    control.start_run(run_dir)
    secret = (link.folder / "executor.secret").read_bytes()
    address = f"127.0.0.1:{link.private_port}"
    grid = DeploymentGrid(address, token=acquire_task(address, secret, timeout_s=10))
    task = ServerTask(grid)
    context = task.begin(str(run_dir))
    try:
        yield grid, context
    finally:
        with suppress(RuntimeError):
            task.end(context, completed=True, details="")


def make_content(data: bytes) -> RecordDict:
    array = Array("uint8", (len(data),), "safetensors", data)
    return RecordDict(
        {"request": ConfigRecord({"json": "{}"}), "model": ArrayRecord({"bytes": array}, keep_input=True)}
    )


def read_data(message: Message) -> bytes:
    record = message.content["model"]  # its views by type, such as array_records, would keep it alive in a circle
    assert isinstance(record, ArrayRecord)
    return record["bytes"].data


def run_status(control: Control, run_id: int) -> RunStatus:
    """Return how a run of Flower stands: its status, once it is finished how it ended, and details."""
    answer: RunStatus = control._call("ListRuns", ListRunsRequest(run_id=run_id)).run_dict[run_id].status
    return answer

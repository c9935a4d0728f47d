"""A small server that speaks Flower's Fleet API over TLS, and does wrong what a test asks for; and a small proxy."""

import base64
import hashlib
import json
import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from fedmed.config.client import ClientConfig, load_client_config
from fedmed.keys import Authority, make_site_key
from fedmed.protocol.signing import FORMAT_HEADER, NONCE_HEADER, SIGNATURE_HEADER, make_signed_text

NODE = 2**63 + 11
RUN = 2**62 + 3
REQUESTS = {
    "activate-node": fleet_pb2.ActivateNodeRequest,
    "deactivate-node": fleet_pb2.DeactivateNodeRequest,
    "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest,
    "pull-messages": fleet_pb2.PullMessagesRequest,
    "push-messages": fleet_pb2.PushMessagesRequest,
    "get-run": run_pb2.GetRunRequest,
    "push-object": message_pb2.PushObjectRequest,
    "pull-object": message_pb2.PullObjectRequest,
    "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest,
}


class FakeFleet:
    """What the server knows and what it was asked; ``answer_with`` makes it misbehave."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: list = []
        self.nonces: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.not_yet: Counter[str] = Counter()  # object id -> times to say "not yet"
        self.stored: list[str] = []
        self.session = "session-1"
        self.headers: dict[str, str] = {}
        self.hello: bytes = json.dumps({"round": 3}).encode()
        self.files: dict[str, bytes] = {}
        self.app = "fedmed/fedmed"
        self.date_offset_s = 0.0
        self._answers: dict[str, list[tuple[int, bytes, dict[str, str | None]]]] = {}

    def answer_with(self, name: str, status: int, body: bytes = b"", times: int = 1, **headers: str | None) -> None:
        self._answers.setdefault(name, []).extend([(status, body, headers)] * times)

    def answer(self, name: str, body: bytes) -> tuple[int, bytes, dict[str, str | None]]:
        self.calls[name] += 1
        if self._answers.get(name):
            return self._answers[name].pop(0)
        if name in REQUESTS:
            request = REQUESTS[name].FromString(body)
            self.requests.append(request)
            reply = getattr(self, "on_" + name.replace("-", "_"))(request)
            return 200, reply.SerializeToString(), self.headers
        if name == "hello":
            return 200, self.hello, {}
        if name == "collected":
            self.requests.append(json.loads(body))
            return 200, b"{}", {}
        return (200, self.files[name], {}) if name in self.files else (404, b"", {})

    def on_activate_node(self, request):
        return fleet_pb2.ActivateNodeResponse(node_id=NODE)

    def on_deactivate_node(self, request):
        return fleet_pb2.DeactivateNodeResponse()

    def on_send_node_heartbeat(self, request):
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)

    def on_pull_messages(self, request):
        return fleet_pb2.PullMessagesResponse()

    def on_get_run(self, request):
        return run_pb2.GetRunResponse(run=run_pb2.Run(run_id=request.run_id, fab_id=self.app))

    def on_pull_object(self, request):
        if self.not_yet[request.object_id] > 0:
            self.not_yet[request.object_id] -= 1
            return message_pb2.PullObjectResponse(object_found=True, object_available=False)
        content = self.objects.get(request.object_id)
        return message_pb2.PullObjectResponse(
            object_found=content is not None, object_available=content is not None, object_content=content
        )

    def on_confirm_message_received(self, request):
        return message_pb2.ConfirmMessageReceivedResponse()

    def on_push_messages(self, request):
        wanted = [request.message_object_trees[0].object_id] if request.message_object_trees else []
        return fleet_pb2.PushMessagesResponse(objects_to_push=wanted, session_id=self.session)

    def on_push_object(self, request):
        stored = request.session_id == self.session
        if stored:
            self.stored.append(request.object_id)
        return message_pb2.PushObjectResponse(stored=stored)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        fleet: FakeFleet = self.server.fleet
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        key = base64.b64decode(self.headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
        signature = base64.b64decode(self.headers[FLEET_HTTP_SIGNATURE_HEADER])
        timestamp = self.headers[TIMESTAMP_HEADER]
        age_s = (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
        text = make_signed_text(
            self.command,
            self.path,
            body_sha256=hashlib.sha256(body).hexdigest(),
            time=timestamp,
            nonce=self.headers[NONCE_HEADER],
            number=int(self.headers[FORMAT_HEADER]),
        )
        ours = base64.b64decode(self.headers[SIGNATURE_HEADER])
        public = bytes_to_public_key(key)
        is_signed = verify_signature(public, timestamp.encode(), signature) and verify_signature(public, text, ours)
        if not is_signed or self.headers[NONCE_HEADER] in fleet.nonces or abs(age_s) > 5:
            status, answer, headers = 401, b"", {}
        else:
            fleet.nonces.add(self.headers[NONCE_HEADER])
            status, answer, headers = fleet.answer(self.path.rpartition("/")[2], body)
        self.send_response_only(status)
        self.send_header(
            "date", format_datetime(datetime.now(UTC) + timedelta(seconds=fleet.date_offset_s), usegmt=True)
        )
        for name, value in ({"content-length": str(len(answer))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_) -> None:
        pass  # a site that hangs up is what some tests are about


@contextmanager
def serving(fleet: FakeFleet, certificate: Path | None) -> Iterator[int]:
    """Serve on a free port; with TLS if there is a certificate (``server.key`` beside it)."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.fleet = fleet
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_name("server.key"))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_kit(folder: Path, port: int, text: str = "", host: str = "127.0.0.1") -> ClientConfig:
    """Make a hospital's folder; ``ca.pem`` has to be there already."""
    if not (folder / "site.key").exists():
        make_site_key(folder, "hospital")
    (folder / "client.yaml").write_text(
        f"name: hospital\nserver: {host}:{port}\nthreads: 1\ndata: {{source: phantom}}\n{text}"
    )
    return load_client_config(folder / "client.yaml")


def make_certificate(folder: Path, names: tuple[str, ...] = ("127.0.0.1",), **times) -> Path:
    """Make an authority, if there is none, and a server's certificate."""
    authority = Authority.load(folder) if (folder / "ca.key").exists() else Authority.create(folder)
    return authority.issue_server_certificate(folder, list(names), **times)


@contextmanager
def proxying(status: str = "200 OK") -> Iterator[tuple[int, list[str]]]:
    """A proxy for CONNECT; yields its port and the heads of the requests that it was sent."""
    heads: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                block = client.recv(65536)
                if not block:
                    return
                head += block
            heads.append(head.decode("latin-1"))
            if not status.startswith("200"):
                client.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
                return
            host, port = head.split()[1].decode().split(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    for source in select.select([client, server], [], [])[0]:
                        data = source.recv(65536)
                        if not data:
                            return
                        (server if source is client else client).sendall(data)

    def accept() -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=relay, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()

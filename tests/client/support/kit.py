"""A site's kit, and servers that answer as they should, or not at all."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

import tests.support.federation  # noqa: F401  (registers the network "tiny")
from fedmed.config import Plan
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.keys import Authority, make_release_key, make_site_key
from fedmed.versions import find_versions
from tests.data.conftest import write_csv, write_image

CLASSES = ["benign", "malignant", "other"]
PLAN = {
    "seed": 3,
    "rounds": 4,
    "classes": CLASSES,
    "image_size": 16,
    "augmentation": "flips",
    "model": {"name": "tiny"},
    "loss": {"ce": 1.0},
    "training": {"optimizer": {"lr": 0.05}, "batch_size": 8, "epochs_per_round": 2},
    "batch_norm": "average",
    "study": "skin",
    "approval": "EK 7/26",
    "run_id": "run1",
    "calibrate": True,
    "release": True,
}


def make_kit(folder: Path, data: dict[str, Any] | None = None, **settings: Any) -> ClientConfig:
    """Make keys, the authority's certificate and client.yaml, and return the settings."""
    Authority.create(folder / "authority")
    (folder / "ca.pem").write_bytes((folder / "authority" / "ca.pem").read_bytes())
    make_site_key(folder, "north")
    make_release_key(folder / "coordinator")
    (folder / "release.pub").write_bytes((folder / "coordinator" / "release.pub").read_bytes())
    values: dict[str, Any] = {"name": "north", "server": "127.0.0.1:9", "device": "cpu", "threads": 1}
    values["policy"] = {"min_images": 2}  # the tests have few
    values["data"] = data or {"source": "phantom", "num_classes": 3, "images_per_site": 40, "image_size": 16}
    (folder / "client.yaml").write_text(yaml.safe_dump(values | settings))
    return load_client_config(folder / "client.yaml")


def make_class_folders(root: Path, counts: dict[str, int]) -> dict[str, Any]:
    """Write PNGs in one folder per class, and return the settings that name them."""
    for label, number in counts.items():
        for index in range(number):
            write_image(root / label / f"{index:03d}.png", index, (12, 12))
    return {"source": "class_folders", "root": str(root), "image_size": 16}


def make_table(root: Path, rows: list[dict[str, object]], **settings: Any) -> dict[str, Any]:
    """Write PNGs and a table, and return the settings that name them."""
    for number, row in enumerate(rows):
        write_image(root / str(row["file"]), number, (12, 12))
    write_csv(root / "labels.csv", rows)
    return {"source": "image_table", "root": str(root), "image_size": 16, **settings}


def make_hello(plan: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return what the server of one study answers."""
    from fedmed.distillation.network import build_network

    wanted = Plan.model_validate(PLAN | (plan or {}))
    answer = {
        "time": datetime.now(UTC).isoformat(),
        "site": "north",
        "versions": find_versions("fedmed", "flwr", "torch"),
        "study": {"id": wanted.study, "approval": wanted.approval},
        "plan": wanted.model_dump(mode="json"),
        "model_digest": build_network(wanted).digest(),
        "expected_mean": None,
        "expected_std": None,
        "round": 0,
        "rounds": wanted.rounds,
    }
    return answer | changes


class FakeFleet:
    """Stands in for :class:`client.supernode.fleet.Fleet`; says what it is told to."""

    def __init__(self, hello: dict[str, Any] | Exception, files: Path | None = None) -> None:
        self.answer, self.files = hello, files
        self.downloaded: list[str] = []
        self.collected: list[str] = []
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def hello(self) -> dict[str, Any]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def download_release(self, file: str, target: Path, max_bytes: int | None = None) -> None:
        assert self.files is not None
        self.downloaded.append(file)
        target.write_bytes((self.files / file).read_bytes())

    def report_collected(self, manifest_sha256: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.collected.append(manifest_sha256)


def connect_to(fleet: FakeFleet) -> Callable[[ClientConfig], FakeFleet]:
    return lambda config: fleet


def issue(folder: Path, authority: Path, *, names: tuple[str, ...] = ("127.0.0.1",), days: float = 365, age: float = 0):
    """Return a server's TLS settings with a certificate made ``age`` days ago."""
    made = datetime.now(UTC) - timedelta(days=age)
    Authority.load(authority).issue_server_certificate(folder, list(names), days=days, now=made)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


@contextlib.contextmanager
def serve(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run ``answer`` for every connection to a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(5)
                        answer(connection)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join(5)


def answer_tls(context: ssl.SSLContext, date: datetime | None = None) -> Callable[[socket.socket], None]:
    """Return an answer to one HTTP request over TLS, as uvicorn would date it."""

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            if secure.recv(4096):
                secure.sendall(make_head(date))

    return answer


def make_head(date: datetime | None) -> bytes:
    text = (date or datetime.now(UTC)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    return f"HTTP/1.1 404 Not Found\r\ndate: {text}\r\ncontent-length: 0\r\n\r\n".encode()

"""A hospital in this process: images of patients with names that must not get out, and its ClientApp asked directly."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import tests.support.federation  # noqa: F401  (registers the network "tiny")
from client.guard.guard import guard_messages
from client.guard.ledger import LEDGER_FILE
from client.site import app
from fedmed.config import Plan
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REQUEST, make_content
from fedmed.storage.audit import verify_audit
from fedmed.training.network import Network
from tests.data.conftest import write_csv, write_image
from tests.support.approval import approve_request

PATIENT = "PATIENT-ERIKA-MUSTERMANN"
FILE = "SCAN-OF-ERIKA"
CLASSES = ["a", "b", "c"]
POLICY: dict[str, Any] = {"suppression": {"k": 6, "k_row": 3}, "validation_tables": True, "min_images": 2}
PLAN = {
    "seed": 3,
    "rounds": 4,
    "classes": CLASSES,
    "image_size": 16,
    "augmentation": "flips",
    "model": {"name": "tiny"},
    "loss": {"ce": 1.0},
    "training": {"optimizer": {"lr": 0.05}, "batch_size": 8},
    "batch_norm": "average",
    "study": "skin",
    "approval": "EK 7/26",
    "run_id": "run1",
    "calibrate": True,
    "release": True,
    "student": {"model": {"name": "tiny", "width": 6}, "kind": "co_distillation", "rounds": 4},
}


def make_rows(counts: tuple[int, ...] = (40, 24, 6)) -> list[dict[str, object]]:
    """Two images a patient; all names hold the words that are looked for."""
    labels = [label for label, count in zip(CLASSES, counts, strict=True) for _ in range(count)]
    return [
        {"file": f"scans/{FILE}-{number:03d}.png", "label": label, "patient": f"{PATIENT}-{number // 2:03d}"}
        for number, label in enumerate(labels)
    ]


def _set_few_images(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with which a hospital trains with the few images that these tests have."""
    return {**settings, "policy": {"min_images": 2} | settings["policy"]} if "policy" in settings else settings


class HospitalSite:
    """A folder with images, a table and a client.yaml."""

    def __init__(self, folder: Path, rows: list[dict[str, object]] | None = None, **settings: Any) -> None:
        self.folder, self.images = folder, folder / "images"
        self.rows = make_rows() if rows is None else rows
        for number, row in enumerate(self.rows):
            write_image(self.images / str(row["file"]), number, (12, 12))
        if self.rows:
            write_csv(self.images / "labels.csv", self.rows)
        data = {
            "source": "image_table",
            "root": "images",
            "group_column": "patient",
            "classes": CLASSES,
            "image_size": 16,
            "cache_mib": 0,
        }
        self.settings: dict[str, Any] = {"name": "north", "server": "127.0.0.1:1", "device": "cpu", "data": data}
        self.settings |= _set_few_images({"policy": POLICY} | settings)
        self.file = folder / "client.yaml"
        self.file.write_text(yaml.safe_dump(self.settings))
        self.state = folder / "state"
        self.approves = True  # whatever plan it is asked about
        self.config = {"client-config": str(self.file)}
        self.plan = Plan.model_validate(PLAN)
        self.model = Network(self.plan).pack()

    def restart(self, **settings: Any) -> "HospitalSite":
        """Return the same hospital as another process sees it, perhaps with other settings."""
        other = object.__new__(HospitalSite)
        other.__dict__.update(self.__dict__)
        other.file = self.folder / f"client{len(list(self.folder.glob('client*.yaml')))}.yaml"
        other.file.write_text(yaml.safe_dump(self.settings | _set_few_images(settings)))
        other.config = {"client-config": str(other.file)}
        other.state = self.folder / settings.get("state_dir", self.state.name)
        return other

    def message(self, kind: str, model: bytes | None, values: dict[str, Any], artefact: bytes | None = None) -> Message:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        content = make_content(REQUEST, values, model=model, artefact=artefact)
        return Message(content, dst_node_id=1, message_type=kind)

    def send(self, message: Message) -> Message:
        if self.approves:
            approve_request(self.state, message)
        return app(message, Context(1, 1, self.config, RecordDict(), {}))

    def let_out(self, message: Message, answer: Callable[[Message, Context], Message]) -> Message:
        """Have the guard stand between a message and some answer."""
        approve_request(self.state, message)
        return guard_messages(message, Context(1, 1, self.config, RecordDict(), {}), answer)

    def ask(self, kind: str, model: bytes | None = None, plan: dict[str, Any] | None = None, **values: Any) -> Message:
        """Ask for something, with a few keys of the plan changed."""
        values["plan"] = PLAN | (plan or {})
        return self.send(self.message(kind, model, values))

    def compare(
        self, artefact: bytes | None, plan: dict[str, Any] | None = None, *, with_model: bool = True, **changes: Any
    ) -> Message:
        """Ask for a comparison of the model with an artefact."""
        values: dict[str, Any] = {
            "round": 1,
            "part": "test",
            "artefact_sha256": hashlib.sha256(artefact or b"").hexdigest(),
        } | changes
        values["plan"] = PLAN | (plan or {})
        return self.send(self.message(KINDS["release"].flower, self.model if with_model else None, values, artefact))

    def answered(self, slot: str, run: str = "run1") -> list[int]:
        """Return how often each request of a slot of the ledger was answered."""
        content = json.loads((self.state / "runs" / run / LEDGER_FILE).read_text())
        requests = content["slots"].get(slot, {"requests": {}})["requests"]
        return sorted((times for _, times in requests.values()), reverse=True)

    def audit(self) -> list[dict[str, Any]]:
        """Return the audit log's entries, after checking its chain."""
        file = self.state / "audit.jsonl"
        assert verify_audit(file).ok
        return [json.loads(line) for line in file.read_text().splitlines()]

    def exclusions(self) -> list[dict[str, Any]]:
        """Return what the audit log tells with each answer of who is left out."""
        return [entry["exclusions"] for entry in self.events("sent") if entry["exclusions"] is not None]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the fields of the entries of one kind."""
        return [entry["fields"] for entry in self.audit() if entry["event"] == name]

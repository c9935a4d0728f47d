"""A real hospital behind its guard, with images of HAM10000, asked by whoever holds the server."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.hospital.site_data import Site, open_site
from client.site import app
from fedmed.config import Plan
from fedmed.protocol.messages import REQUEST, make_content
from fedmed.training.network import Network
from tests.support.approval import approve_request

IMAGES = (
    Path(os.environ.get("FEDMED_DATA", Path(__file__).parents[3] / ".." / "shared" / "data")).resolve() / "ham10000"
)
needs_images = pytest.mark.skipif(not IMAGES.is_dir(), reason="FEDMED_DATA names no folder with HAM10000")
CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
PLAN: dict[str, Any] = {
    "seed": 3,
    "rounds": 8,
    "classes": CLASSES,
    "image_size": 32,
    "augmentation": "flips",
    "model": {"name": "mobilenet_v2"},
    "loss": {"ce": 1.0},
    "training": {"optimizer": {"lr": 0.02}, "batch_size": 32},
    "batch_norm": "average",
    "study": "skin",
    "approval": None,
    "run_id": "run1",
}


class AttackedHospital:
    """A site of HAM10000 with the default policy (k = 10, k_row = 5) in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        images: Path,
        site: str = "vienna_dias",
        keep: Callable[[dict[str, str]], bool] = lambda row: True,
        policy: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        data = folder / "data"
        data.mkdir(parents=True)
        with (images / "labels.csv").open() as table:
            self.rows = [row for row in csv.DictReader(table) if row["site"] == site and keep(row)]
        for row in self.rows:
            (data / row["file"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / row["file"], data / row["file"])
        with (data / "labels.csv").open("w", newline="") as table:
            writer = csv.DictWriter(table, self.rows[0].keys())
            writer.writeheader()
            writer.writerows(self.rows)
        source = {
            "source": "image_table",
            "root": "data",
            "file_column": "file",
            "label_column": "label",
            "group_column": "lesion_id",
            "attribute_columns": ["sex", "age_group"],
            "classes": CLASSES,
        }
        written = {"name": "north", "server": "127.0.0.1:1", "device": "cpu", "threads": 1, "data": source}
        written |= {"policy": {"study": "skin", **(policy or {})}, **settings}
        (folder / "client.yaml").write_text(yaml.safe_dump(written))
        self.folder, self.state = folder, folder / "state"
        self.approves = True  # whatever plan it is asked about
        self._node_config = {"client-config": str(folder / "client.yaml")}

    def ask(self, kind: str, model: bytes | None = None, plan: dict[str, Any] | None = None, **values: Any) -> Message:
        """Return the reply to a request with a plan that differs from :data:`PLAN` in some keys."""
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        values["plan"] = PLAN | (plan or {})
        message = Message(make_content(REQUEST, values, model=model), dst_node_id=1, message_type=kind)
        if self.approves:
            approve_request(self.state, message)
        return app(message, Context(1, 1, self._node_config, RecordDict(), {}))

    def site(self) -> Site:
        """Return the site as it sees itself, which no server does."""
        return open_site(self._node_config)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the entries of the audit log with a name."""
        lines = (self.state / "audit.jsonl").read_text().splitlines()
        return [entry["fields"] for entry in map(json.loads, lines) if entry["event"] == name]


def make_network(plan: dict[str, Any] | None = None) -> Network:
    """Return the network of a plan with its first values."""
    return Network(Plan.model_validate(PLAN | (plan or {})))

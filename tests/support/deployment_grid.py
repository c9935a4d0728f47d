"""A real federation without its processes: a server's run folder, hospitals in this process, the local grid."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from client.site import app as client_app
from fedmed.config import Plan
from fedmed.config.server import ServerConfig
from fedmed.storage.run_folder import RunFolder
from server.federation import run_federation
from tests.support.approval import approve
from tests.support.federation import Notes
from tests.support.local_grid import LocalGrid, Tamper

CLASSES = ["pattern_plain", "pattern_mesh", "pattern_globules"]
DATA = {"source": "phantom", "images_per_site": 40, "num_classes": 3, "image_size": 16}


class Hospitals:
    """A federation of hospitals; its server has no images."""

    def __init__(
        self, folder: Path, policy: dict[str, Any] | None = None, *, approves: bool = True, **settings: Any
    ) -> None:
        """Make their settings; unless told otherwise, people there approve the plan."""
        self.folder = folder
        self.names = ["site_01", "site_02"]
        values: dict[str, Any] = {
            "name": "test",
            "address": "127.0.0.1:1",
            "sites": self.names,
            "rounds": 1,
            "min_sites": 1,
            "round_deadline_s": 20,
            "require_better_than_chance": False,  # after so few rounds
            "classes": CLASSES,
            "model": {"name": "tiny"},
            "data": {"source": "sites", "image_size": 16, "synthetic": True},
            "training": {"optimizer": {"lr": 0.05}, "batch_size": 8},
        }
        self.config = ServerConfig.model_validate(values | settings)
        self.run = RunFolder.create(folder / "run", "resume")
        self.run.write_config(self.config)
        self.run.record_start()
        self.run.write_roster({number + 1: name for number, name in enumerate(self.names)})
        for name in self.names:
            client = {"name": name, "server": "127.0.0.1:1", "device": "cpu", "threads": 1, "data": DATA}
            allowed = {"min_images": 2} | (policy or {"suppression": {"k": 1, "k_row": 1}})
            client |= {"data_sites": 2, "data_site": name, "policy": allowed}
            (folder / name).mkdir()
            (folder / name / "client.yaml").write_text(yaml.safe_dump(client))
            if approves:
                approve(folder / name / "state", self.plan)
        self.listener = Notes()
        self.sent: list[tuple[str, str]] = []

    @property
    def plan(self) -> Plan:
        """The plan as the server sends it."""
        return self.config.make_plan().model_copy(update={"run_id": self.run.read_run_id()})

    def copy(self, folder: Path) -> "Hospitals":
        """Return the same federation in another folder, with all that it has done so far."""
        shutil.copytree(self.folder, folder)
        other: Hospitals = object.__new__(Hospitals)
        other.__dict__.update(self.__dict__)
        other.folder, other.run, other.listener = folder, RunFolder.open(folder / "run"), Notes()
        return other

    def approve_again(self) -> None:
        """Approve the plan anew at the sites, whose ledgers then stand as after the rounds."""
        for name in self.names:
            approve(self.state(name), self.plan, again=True, after_rounds=True)

    def change_client(self, name: str, **changes: Any) -> None:
        path = self.folder / name / "client.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    def state(self, name: str) -> Path:
        return self.folder / name / "state"

    def go(self, tamper: Tamper | None = None) -> LocalGrid:
        configs = {
            number + 1: {"client-config": str(self.folder / name / "client.yaml"), "site": name}
            for number, name in enumerate(self.names)
        }
        grid = LocalGrid(client_app, configs, tamper)
        run_federation(grid, self.run, self.listener)
        return grid

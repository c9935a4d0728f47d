"""A folder as the coordinating site releases it, which a test may then change and sign again."""

import functools
import hashlib
import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmed.config import Plan
from fedmed.export import write_model
from fedmed.export.artefact import ArtefactSettings, build_artefact
from fedmed.keys import sign
from fedmed.protocol.release import name_compared
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from fedmed.training.network import Network
from tests.client.support.kit import CLASSES, PLAN
from tests.report.support.example import make_content, make_site

RUN = "0123abcd"
HISTORY = [
    {
        "round": number,
        "loss": 1.0 / number,
        "learning_rate": 0.01,
        "wall_s": 2.0,
        "coverage_images": 1.0,
        "validation": {"pooled": {"balanced_accuracy": 0.5}, "sites": {}},
        "participation": [],
    }
    for number in (1, 2, 3, 4)
]


@functools.cache
def make_report() -> str:
    """Return the ``report.json`` of two sites, with the title ``all sites``."""
    pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (2, 2), (2, 0)]
    tables = {site: make_site(site, pairs, 3) for site in ("north", "south")}
    content = make_content(title="all sites", classes=tuple(CLASSES), validation=tables, test=tables, composition=None)
    return json.dumps(build_document(content))


@functools.cache
def build_deploy_form() -> Path:
    """Return a folder with the artefact of the plan; it is made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="fedmed-release-")) / "model"
    plan = Plan.model_validate(PLAN | {"run_id": RUN})
    build_artefact(Network(plan).model, ArtefactSettings(plan, 3, title="Federated model 'skin'"), folder)
    return folder


@functools.cache
def _draw(document: str) -> str:
    return render_page(json.loads(document))


def draw_once(document: Any) -> str:
    """Return the page of a report, which is drawn once a process; stands in for :func:`render_page`."""
    return _draw(json.dumps(document))


class Release:
    """A release, in train form, or with ``deploy`` in deploy form; the site ``south`` has compared it."""

    def __init__(self, folder: Path, key: Path, seed: int = 3, *, deploy: bool = False) -> None:
        self.folder, self._key = folder, key
        folder.mkdir(parents=True)
        plan = Plan.model_validate(PLAN | {"seed": seed, "run_id": RUN})
        if deploy:
            shutil.copytree(build_deploy_form(), folder / "run")
        else:
            (folder / "sent.safetensors").write_bytes(Network(plan).pack())
            write_model(folder / "run", folder / "sent.safetensors", plan, chosen_round=3)
        self.manifest: dict[str, Any] = json.loads((folder / "run" / "manifest.json").read_text())
        models = ("model.safetensors", *(("model.onnx", "proof.json") if deploy else ()))
        for name in models:
            (folder / "run" / name).rename(folder / name)
        (folder / "report.json").write_text(make_report())
        (folder / "history.json").write_text(json.dumps(HISTORY))
        self.names = (*models, "report.json", "history.json")
        self.manifest["sha256"] = {name: self.manifest["sha256"][name] for name in models}
        self.manifest["run_id"] = RUN
        self.manifest["released"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.manifest["model_sha256"] = self.manifest["sha256"]["model.safetensors"]
        self.list_files()
        self.compare()
        self.sign()

    def list_files(self) -> None:
        """Write into the manifest what lies in the folder now, as whoever has the key would."""
        self.manifest["files"] = {
            name: {"sha256": self.hash(name), "bytes": (self.folder / name).stat().st_size} for name in self.names
        }
        for name in self.manifest["sha256"]:
            self.manifest["sha256"][name] = self.hash(name)
        self.manifest["model_sha256"] = self.manifest["sha256"]["model.safetensors"]

    def compare(self, *sites: str) -> None:
        """Write into the manifest that these sites have compared what it says now."""
        told = {"sha256": name_compared(self.manifest), "num_images": 40, "max_abs_error": 1e-6}
        self.manifest["compared"] = dict.fromkeys(sites or ("south",), told)

    def sign(self, **changes: Any) -> str:
        """Write and sign the manifest, with changes, and return its hash."""
        data = json.dumps(self.manifest | changes, indent=2).encode()
        (self.folder / "manifest.json").write_bytes(data)
        (self.folder / "manifest.sig").write_text(sign(self._key, data))
        return self.sha256

    @property
    def sha256(self) -> str:
        return self.hash("manifest.json")

    def hash(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

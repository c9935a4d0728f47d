"""The whole mission: teacher at the sites, compression at the server, gate, export; simulated and as real processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmed.config.files import load_run_config
from fedmed.storage.audit import verify_audit
from tests.data.conftest import write_image
from tests.integration.support import apps
from tests.integration.support.deployment import ROOT, deploy
from tests.integration.test_simulation_command import finish
from tests.support.fopro import make_fopro

assert apps  # importing it registers the model "tiny"
MISSION = ROOT / "configs" / "mission.yaml"
SMALLER = [
    "rounds=2",
    "sites=3",
    "data.images_per_site=60",
    "data.image_size=32",
    "data.num_classes=3",
    "training.epochs_per_round=1",
    "fopro.teacher.image_size=32",
    "fopro.prompt.first_steps=2",
    "fopro.prompt.steps=1",
    "fopro.compression.every=1",
    "fopro.compression.explore_steps=2",
    "fopro.compression.steps=10",
    "fopro.compression.evaluate_every=5",
    "fopro.proxy.images=40",
    "fopro.compression.gate={balanced_accuracy: 1.0, worst_class_recall: 1.0, gap: 1.0}",
]


def test_settings_of_the_mission_are_read() -> None:
    config = load_run_config(MISSION)
    assert config.fopro is not None
    assert config.fopro.compression is not None
    assert config.fopro.compression.kind == "proxy"


@pytest.mark.slow
def test_smaller_mission_in_one_command(tmp_path: Path) -> None:
    """The released network is the small one: merged, proven, exported, and used by the program beside it."""
    run, model = tmp_path / "run", tmp_path / "model"
    done = finish("--config", MISSION, "--out", run, settings=SMALLER)
    assert done.returncode == 0, done.stderr
    decision = json.loads((run / "tables" / "compression.json").read_text())
    assert decision["status"] == "accepted"
    assert [line["round"] for line in decision["earlier"]] == [1]
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["compression"]["part"] == "test"
    assert set(report["compression"]["comparison"]["site"]) == {"site_01", "site_02", "site_03"}
    assert verify_audit(run / "audit.jsonl").ok
    command = [sys.executable, "-m", "fedmed.export", str(run), "--out", str(model), "--check"]
    exported = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["plan"]["model"]["name"] == "mobilenet_v2_erohprf"
    assert manifest["plan"]["fopro"] is None
    classify(model, tmp_path)


def classify(model: Path, folder: Path) -> None:
    """Use the exported network alone, as somebody would who has only its folder."""
    image, table = folder / "one.png", folder / "out.csv"
    write_image(image, 3, (40, 40))
    command = [sys.executable, "-m", "fedmed.predict", "--model", str(model), str(image), "--csv", str(table)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.slow
def test_mission_as_real_processes(tmp_path: Path) -> None:
    """A server and two hospitals: the small network is judged by both, compared in both forms, and comes home."""
    gate = {"balanced_accuracy": 1.0, "worst_class_recall": 1.0, "gap": 1.0}
    compression: dict[str, Any] = {
        "student": {"name": "tiny", "width": 6},
        "explore_steps": 2,
        "steps": 6,
        "evaluate_every": 3,
        "batch_size": 8,
        "gate": gate,
    }
    fopro = make_fopro() | {"compression": compression, "proxy": {"source": "phantom", "images": 30}}
    # As many images that some may be told: a gate without any accepts nothing.
    data = {"source": "phantom", "images_per_site": 240, "num_classes": 3, "image_size": 16}
    # The small network is judged by tables of the validation images, which a site has to allow.
    client = {"data": data, "policy": {"validation_tables": True}}
    settings = {"choice": "tables", "batch_norm": "recalibrate", "fopro": fopro}
    with deploy(tmp_path, client=client, artefact=True, **settings) as deployment:
        server, clients = deployment.start()
        assert server.wait(240) == 0, server.text() + clients[0].text()
        for client in clients:
            assert client.wait(60) == 0, client.text()
        run = deployment.run_folder
        decision = run.read_compression()
        assert decision is not None
        assert (decision["status"], decision["gate_sites"]) == ("accepted", deployment.names)
        told = json.loads((run.tables / "release.json").read_text())
        assert sorted(told["sites"]) == deployment.names
        for name in deployment.names:
            manifest = json.loads((deployment.kit / "kits" / name / "state" / "model" / "manifest.json").read_text())
            assert manifest["plan"]["model"] == {"name": "tiny", "width": 6}
            assert verify_audit(deployment.kit / "kits" / name / "state" / "audit.jsonl").ok

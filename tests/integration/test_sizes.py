"""Runs of the size that users start with. Minutes long: ``pytest -m slow``."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.integration.support.memory import watch_memory
from tests.integration.test_mission import MISSION, classify
from tests.integration.test_simulation_command import ROOT, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_measured(*arguments: str | Path, settings: list[str]) -> float:
    """Run the command to its end and return the peak memory of all its processes in MiB."""
    process = subprocess.Popen(
        command(*arguments, settings=settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    with watch_memory(process.pid) as peak:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    return peak.pss_mib


def test_default_run_learns_and_fits(tmp_path: Path) -> None:
    peak_mib = run_measured("--out", tmp_path / "run", settings=[])
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    # Five classes: chance is 0.2; a logistic regression on 16 x 16 pixels stays under 0.4
    # (tests/data/phantom/test_phantom.py).
    assert report["figures"]["balanced_accuracy"]["value"] >= 2.5 * 0.2
    assert peak_mib < 6 * 1024


def test_a_hundred_sites_on_two_cores(tmp_path: Path) -> None:
    settings = ["sites=100", "rounds=2", "benefit=false", "model.name=mobilenet_v2", "data.image_size=32"]
    peak_mib = run_measured("--out", tmp_path / "run", settings=settings)
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert len(report["sites"]) == 100
    assert report["rounds"] == 2
    assert peak_mib < 8 * 1024


def test_mission_as_it_is(tmp_path: Path) -> None:
    """Whatever the gate decides: the network that it lets pass is merged, proven, exported, and can be used."""
    run = tmp_path / "run"
    run_measured("--config", MISSION, "--out", run, settings=[])
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["figures"]["balanced_accuracy"]["interval"][0] > 0.2
    assert set(report["benefit"]) == set(report["sites"])
    assert {"age_band", "sex"} <= set(report["gaps"])
    decision = json.loads((run / "tables" / "compression.json").read_text())
    assert [line["round"] for line in decision["earlier"]] == [4]
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    released = {"accepted": "mobilenet_v2_erohprf", "rejected": "adsr_resnet18"}[decision["status"]]
    assert manifest["plan"]["model"]["name"] == released
    classify(run / "model", tmp_path)

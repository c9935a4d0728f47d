"""A run at the thresholds that hospitals have, 10 and 5: its page still says something, and says what it is about."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "rounds=2",
    "sites=4",
    "model.name=mobilenet_v2",
    "benefit=false",
    "data.image_size=32",
    "data.num_classes=4",
    "data.images_per_site=200",
    "ordinal=true",
    "suppression.k=10",
    "suppression.k_row=5",
    "suppression.k_bin=5",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantom sites with several images a patient; a class is too rare at some sites."""
    folder = tmp_path_factory.mktemp("thresholds") / "run"
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "simulations" / "run.py"), "--out", str(folder), *changes],
        capture_output=True, text=True, timeout=500, check=False, cwd=ROOT,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.ci
def test_page_names_the_thresholds_and_has_figures(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    assert {key: report["thresholds"][key] for key in ("k", "k_row", "k_bin")} == {"k": 10, "k_row": 5, "k_bin": 5}
    assert report["figures"]["balanced_accuracy"]["value"] is not None
    assert report["figures"]["accuracy"]["n"] > 100
    assert report["calibration"]["slopes"]["pooled"]["n"] > 0
    assert report["calibration"]["slopes"]["groups"] == {}  # by group no bins are told
    assert set(report["shift"]["sites"]) == set(report["sites"])
    page = html.unescape(re.sub(r"<[^>]+>", "", (run / "report" / "index.html").read_text()))
    assert re.search(r"fewer than\s+10", page)
    assert "Traceback" not in page
    assert " nan" not in page


@pytest.mark.ci
def test_every_withheld_figure_says_why(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    withheld = [
        figure
        for groups in report["groups"].values()
        for figures in groups.values()
        for figure in figures.values()
        if figure["value"] is None
    ]
    assert withheld
    assert all(figure["reason"] for figure in withheld)

"""``flower-client --site-report``: from the site's own images, with intervals over its patients, and nothing leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.app import main
from client.hospital.own_rows import encode_rows, read_outputs
from client.hospital.site_data import Hospital
from client.release.collect import ReleaseError, collect
from client.release.own_report import find_stored
from client.release.patient_intervals import use_patient_intervals
from client.release.site_report import write_site_report
from fedmed.config.client import ClientConfig
from fedmed.export import load_model
from fedmed.fairness.chance.patient_bootstrap import bootstrap_patients
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.metrics.site_tables import FEDERATED
from fedmed.report.document import build_document
from tests.client.support.kit import FakeFleet, make_kit
from tests.client.support.release import RUN, Release, draw_once
from tests.report.support.example import make_content


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("client.release.written_here.render_page", draw_once)


def read_report(config: ClientConfig) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(config.state_dir) / "report" / "report.json").read_text())
    return report


@pytest.mark.ci
def test_collected_model_is_run_on_the_images_of_now(tmp_path: Path) -> None:
    """Figures by hand from the model's answers; a site that missed the test gets them, too."""
    config = make_kit(tmp_path)
    (Path(config.state_dir) / "runs" / RUN).mkdir(parents=True)
    released = Release(tmp_path / "release", tmp_path / "coordinator" / "release.key", deploy=True)
    fleet = FakeFleet({}, released.folder)
    collect(config, fleet)
    assert read_report(config)["figures"]["accuracy"]["value"] is None
    downloaded = list(fleet.downloaded)
    page = write_site_report(config)
    report, test = read_report(config), Hospital(config).open_site().data.test
    assert report["figures"]["accuracy"]["n"] == len(test)
    stored = find_stored(Path(config.state_dir), RUN, released.manifest["model_sha256"])
    outputs = read_outputs(stored.with_suffix(".rows.json"))
    assert outputs is not None
    answers = outputs.logits.argmax(dim=1)
    assert report["figures"]["accuracy"]["value"] == pytest.approx(float((answers == test.labels).double().mean()))
    assert outputs.logits.std() > 0
    assert load_model(Path(config.state_dir) / "model") is not None
    assert len(set(outputs.patients)) == len(set(test.patients))
    assert not set(outputs.patients) & set(test.patients)  # numbers, no ids
    assert stored.with_suffix(".rows.json").stat().st_mode & 0o077 == 0
    assert "<h1>Stays here: the released model at north</h1>" in page.read_text()
    assert [record["round"] for record in report["history"]] == [1, 2, 3, 4]
    assert fleet.downloaded == downloaded  # nobody was asked
    write_site_report(config)
    assert read_report(config)["figures"] == report["figures"]


def test_without_a_model_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_kit(tmp_path)
    with pytest.raises(ReleaseError, match="Collect it first: flower-client --fetch-model"):
        write_site_report(config)
    path = next(tmp_path.rglob("client.yaml"), None)
    if path is not None:
        assert main(["--config", str(path), "--site-report"]) == 1
        assert "Collect it first" in capsys.readouterr().err


def test_intervals_are_those_over_patients(tmp_path: Path) -> None:
    """40 patients with 4 images, all answered alike; as independent images the interval would be half as long."""
    rng = np.random.default_rng(0)
    labels = torch.tensor(np.repeat(rng.integers(0, 2, 40), 4))
    right = np.repeat(rng.random(40) < 0.7, 4)
    logits = torch.zeros(160, 2, dtype=torch.float64)
    logits[torch.arange(160), torch.where(torch.tensor(right), labels, 1 - labels)] = 1.0
    patients = [f"ERIKA-{number // 4}" for number in range(160)]
    groups = {"site": ["north"] * 160, "sex": ["f"] * 80 + ["m"] * 80}
    tables = tell_everything({FEDERATED: logits}, labels, groups, patients)
    document = build_document(
        make_content(test={"north": tables}, validation={}, composition=None, single_sites=True, history=[])
    )
    before = document["figures"]["accuracy"]["interval"]
    path = tmp_path / "rows.json"
    path.write_bytes(encode_rows({FEDERATED: logits}, labels, groups, patients))
    path.chmod(0o600)
    assert "ERIKA" not in path.read_text()
    outputs = read_outputs(path)
    assert outputs is not None
    use_patient_intervals(document, "north", outputs, seed=0)
    after = document["figures"]["accuracy"]["interval"]
    assert before is not None
    assert after is not None
    assert after == bootstrap_patients(logits, labels, outputs.patients, 0)["accuracy"].interval
    assert after[1] - after[0] > 0.25  # 1.96 * 2 * root(.7 * .3 / 40) = .28
    women = bootstrap_patients(logits[:80], labels[:80], outputs.patients[:80], 0)
    assert document["groups"]["sex"]["f"]["balanced_accuracy"]["interval"] == women["balanced_accuracy"].interval
    assert document["sites"]["north"]["test"]["accuracy"]["interval"] == after
    assert "40 patients in the test, who have 160 images" in document["notes"][-1]


def test_rows_of_an_earlier_version_have_no_outputs(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"labels": [0], "predictions": {}, "groups": {}}))
    path.chmod(0o600)
    assert read_outputs(path) is None
    assert read_outputs(tmp_path / "none.json") is None

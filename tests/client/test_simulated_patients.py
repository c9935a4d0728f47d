"""What a simulated site's tables hold back is counted in patients, as at a hospital."""

from pathlib import Path

import pytest

from client.hospital import site_data
from client.hospital.site_data import open_site
from fedmed.config import FairnessConfig, RunConfig
from fedmed.data import prepare_data
from fedmed.storage.run_folder import RunFolder
from tests.client.support.kit import make_table


def test_few_patients_with_many_images_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 images in each class, of 3 patients each, every one of whom is in one part."""
    rows = [
        {"file": f"{number:03d}.png", "label": "ab"[number % 2], "patient": f"p{number % 2}{number // 20}"}
        for number in range(60)
    ]
    data = make_table(tmp_path / "images", rows, group_column="patient", label_column="label", file_column="file")
    values = {"data": data | {"table": "labels.csv", "partition": {"kind": "pooled"}}}
    run = RunFolder.create(tmp_path / "run", "again")
    config = RunConfig.model_validate(values | {"suppression": {"k": 4, "k_row": 2, "k_bin": 2}})
    prepare_data(config.data, config.sites, config.seed, run.splits)
    run.write_config(config)
    monkeypatch.setattr(site_data, "_sites", {})
    site = open_site({"run-dir": str(run.path), "site": "pooled", "cache-mib": 1.0})
    part = site.count_part("train", FairnessConfig())
    assert part.unit == "patients"
    assert len(site.data.train) > 10
    assert len(set(site.data.train.patients)) < 4
    assert part.plan.num_told == 0

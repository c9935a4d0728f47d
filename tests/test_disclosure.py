"""``python -m fedmed.disclosure``: what it says of a run's folder, and its exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmed.disclosure import main
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.site_tables import FEDERATED
from fedmed.seeding import make_rng


def make_run(folder: Path, sex: list[str]) -> Path:
    """Return a run whose only site tells everything about 60 images of class 0."""
    (folder / "tables/test").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    labels = torch.zeros(60, dtype=torch.int64)
    groups = {"site": ["north"] * 60, "sex": sex}
    logits = torch.from_numpy(make_rng(1, "logits").normal(size=(60, 2)))
    packed = pack_site_tables(tell_everything({FEDERATED: logits}, labels, groups))
    (folder / "tables/test/north.safetensors").write_bytes(packed)
    return folder


def test_rows_that_are_all_told_hide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Class 1 has no image and no row, so nothing follows about it."""
    run = make_run(tmp_path / "run", ["f"] * 30 + ["m"] * 30)
    assert main([str(run)]) == 0
    said = capsys.readouterr().out
    assert "north, test: 3 hidden rows, all keep their values (unit: images)" in said
    assert "HOLDS: 0 of 3 hidden rows" in said


def test_row_of_two_images_is_named_with_its_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A history tells the women and men of 60; two of unknown sex are left."""
    run = make_run(tmp_path / "run", ["f"] * 30 + ["m"] * 30)
    (run / "tables/test/north.safetensors").unlink()
    counts = {
        "site": {"north": {"n": [60, 0], "right": [30, 0]}},
        "sex": {
            "f": {"n": [30, 0], "right": [15, 0]},
            "m": {"n": [28, 0], "right": [14, 0]},
            "unknown": {"n": [0, 0], "right": [0, 0]},
        },
    }
    record = {"round": 1, "validation": {"counts": counts, "hidden": {"sex": []}}}
    (run / "history.jsonl").write_text(json.dumps(record) + "\n")
    assert main([str(run), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["holds"]
    (part,) = found["parts"]
    (one,) = part["exposed"]
    assert (one["groups"], one["class"], one["low"], one["high"]) == (["unknown"], 0, 2, 2)
    assert one["missing"] == [0, 1, 3, 4]
    assert main([str(run)]) == 1
    assert "sex: unknown in class 1 cannot be 0, 1, 3, 4 of 0 to 4; it is from 2 to 2" in capsys.readouterr().out


def test_what_cannot_be_tested_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("{}")
    assert main([str(tmp_path)]) == 1
    assert "there is nothing to test" in capsys.readouterr().err
    run = make_run(tmp_path / "run", ["f"] * 60)
    (run / "tables/test/north.safetensors").write_bytes(b"x")
    assert main([str(run)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--k-row", "no"])


def test_time_limit_of_nothing_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", np.where(np.arange(60) % 2, "f", "m").tolist())
    file = run / "tables/test/north.safetensors"
    labels, rng = torch.zeros(60, dtype=torch.int64), make_rng(1, "age")
    groups = {
        "site": ["north"] * 60,
        "sex": np.where(np.arange(60) % 2, "f", "m").tolist(),
        "age": rng.choice(["old", "young"], 60).tolist(),
    }
    logits = torch.from_numpy(rng.normal(size=(60, 2)))
    file.write_bytes(pack_site_tables(tell_everything({FEDERATED: logits}, labels, groups)))
    assert main([str(run), "--time-limit", "0"]) == 1
    assert "is not proven to keep 0 to 4" in capsys.readouterr().out

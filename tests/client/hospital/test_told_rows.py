"""What a site remembers of the rows that it has told."""

import json
from pathlib import Path

import pytest
import torch

from client.hospital import told_rows
from client.hospital.told_rows import count_part, read_told
from fedmed.config import FairnessConfig
from fedmed.data import ImagePart
from fedmed.errors import RunFolderError
from fedmed.fairness.disclosure.rows import Disclosure, ToldRows

LIMITS = Disclosure(k=6, k_row=3)


def make_part(names: list[str]) -> ImagePart:
    labels = [int(name[-1]) % 2 for name in names]
    return ImagePart(names, labels, {"sex": ["f" if int(name[-2]) % 2 else "m" for name in names]}, None)  # type: ignore[arg-type]


NAMES = [f"scan-{number:03d}" for number in range(40)]


def test_plan_is_made_once_for_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, record = make_part(NAMES), tmp_path / "told/test.json"
    first = count_part(part, "north", FairnessConfig(), LIMITS, record)
    monkeypatch.setattr(told_rows, "plan_disclosure", None)
    assert count_part(part, "north", FairnessConfig(), LIMITS, record) is first
    assert list(first.groups) == ["site", "sex"]


def test_record_is_private_and_comes_back(tmp_path: Path) -> None:
    record = tmp_path / "told/test.json"
    plan = count_part(make_part(NAMES), "north", FairnessConfig(), LIMITS, record).plan
    assert read_told(record) == plan.told
    assert len(plan.told.rows) == 2 + 4
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert "scan" not in record.read_text()
    before = record.read_bytes()
    count_part(make_part(NAMES), "north", FairnessConfig(), LIMITS, record)
    assert record.read_bytes() == before


def test_later_plan_knows_of_the_earlier_one(tmp_path: Path) -> None:
    record = tmp_path / "test.json"
    count_part(make_part(NAMES), "north", FairnessConfig(), LIMITS, record)
    later = count_part(make_part(NAMES[1:]), "north", FairnessConfig(), LIMITS, record).plan
    assert later.set_aside.sum() == 2  # with the image that is gone, the rows differ by three
    alone = count_part(make_part(NAMES[1:]), "north", FairnessConfig(), LIMITS, tmp_path / "other.json").plan
    assert not alone.set_aside.any()
    assert read_told(record).set_aside > read_told(tmp_path / "other.json").set_aside


def test_thresholds_of_one_leave_no_record(tmp_path: Path) -> None:
    counted = count_part(make_part(NAMES), "north", FairnessConfig(), Disclosure(), tmp_path / "test.json")
    assert counted.plan.is_complete
    assert not list(tmp_path.iterdir())
    assert read_told(tmp_path / "test.json") == ToldRows()


@pytest.mark.parametrize(
    "change", [{"images": []}, {"rows": 3}, {"classes": [[0]]}, {"set_aside": ["x"]}, {"rows": None}]
)
def test_damaged_record_is_an_error(tmp_path: Path, change: dict[str, object]) -> None:
    record = tmp_path / "test.json"
    count_part(make_part(NAMES), "north", FairnessConfig(), LIMITS, record)
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    with pytest.raises(RunFolderError, match=r"cannot be read .*No tables are sent without it"):
        count_part(make_part(NAMES), "north", FairnessConfig(), LIMITS, record)


def test_part_without_images(tmp_path: Path) -> None:
    part = ImagePart([], [], {"sex": []}, None)  # type: ignore[arg-type]
    counted = count_part(part, "north", FairnessConfig(), LIMITS, tmp_path / "test.json")
    assert counted.groups == {"site": (), "sex": ()}
    assert torch.equal(torch.from_numpy(counted.plan.set_aside), torch.zeros(0, dtype=torch.bool))

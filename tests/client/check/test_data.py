"""What ``flower-client --check`` says of images and labels."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.check.data import measure_pixels
from client.check.run import CheckResult, run_preflight, to_json
from client.hospital.hospital_images import load_hospital_data
from client.hospital.site_data import Hospital
from fedmed.config.client import ClientConfig
from fedmed.data import ImagePart
from tests.client.support.kit import (
    CLASSES,
    FakeFleet,
    connect_to,
    make_class_folders,
    make_hello,
    make_kit,
    make_table,
    serve,
)

PATIENT = "ERIKA-MUSTERMANN"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def check(config: ClientConfig, hello: dict[str, Any] | None = None, offline: bool = True) -> dict[str, CheckResult]:
    with serve(lambda connection: None) as port:
        config = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        fleet = connect_to(FakeFleet(hello or {}))
        return {one.name: one for one in run_preflight(config, connect=fleet, offline=offline and hello is None)}


def make_rows(number: int = 60) -> list[dict[str, object]]:
    return [
        {
            "file": f"{PATIENT}-{index:03d}.png",
            "label": CLASSES[index % 3],
            "patient": f"{PATIENT}-{index // 2}",
            "sex": ["f", "m", "", "m"][index % 4],
        }
        for index in range(number)
    ]


@pytest.fixture
def table(tmp_path: Path) -> ClientConfig:
    data = make_table(tmp_path / "images", make_rows(), group_column="patient", attribute_columns=["sex"])
    return make_kit(tmp_path, data, insecure=True)


def test_counts_of_images(table: ClientConfig) -> None:
    found = check(table)
    assert found["data"].status == "ok"
    assert found["data"].found.startswith("60 images: ")
    assert sum(int(word) for word in found["data"].found.split() if word.isdecimal()) == 60 + 60
    assert found["split"].found == "new: this site has not taken part yet"


def test_phantom(tmp_path: Path) -> None:
    found = check(make_kit(tmp_path, insecure=True))
    assert found["settings"].status == "warning"
    assert found["data"].found.startswith("40 images")
    assert found["attributes"].found.startswith("sex: ")


def test_few_unreadable_files_are_counted_and_listed(table: ClientConfig, tmp_path: Path) -> None:
    config = table.model_copy(update={"data": table.data.model_copy(update={"max_bad_share": 0.1})})
    root = tmp_path / "images"
    (root / f"{PATIENT}-003.png").write_bytes(b"")
    (root / f"{PATIENT}-004.png").unlink()
    (root / f"{PATIENT}-005.png").unlink()
    found = check(config)
    assert found["data"].status == "warning"
    assert "57 images" in found["data"].found
    assert "3 rows cannot be used: 2 x the file does not exist; 1 x the file cannot be decoded" in found["data"].found
    listed = tmp_path / "state" / "check" / "skipped_rows.csv"
    assert str(listed) in found["data"].advice
    assert len(listed.read_text().splitlines()) == 4
    assert listed.stat().st_mode & 0o777 == 0o600
    assert sorted((tmp_path / "state" / "check").iterdir()) == [listed]
    assert PATIENT not in to_json(list(found.values()))


def test_too_many_bad_rows_are_refused(table: ClientConfig, tmp_path: Path) -> None:
    for index in range(0, 9, 3):
        (tmp_path / "images" / f"{PATIENT}-{index:03d}.png").unlink()
    found = check(table)
    assert found["data"].status == "failed"
    assert "3 rows cannot be used: 3 x the file does not exist; allowed: 1.0%" in found["data"].found
    assert found["class counts"].found == "Not run, because 'data' failed."
    assert PATIENT not in to_json(list(found.values()))
    assert (tmp_path / "state" / "check" / "skipped_rows.csv").is_file()


def test_list_of_an_earlier_check_goes_when_all_is_well(table: ClientConfig, tmp_path: Path) -> None:
    picture = tmp_path / "images" / f"{PATIENT}-000.png"
    content = picture.read_bytes()
    picture.write_bytes(b"")
    check(table)
    picture.write_bytes(content)
    assert check(table)["data"].status == "ok"
    assert not (tmp_path / "state" / "check").exists()


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    config = make_kit(tmp_path, {"source": "class_folders", "root": str(tmp_path / "nowhere")}, insecure=True)
    found = check(config)["data"]
    assert found.status == "failed"
    assert "(data.root) does not exist" in found.found


def test_classes_in_another_order(tmp_path: Path) -> None:
    config = make_kit(tmp_path, make_class_folders(tmp_path / "i", dict.fromkeys(CLASSES, 8)), insecure=True)
    found = check(config, make_hello({"classes": CLASSES[::-1]}))
    assert found["classes"].status == "failed"
    assert found["classes"].advice == "Write in client.yaml, under data: classes: [other, malignant, benign]"
    assert found["training step"].found == "Not run, because 'classes' failed."
    assert found["leaves: description"].status == "skipped"


def test_other_classes(tmp_path: Path) -> None:
    counts = {"benign": 8, "malignnant": 8, "third": 8}
    config = make_kit(tmp_path, make_class_folders(tmp_path / "i", counts), insecure=True)
    found = check(config, make_hello())["classes"].found
    assert "not in the federation: 'malignnant' Did you mean 'malignant'?, 'third'" in found
    assert "without images here: 'malignant', 'other'" in found


def test_class_counts(tmp_path: Path) -> None:
    counts = {"benign": 30, "malignant": 20, "other": 2}
    config = make_kit(tmp_path, make_class_folders(tmp_path / "i", counts), insecure=True)
    found = check(config)["class counts"]
    assert found.status == "ok"
    assert "other 1/0/1" in found.found
    assert found.found.endswith("shown here only")
    assert "other" in found.advice.rpartition(":")[2]


def test_attributes(table: ClientConfig) -> None:
    found = check(table)["attributes"]
    assert found.found == "sex: m 30, f 15, unknown 15; unknown 25.0%; shown here only"
    assert found.status == "warning"
    data = table.data.model_copy(update={"attribute_columns": []})
    assert check(table.model_copy(update={"data": data}))["attributes"].found.startswith("none are named")
    data = table.data.model_copy(update={"attribute_columns": ["patient"]})
    ids = check(table.model_copy(update={"data": data}))["attributes"]
    assert "patient has 30 values" in ids.advice


def test_number_without_bands_fails_before_the_start(tmp_path: Path) -> None:
    """Without a plan nobody knows whether it will be compared; a plan that leaves it out may have it."""
    rows = [row | {"age": 20 + number} for number, row in enumerate(make_rows())]
    data = make_table(tmp_path / "aged", rows, group_column="patient", attribute_columns=["sex", "age"])
    config = make_kit(tmp_path, data, insecure=True)
    offline = check(config)["attributes"]
    assert offline.status == "warning"
    assert "'age' (data.attribute_columns) is a number without bands. Allowed: up to 10 different" in offline.advice
    asked = check(config, make_hello())["attributes"]
    assert asked.status == "failed"
    assert "bands: {age: [40, 60]}" in asked.advice
    assert "33" not in asked.found + asked.advice  # no patient's age
    spared = check(config, make_hello({"fairness": {"attributes": ["sex"]}}))["attributes"]
    assert spared.status == "warning"
    assert "without bands" not in spared.advice
    (tmp_path / "banded").mkdir()
    banded = make_kit(tmp_path / "banded", data | {"bands": {"age": [40, 60]}}, insecure=True)
    assert "age: <40 20, 40-59 20, >=60 20" in check(banded, make_hello())["attributes"].found


def test_groups(table: ClientConfig) -> None:
    """Under thresholds of 1 all rows are told; under high ones, nothing."""

    def with_limits(k: int, k_row: int) -> ClientConfig:
        limits = table.policy.suppression.model_copy(update={"k": k, "k_row": k_row})
        return table.model_copy(update={"policy": table.policy.model_copy(update={"suppression": limits})})

    told = check(with_limits(1, 1))["groups"]
    assert told.status == "ok"
    for part, text in zip(("validation", "test"), told.found.split(". "), strict=False):
        match = re.fullmatch(rf"{part}: site (\d+) of (\d+) rows; sex (\d) groups, (\d+) of (\d+) rows", text)
        assert match is not None
        assert match[1] == match[2] == "3"
        assert match[4] == match[5]
    nothing = check(with_limits(50, 5))["groups"]
    assert nothing.status == "warning"
    assert nothing.advice.startswith("Nothing would be told about: sex, site. ")
    assert "site 0 of 3 rows" in nothing.found


def test_attribute_that_is_an_id_fails(tmp_path: Path) -> None:
    rows = make_rows(120)
    for number, row in enumerate(rows):
        row["ward"] = f"{PATIENT}-{number}"
    data = make_table(tmp_path / "many", rows, group_column="patient", attribute_columns=["ward"])
    (tmp_path / "other").mkdir()
    found = check(make_kit(tmp_path / "other", data, insecure=True))
    assert found["groups"].status == "failed"
    assert "likely an id" in found["groups"].found
    assert PATIENT not in found["groups"].found


def test_withdrawn_patients(table: ClientConfig, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text(f"{PATIENT}-1\n{PATIENT}-7\nnobody\n")
    config = table.model_copy(update={"exclude": str(tmp_path / "out.txt")})
    found = check(config)
    left_out = found["withdrawn patients"]
    assert left_out.status == "warning"
    assert left_out.found.startswith("3 lines, 2 of them name images of this site; left out: ")
    assert sum(int(word) for word in left_out.found.partition("out: ")[2].split() if word.isdecimal()) == 4
    assert found["data"].found.startswith("56 images")
    assert PATIENT not in to_json(list(found.values()))


def test_who_is_left_out_beside_withdrawn_patients_is_counted(tmp_path: Path) -> None:
    """Where something was told: 9 further patients of the part; the check leaves the site's own state as it is."""
    rows = make_rows(240)
    (tmp_path / "out.txt").write_text("")
    table = make_kit(tmp_path, make_table(tmp_path / "images", rows, group_column="patient"), insecure=True)
    config = table.model_copy(update={"exclude": str(tmp_path / "out.txt")})
    told = Hospital(config)
    site = told.open_site()
    patient = next(row["patient"] for row in rows if row["file"] == site.data.train.items[0])
    (tmp_path / "state" / "told_rows").mkdir()
    (tmp_path / "out.txt").write_text(f"{patient}\n")
    before = (tmp_path / "state" / "left_out.json").read_bytes()
    found = check(config)["withdrawn patients"]
    own, _, further = found.found.partition("; and of others, so that nobody can be told apart: ")
    assert own.endswith("0 validation, 0 test")
    assert further.endswith("train, 0 validation, 0 test")
    assert int(further.split()[0]) >= 9
    assert (tmp_path / "state" / "left_out.json").read_bytes() == before


def test_withdrawn_patients_do_not_stand_for_others(table: ClientConfig, tmp_path: Path) -> None:
    """The replies are built from few images; when the first of them are withdrawn, others take their place."""
    (tmp_path / "out.txt").write_text("".join(f"{PATIENT}-{number}\n" for number in range(5)))
    config = table.model_copy(update={"exclude": str(tmp_path / "out.txt")})
    found = check(config, make_hello())
    assert found["leaves: update, none"].status == "ok"
    assert json.loads(found["leaves: description"].found.partition(": ")[2])["num_images"]["train"] > 0


def test_statistics_by_hand() -> None:
    """Half of the pictures 0 and half 255: mean 1/2, and x^2 has the mean 1/2, so the deviation is 1/2."""

    class Reader:
        def read(self, item: str) -> torch.Tensor:
            size = 4 if int(item) % 2 else 9  # the size of a picture must not weigh
            return torch.full((3, size, size), 255 * (int(item) % 2), dtype=torch.uint8)

    part = ImagePart([str(index) for index in range(10)], [0] * 10, {}, Reader())
    assert measure_pixels(part) == (0.5, 0.5, 10)
    mean, std, number = measure_pixels(part, most=5)  # 0, 2, 4, 6, 8: all black
    assert (mean, std, number) == (0.0, 0.0, 5)


def test_statistics_against_the_expected_range(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "i", dict.fromkeys(CLASSES, 8))
    for path in (tmp_path / "i").rglob("*.png"):
        Image.fromarray(np.full((8, 8, 3), 51, dtype=np.uint8)).save(path)
    config = make_kit(tmp_path, data, insecure=True)
    dark = check(config, make_hello(expected_mean=[0.4, 0.6], expected_std=[0.0, 0.3]))["image statistics"]
    assert dark.status == "warning"
    assert dark.found.startswith("mean 0.200, standard deviation 0.000")
    assert "the mean is outside 0.4 to 0.6" in dark.found
    assert "standard deviation is outside" not in dark.found
    good = check(config, make_hello(expected_mean=[0.1, 0.6]))["image statistics"]
    assert good.found.endswith("as expected")
    assert "states no range" in check(config, make_hello())["image statistics"].found


def test_split_of_before(table: ClientConfig, tmp_path: Path) -> None:
    load_hospital_data(table)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")}
    same = check(table)["split"]
    assert same.found == "the same images are for training, validation and test as before"
    changed = check(table.model_copy(update={"seed": 1}))["split"]
    assert changed.status == "failed"
    assert "(settings differ)" in changed.found
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")}
    assert {path: after[path] for path in before if path.is_file()} == {p: t for p, t in before.items() if p.is_file()}
    assert set(after) == set(before)

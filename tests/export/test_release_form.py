"""What a site says of a candidate, and how the sites' answers are pooled."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmed.errors import WireError
from fedmed.export.compare import FormComparison
from fedmed.export.release_form import (
    change_manifest,
    describe_comparison,
    describe_problem,
    find_breach,
    pool,
    read_answer,
)
from fedmed.fairness.disclosure.tables import Disclosure
from fedmed.protocol.messages import pack_files, unpack_files
from fedmed.protocol.reports import FormsCompared, FormsProblem, FormsReport
from fedmed.reparameterization import Comparison


def make(error: float = 1.23456e-7, agreeing: int = 9) -> FormComparison:
    """Ten images of two classes, one a tie."""
    one = Comparison("float32", error, 3.14159, 10, 1, agreeing, error / 4)
    return FormComparison(one, one, [[4, 0, 0, 1], [3, 1, 0, 1]])


def test_floats_are_rounded_up_to_two_digits() -> None:
    told = describe_comparison(make())
    assert (told.onnx.max_abs_error, told.onnx.largest_logit) == (1.3e-7, 3.2)
    assert describe_comparison(make(1e-4)).deploy.max_abs_error == 1e-4
    assert describe_comparison(make(1.0000001e-4)).deploy.max_abs_error == 1.1e-4
    assert describe_comparison(make(0.0)).deploy.max_abs_error == 0.0


def test_a_hospital_tells_powers_of_ten() -> None:
    """The largest logit is that of a single image. 2e-6 of a logit of 1000 is allowed, and no more is told then."""
    told = describe_comparison(make(), coarse=True).onnx
    assert (told.max_abs_error, told.largest_logit, told.max_probability_error) == (1e-6, 10.0, 1e-7)
    assert find_breach(read(to_json(describe_comparison(make(), coarse=True))), Disclosure(2, 2)) is None
    assert "powers of ten" in find_breach(make(), Disclosure(2, 2))
    large = Comparison("float32", 1.5e-3, 900.0, 10, 0, 10, 2e-5)
    told = describe_comparison(FormComparison(large, large, [[5, 0, 0, 0], [5, 0, 0, 0]]), coarse=True)
    assert (told.onnx.max_abs_error, told.onnx.largest_logit) == (2e-3, 1000.0)
    assert read(to_json(told)).failures() == []
    assert find_breach(read(to_json(told)), Disclosure(2, 2)) is None


@pytest.mark.parametrize("error", [1.1e-4, 5.0])
def test_of_forms_that_differ_a_hospital_tells_no_number(error: float) -> None:
    told = describe_comparison(make(error), coarse=True)
    assert told.onnx.max_abs_error is told.onnx.largest_logit is told.onnx.max_probability_error is None
    assert read(to_json(told)).failures()
    assert find_breach(read(to_json(told)), Disclosure(2, 2)) is None


def read(comparison: object, num_classes: int = 2) -> FormComparison | str:
    """Read the comparison in a report as it arrives."""
    told = FormsReport.read({"model_sha256": "0" * 64, "artefact_sha256": "0" * 64, "comparison": comparison})
    return read_answer(told.comparison, num_classes)


def to_json(told: FormsCompared | FormsProblem) -> object:
    return json.loads(json.dumps(told.to_values(), allow_nan=False))


def test_answer_comes_back_through_json() -> None:
    told = describe_comparison(make())
    found = read(to_json(told))
    assert describe_comparison(found) == told
    assert found.failures() == []
    bad = read(to_json(describe_comparison(make(math.inf))))
    assert len(bad.failures()) == 4  # a logit and a probability, of either form
    assert read(to_json(describe_problem("It is\nbroken." + "x" * 1000))).startswith("It is?broken.x")
    with pytest.raises(WireError, match="malformed: 2 classes, not 3"):
        read(to_json(told), 3)


def test_answer_of_a_version_without_probabilities_is_read() -> None:
    told = describe_comparison(make()).to_values()
    for form in ("deploy", "onnx"):
        del told[form]["max_probability_error"]
    found = read(told)
    assert isinstance(found, FormComparison)
    assert found.onnx.max_probability_error is None
    assert describe_comparison(found).to_values() == told


def malform(**changes: Any) -> dict[str, Any]:
    told = copy.deepcopy(describe_comparison(make()).to_values())
    for key, value in changes.items():
        form, _, name = key.partition("_of_")
        (told[name] if name else told)[form] = value
    return told


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"problem": 3},
        {"problem": "x", "more": 1},
        malform(more=1),
        malform(paired=[[4, 0, 0, 1]]),
        malform(paired=[[4, 0, 0, 1], [3, 1, 0]]),
        malform(paired=[[4, 0, 0, 1], [3, 1, 0, 2]]),
        malform(paired=[[4, 0, 0, 1], [3, 1, 0, True]]),
        malform(paired=[[4, 0, 0, 1], [6, -2, 0, 1]]),
        malform(max_abs_error_of_onnx="0"),
        malform(max_probability_error_of_deploy=-1e-9),
        malform(max_abs_error_of_onnx=-1.0),
        malform(max_abs_error_of_onnx=0),
        malform(max_abs_error_of_onnx=math.nan),
        malform(precision_of_onnx="float16"),
        malform(num_images_of_deploy=11),
        malform(num_agreeing_of_deploy=10),
        malform(num_ties_of_deploy=1.0),
        malform(secret_of_deploy=1),
    ],
)
def test_malformed_answer_is_refused(values: object) -> None:
    with pytest.raises(WireError, match="malformed"):
        read(values)


def test_small_numbers_do_not_leave() -> None:
    assert find_breach(read(to_json(describe_comparison(make(), coarse=True))), Disclosure(10, 5)) is None
    assert find_breach(read(to_json(describe_comparison(make(), coarse=True))), Disclosure(11, 5)) is not None
    assert find_breach(read(to_json(describe_comparison(make(), coarse=True))), Disclosure(10, 6)) is not None
    empty = Comparison("float32", 0.0, 0.0, 0, 0, 0)
    assert find_breach(FormComparison(empty, empty, [[0] * 4] * 2), Disclosure(10, 5)) is None


def test_pooled_answer_names_no_site() -> None:
    pooled = pool({"a": make(1e-7), "b": make(3e-7)})
    assert pooled["num_sites"] == 2
    assert pooled["num_images"] == pooled["onnx"]["num_images"] == 20
    assert pooled["onnx"]["max_abs_error"] == 3e-7
    assert pooled["paired"] == [[8, 0, 0, 2], [6, 2, 0, 2]]
    assert pool({}) == {"num_sites": 0, "num_images": 0}


def test_manifest_of_a_train_form_can_be_changed_and_has_no_card(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"sha256": {}, "form": "train"}')
    (folder / "model.safetensors").write_bytes(b"x")
    changed = change_manifest(folder, None, {"release": {"by": "Ada"}})
    assert json.loads((folder / "manifest.json").read_text()) == changed
    assert changed == {"sha256": {}, "form": "train", "release": {"by": "Ada"}}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["manifest.json", "model", "model.safetensors"]


def test_files_are_packed_with_known_names_and_sizes_only() -> None:
    files = {"a": b"1", "b": torch.arange(5).numpy().tobytes()}
    packed = pack_files(files)
    assert packed == pack_files(dict(reversed(files.items())))
    assert unpack_files(packed, {"a": 1, "b": 40}) == files
    for limits in ({"a": 1}, {"a": 1, "b": 40, "c": 1}, {"a": 1, "b": 39}):
        with pytest.raises(WireError):
            unpack_files(packed, limits)
    for data in (b"", b"garbage", packed[:-1]):
        with pytest.raises(WireError, match="cannot be read"):
            unpack_files(data, {"a": 1})

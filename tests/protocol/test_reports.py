"""What a site tells: read as it was written, and refused where it cannot be true."""

import json
import math
from typing import Any

import pytest

from fedmed.errors import WireError
from fedmed.protocol.reading import MessageForm
from fedmed.protocol.reports import (
    Declined,
    DistilReport,
    FormsReport,
    LocalReport,
    MissingModel,
    NormSumsReport,
    ScoreReport,
    SiteDescription,
    TemperatureReport,
    TrainReport,
)

SHA256 = "0" * 64
TRAINED = {"num_images": 5, "loss": 0.5, "learning_rate": 0.1, "train_s": 2.0}
FAIR = TRAINED | {"start_loss": 1.5, "group_losses": {"a": [2, 7.0], "b": [3, 10.0]}, "mas_weight": 0.5}
DESCRIPTION = {
    "site": "north",
    "num_images": {"train": 5, "validation": 2, "test": 0},
    "model_digest": "d",
    "teacher": {"name": "x", "source": "package", "sha256": SHA256, "image_size": 32},
    "versions": {"fedmed": "1", "flwr": "2", "torch": "3"},
    "class_counts": {"train": [3, 2], "validation": [1, 1], "test": [0, 0]},
    "attributes": ["sex"],
    "validation_scores": True,
    "show_alone": False,
    "synthetic": False,
    "thresholds": {"k": 10, "k_row": 5},
    "unit": "patients",
}
FORM = {
    "precision": "float32",
    "max_abs_error": 1e-7,
    "largest_logit": None,
    "num_images": 3,
    "num_ties": 1,
    "num_agreeing": 2,
}
COMPARED = {"deploy": FORM, "onnx": FORM, "paired": [[2, 0, 0, 0], [0, 0, 0, 1]]}
TESTED = {"model_sha256": SHA256, "artefact_sha256": SHA256}


@pytest.mark.parametrize(
    ("form", "values"),
    [
        (MissingModel, {"missing_model": True}),
        (SiteDescription, DESCRIPTION),
        (SiteDescription, DESCRIPTION | {"teacher": None, "class_counts": None}),
        (DistilReport, TRAINED),
        (TrainReport, TRAINED),
        (TrainReport, FAIR | {"ekd": 0.25, "prompt_bands": [1.0, None, 2.5]}),
        (Declined, {"declined": True}),
        (LocalReport, {"rounds_done": 2, "train_s": 1.5}),
        (LocalReport, {"rounds_done": 2, "train_s": 1.5, "loss": 0.5}),
        (ScoreReport, {"model_sha256": SHA256}),
        (ScoreReport, {"model_sha256": SHA256, "mismatch": None}),
        (ScoreReport, {"model_sha256": SHA256, "mismatch": 0.5}),
        (NormSumsReport, {"model_sha256": SHA256}),
        (TemperatureReport, {"model_sha256": SHA256, "n": 0}),
        (FormsReport, TESTED | {"comparison": COMPARED}),
        (FormsReport, TESTED | {"comparison": {"problem": "It is another."}, "artefact_sha256": None}),
    ],
)
def test_what_was_written_is_read_and_written_again(form: type[MessageForm], values: dict[str, Any]) -> None:
    """Whole numbers become floats where floats are meant, and nothing else changes: neither keys nor values."""
    found = form.read(json.loads(json.dumps(values)))
    assert found.to_values() == values
    assert form.fits(values)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e7, 10**400, "1", True])
def test_losses_that_cannot_be_are_refused(value: object) -> None:
    with pytest.raises(WireError, match=r"no number from 0 to 1e\+06\."):
        TrainReport.read(TRAINED | {"start_loss": value})
    with pytest.raises(WireError, match=r"The losses by group .* from 0 to 1e\+06 an image\."):
        TrainReport.read(TRAINED | {"group_losses": {"a": [2, value if value != 1e7 else 2e6 + 1]}})


@pytest.mark.parametrize(
    "value",
    [
        [1],
        {"": [1, 1.0]},
        {"unknown": [1, 1.0]},
        {"x" * 1000: [1, 1.0]},
        {"a": 1.0},
        {"a": [1.0, 1.0]},
        {"a": [1, None]},
        {"a": [0, 0.0]},
        {"a": [True, 1.0]},
        {"a": [3, 1.0], "b": [3, 1.0]},
        {str(i): [1, 1.0] for i in range(100_000)},
    ],
)
def test_group_losses_that_cannot_be_are_refused(value: object) -> None:
    with pytest.raises(WireError, match="losses by group"):
        TrainReport.read(TRAINED | {"group_losses": value})


def test_group_losses_are_read_as_they_were_told() -> None:
    told = TrainReport.read(TRAINED | {"group_losses": {"a": [2, 7.0], "b": [3, 10]}})
    assert told.group_losses == {"a": (2, 7.0), "b": (3, 10.0)}


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, 1e-13, math.nan, math.inf, 10**400, "0.5", True, [0.5]])
def test_a_divergence_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="'mas_weight'"):
        TrainReport.read(TRAINED | {"mas_weight": value})


@pytest.mark.parametrize("value", [[], [1.0] * 9, ["1"], [True], [-1.0], [0.0], [1e6], [math.inf], "1.0", [[1.0]]])
def test_bands_that_cannot_be_true_are_refused(value: object) -> None:
    with pytest.raises(WireError, match=r"'prompt_bands.*Allowed: 1 to 8 gains above 0"):
        TrainReport.read(TRAINED | {"prompt_bands": value})
    assert TrainReport.read(TRAINED | {"prompt_bands": [1, None, 2.5]}).prompt_bands == [1.0, None, 2.5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_images": None}, "Its numbers of images are missing or no plausible counts."),
        ({"num_images": {"train": 1, "validation": 1}}, "Its numbers of images"),
        ({"num_images": {"train": True, "validation": 1, "test": 1}}, "Its numbers of images"),
        ({"num_images": {"train": 10**9, "validation": 1, "test": 1}}, "Its numbers of images"),
        ({"thresholds": {"k": -1, "k_row": 1}}, "Its thresholds for small numbers are no plausible counts."),
        ({"validation_scores": 1}, "validation scores may leave"),
        ({"show_alone": None}, "may be shown alone"),
        ({"unit": "lesions"}, "The report's 'unit' is 'lesions', which it cannot be."),
        ({"attributes": ["x"] * 41}, "Its attributes are no list of at most 40 names."),
        ({"attributes": [""]}, "Its attributes are no list"),
        ({"class_counts": {"train": [1], "validation": [1]}}, "Its class counts do not have one plausible count"),
        ({"class_counts": {"train": [-1], "validation": [1], "test": [1]}}, "Its class counts"),
        ({"versions": "1.0"}, "It does not say which versions it runs."),
        ({"teacher": {"sha256": 1}}, "It does not say which teacher it has."),
        ({"site": 3}, "The report's 'site' is 3, which it cannot be."),
        ({"secret": 1}, "The report holds 'secret', which is not known here. Server and site must run the same"),
    ],
)
def test_a_description_that_cannot_be_true_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(WireError) as caught:
        SiteDescription.read(DESCRIPTION | changes)
    assert words in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(WireError, match=r"The report lacks 'loss'\. Server and site must run the same version"):
        TrainReport.read({key: value for key, value in TRAINED.items() if key != "loss"})


@pytest.mark.parametrize(
    "values", [{}, {"missing_model": False}, {"missing_model": True, "n": 1}, {"missing_model": 1}]
)
def test_only_the_very_answer_says_that_the_model_is_missing(values: dict[str, Any]) -> None:
    assert not MissingModel.fits(values)

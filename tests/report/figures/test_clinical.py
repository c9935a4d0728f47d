"""Alerts in the report: counted by hand, and shown."""

import dataclasses
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fedmed.clinical.scores import AlertScores
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from fedmed.report.reading import read_document
from fedmed.report.schema.json_schema import SCHEMA_FILE
from fedmed.storage.atomic_files import encode_json
from tests.report.support.example import make_content
from tests.report.support.page_parser import Page, resolve

POINT: dict[str, Any] = {
    "format": 1,
    "model_sha256": "0" * 64,
    "alert_classes": ["malignant"],
    "stated_sensitivity": 0.9,
    "cost_ratio": None,
    "prevalence": 0.1,
    "threshold": 0.0,
    "n_with": 40,
    "n_without": 60,
    "sensitivity": 0.925,
    "specificity": 0.6,
    "note": None,
    "sites": ["north", "south"],
}


def make_site(name: str, missed: tuple[int, int], patients: int = 1) -> SiteTables:
    """Return 30 malignant and 30 benign images of either sex, of which some of the malignant have no alert."""
    labels = torch.tensor([1] * 30 + [0] * 30 + [1] * 30 + [0] * 30)
    scores = np.where(labels.numpy() == 1, 2.0, -2.0)
    scores[: missed[0]] = scores[60 : 60 + missed[1]] = -1.0
    scores[30:36] = 1.0  # false alarms, of women
    sexes = ["female"] * 60 + ["male"] * 60
    logits = torch.stack([torch.zeros(120), torch.from_numpy(scores).float()], dim=1)
    groups = {"site": [name] * 120, "sex": sexes}
    owners = [f"{name} {place // patients}" for place in range(120)]
    return tell_everything({FEDERATED: logits}, labels, groups, owners, AlertScores(scores, 0.0, (1,)))


def describe(**changes: Any) -> dict[str, Any]:
    north, south = make_site("north", (6, 0)), make_site("south", (3, 3))
    values = {"test": {"north": north, "south": south}, "operating": POINT, "single_sites": True}
    return dict(build_document(make_content(**(values | changes))))


def test_figures_are_those_of_counting() -> None:
    part = describe()["clinical"]
    whole = part["whole"]
    assert (whole["n_with"], whole["n_without"], whole["alerts"]) == (120, 120, 120 - 12 + 12)
    assert whole["sensitivity"]["value"] == pytest.approx(108 / 120)
    assert whole["sensitivity"]["interval"] == pytest.approx(tuple(binomtest(108, 120).proportion_ci(method="wilson")))
    assert whole["specificity"]["value"] == pytest.approx(108 / 120)
    assert whole["ppv"]["value"] == pytest.approx(108 / 120)
    assert whole["ppv_stated"]["value"] == pytest.approx(0.09 / (0.09 + 0.1 * 0.9))
    assert whole["net_benefit"] == pytest.approx((108 - 12) / 240)  # at the odds 1
    low, high = whole["net_benefit_interval"]
    # Each image adds 1, -1 or 0: of 108, 12 and 120, with the variance 120 / 240 - 0.4^2.
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.34 / 240), rel=0.02)
    assert low < whole["net_benefit"] < high
    women, men = (part["groups"]["sex"][name] for name in ("female", "male"))
    assert women["by_class"]["malignant"]["missed"] == 9
    assert men["by_class"]["malignant"]["missed"] == 3
    assert men["specificity"]["value"] == 1
    assert part["sites"]["north"]["sensitivity"]["value"] == pytest.approx(54 / 60)


def test_several_images_of_a_patient_make_intervals_wider() -> None:
    one = describe()["clinical"]["whole"]["sensitivity"]
    tables = {name: make_site(name, (6, 0), patients=3) for name in ("north", "south")}
    three = describe(test=tables)["clinical"]["whole"]["sensitivity"]
    assert three["interval"][1] - three["interval"][0] > 1.3 * (one["interval"][1] - one["interval"][0])


def test_the_curve_is_there_and_meets_the_operating_point() -> None:
    part = describe()["clinical"]
    assert part["curve"]["value"][49] == pytest.approx(part["whole"]["net_benefit"], abs=1e-9)
    assert set(part["curves"]) == {"north", "south"}


def test_the_page_says_it_in_words_and_a_name_is_escaped() -> None:
    document = describe(classes=("benign", "<b>malignant"), operating=POINT | {"alert_classes": ["<b>malignant"]})
    page = render_page(document)  # type: ignore[arg-type]
    section = page[page.index('id="clinical"') :]
    assert "<b>malignant" not in page
    assert "of 100 images" in section.lower()
    assert "about 15 (8 to 26; 60 images)" in section
    assert "about 5 (1 to 14; 60 images)" in section
    assert read_document(encode_json(document).encode())["clinical"]["alert_classes"] == ["<b>malignant"]


def test_every_number_of_the_part_is_on_the_page_as_in_the_json() -> None:
    document = describe()
    page = Page(render_page(document))  # type: ignore[arg-type]
    shown = {pointer: text for pointer, text in page.numbers if pointer.startswith("/clinical/")}
    places = ["/whole", "/sites/north", "/sites/south", "/groups/sex/female", "/groups/sex/male"]
    keys = ["sensitivity", "specificity", "ppv", "npv", "ppv_stated", "npv_stated"]
    assert {f"/clinical{place}/{key}/value" for place in places for key in keys} <= set(shown)
    chosen_on = ("n_with", "n_without", "sensitivity", "specificity")
    assert {f"/clinical/validation/{key}" for key in chosen_on} <= set(shown)
    for pointer, text in shown.items():
        decimals = len(text.partition(".")[2])
        assert float(text) == pytest.approx(resolve(document, pointer), abs=0.5 * 10**-decimals + 1e-12), pointer
    assert "Net benefit over the threshold of the probability." in [own.get("aria-label") for _, own in page.tags]


def test_the_part_fits_the_schema_that_is_shipped() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_bytes()))
    for operating in (POINT, POINT | {"threshold": None, "note": "9 validation images"}):
        assert list(validator.iter_errors(json.loads(encode_json(describe(operating=operating))))) == []


def test_a_cost_ratio_and_no_stated_prevalence_are_said() -> None:
    point = POINT | {"stated_sensitivity": None, "cost_ratio": 4.0, "prevalence": None}
    text = Page(render_page(describe(operating=point))).text  # type: ignore[arg-type]
    assert "as the one that costs least if a missed image is worth 4.0 false alarms: on 40 images" in text
    assert "as stated for its use" not in text
    assert "at the stated prevalence" not in text


def test_without_alert_classes_there_is_no_part_and_without_a_threshold_its_reason() -> None:
    assert "clinical" not in describe(operating=None)
    note = "9 validation images"
    document = describe(operating=POINT | {"threshold": None, "note": note})
    assert "whole" not in document["clinical"]
    assert note in render_page(document)  # type: ignore[arg-type]


def test_groups_of_one_site_are_hidden_here_as_well() -> None:
    part = describe(single_sites=False, test={"north": make_site("north", (6, 0))})["clinical"]
    assert part["groups"]["sex"] == {}


def test_a_class_that_is_not_told_is_named() -> None:
    own = make_site("north", (6, 0))
    tables = own.models[FEDERATED]["site"]
    silent = dataclasses.replace(tables, alerts=tables.alerts * np.array([[[0], [1]]]))
    part = describe(test={"north": dataclasses.replace(own, models={FEDERATED: {"site": silent}})})["clinical"]
    assert part["whole"]["left_out"] == ["benign"]
    assert part["whole"]["specificity"]["value"] is None
    assert part["whole"]["sensitivity"]["value"] == pytest.approx(0.9)


def test_one_paragraph_an_attribute_says_what_is_missed_and_what_brackets_hold() -> None:
    text = Page(render_page(describe())).text  # type: ignore[arg-type]
    assert text.count("Sex. Of 100 images with malignant so many would have no alert and be missed: female about") == 1
    assert "In brackets: the 95 % interval, and the images that the number rests on." in text
    assert "dotted: the threshold that was chosen, with its point from the table." in text

"""The exact AUC beside the shown one: the same classes in both, and nothing where nobody holds all images."""

import re
from dataclasses import replace

import pytest

from fedmed.report.document import build_document
from fedmed.report.figures.pooled_auc import describe_pooled_auc
from fedmed.report.page import render_page
from fedmed.report.schema.figures import ClassFigure
from tests.report.support.example import make_content

RECORD = {"model_sha256": "00", "n": 10, "limit": 20_000}


def test_difference_is_exact_minus_shown_over_the_same_classes() -> None:
    content = make_content(pooled_auc={**RECORD, "by_class": [0.75, None]})
    document = build_document(content)
    entry = document["pooled_auc"]
    assert entry is not None
    shown = document["figures"]["auc"]["by_class"]["benign"]["value"]
    assert shown is not None
    assert entry["over_classes"] == ["benign"]
    assert entry["exact"] == 0.75
    assert entry["shown"] == shown
    assert entry["difference"] == pytest.approx(0.75 - shown)
    page = re.sub(r"<[^>]+>", "", render_page(document))
    assert f"Over all 10 test images at once the macro AUC is 0.750; the table has {shown:.3f}" in page
    assert "so without malignant" in page
    assert "The table rests on" not in page
    fewer = make_content(pooled_auc={**RECORD, "n": 30, "by_class": [0.75, None]})
    assert "The table rests on 10 of them" in re.sub(r"<[^>]+>", "", render_page(build_document(fewer)))


def test_too_many_images_are_said_and_a_federation_has_nothing() -> None:
    told = build_document(make_content(pooled_auc={**RECORD, "n": 30_000, "by_class": None}))
    assert told["pooled_auc"] is not None
    assert told["pooled_auc"]["difference"] is None
    assert "n/a (30,000 test images; above 20,000" in render_page(told)
    content = make_content()
    assert build_document(replace(content, pooled_auc=None))["pooled_auc"] is None
    assert "one person holds all images. Over" not in render_page(build_document(content))


def test_the_exact_area_of_a_class_that_is_held_back_is_held_back() -> None:
    content = make_content(pooled_auc={**RECORD, "by_class": [0.75, 0.9]})
    first, second = content.classes
    told: ClassFigure = {"value": 0.7, "interval": None}
    auc = build_document(content)["figures"]["auc"] | {
        "by_class": {first: told, second: {"value": None, "interval": None, "reason": "withheld"}}
    }
    entry = describe_pooled_auc(content, auc)
    assert entry is not None
    assert entry["by_class"][second] == {"exact": None, "shown": None, "difference": None}
    assert (entry["exact"], entry["shown"], entry["over_classes"]) == (0.75, 0.7, [first])

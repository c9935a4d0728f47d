"""Ordered classes on the page and in ``report.json``."""

import dataclasses

import numpy as np
import pytest

from fedmed.config import RunConfig
from fedmed.config.files import validate_settings
from fedmed.errors import ConfigError
from fedmed.fairness.figures.ordinal import ORDINAL_FIGURES
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.report.content import ReportContent
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from tests.report.support.example import make_content, make_site, make_tables

NORTH = [(0, 0)] * 6 + [(0, 2)] + [(1, 1)] * 5 + [(1, 0)] * 2 + [(2, 2)] * 6
SOUTH = [(0, 0)] * 3 + [(1, 1)] * 3 + [(2, 2)] * 2 + [(2, 1)]


def make_graded(**changes: object) -> ReportContent:
    ages = ["<40"] * 10 + [">=40"] * 10
    tables = {"site": make_tables("north", NORTH, 3), "age": make_tables("north", NORTH, 3, groups=ages)}
    sites = {"north": SiteTables({FEDERATED: tables}), "south": make_site("south", SOUTH, 3)}
    composition = {site: {"train": [9, 9, 9], "validation": [1, 1, 1], "test": [7, 7, 6]} for site in sites}
    return make_content(
        classes=("mild", "moderate", "severe"), test=sites, validation=sites, composition=composition, **changes
    )


def test_figures_of_the_whole_of_sites_and_of_groups() -> None:
    """Whole: 29 images, one is two steps off and three are one step off: 5 / 29."""
    document = build_document(make_graded(config={"name": "grades", "ordinal": True}, single_sites=True))
    whole = document["figures"]
    assert whole["mean_absolute_error"]["value"] == pytest.approx(5 / 29)
    assert whole["beyond_one_step"]["value"] == pytest.approx(1 / 29)
    assert whole["quadratic_kappa"]["interval"] is not None
    assert document["sites"]["south"]["test"]["mean_absolute_error"]["value"] == pytest.approx(1 / 9)
    assert document["groups"]["age"][">=40"]["beyond_one_step"]["value"] == 0
    page = render_page(document)
    section = page[page.index('<section id="ordinal"') :].partition("</section>")[0]
    assert "<bdi>mild</bdi> &lt; <bdi>moderate</bdi> &lt; <bdi>severe</bdi>" in section
    for row in ("All images", "<bdi>Site: south</bdi>", "<bdi>Age: &gt;=40</bdi>"):
        assert f'<th scope="row">{row}</th>' in section


def test_figures_over_fewer_classes_name_them_beside_the_pooled_ones() -> None:
    """At the south the two severe images are withheld: all 7 others are right; of 20 of both sites there, 3 are not."""
    content = make_graded(config={"name": "grades", "ordinal": True}, single_sites=True)
    south = make_tables("south", SOUTH[:6], 3)
    silent = dataclasses.replace(south, withheld=np.array([[0, 0, 1]]))
    test = {**content.test, "south": SiteTables({FEDERATED: {"site": silent}})}
    document = build_document(dataclasses.replace(content, test=test))
    figure = document["groups"]["site"]["south"]["mean_absolute_error"]
    assert (figure["value"], figure["over_classes"]) == (0, ["mild", "moderate"])
    # At the north 14 images are mild or moderate, one of them two steps off and two one step.
    assert document["sites"]["south"]["test"]["mean_absolute_error"]["pooled"] == pytest.approx(4 / 20)


def test_other_classes_have_none_of_it() -> None:
    document = build_document(make_graded())
    assert not set(ORDINAL_FIGURES) & set(document["figures"])
    assert 'id="ordinal"' not in render_page(document)


def test_order_must_be_given() -> None:
    data = {"source": "class_folders", "root": "."}
    with pytest.raises(ConfigError, match=r"'ordinal' is true, and 'data\.classes' does not say in which order"):
        validate_settings(RunConfig, {"ordinal": True, "data": data}, "grades.yaml")
    listed = {"ordinal": True, "data": data | {"classes": ["mild", "severe"]}}
    assert validate_settings(RunConfig, listed, "grades.yaml").ordinal

"""Slope and intercept of calibration in ``report.json`` and on the page."""

import copy

import pytest
import torch

from fedmed.fairness.figures.calibration_slope import fit_calibration_slope
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from fedmed.report.content import ReportContent
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from tests.report.support.example import make_content
from tests.report.support.fairness_example import make_fair_content


def draw_tables(site: str, scale: float, seed: int, by_sex: bool = False) -> EvaluationTables:
    """Return 200 images whose logits are ``scale`` times those that would be honest."""
    generator = torch.Generator().manual_seed(seed)
    z_NK = 2 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    labels = (torch.rand(200, generator=generator, dtype=torch.float64) < torch.softmax(z_NK, dim=1)[:, 1]).long()
    groups = ["f", "m"] * 100 if by_sex else [site] * 200
    return tables_from_logits(scale * z_NK, labels, groups)


@pytest.fixture(scope="module")
def content() -> ReportContent:
    north = {"site": draw_tables("north", 1.0, 0), "sex": draw_tables("north", 1.0, 0, by_sex=True)}
    south = {"site": draw_tables("south", 3.0, 1)}
    sites = {"north": SiteTables({FEDERATED: north}), "south": SiteTables({FEDERATED: south})}
    return make_content(test=sites, validation=sites, single_sites=True)


def test_the_site_that_is_too_sure_has_a_small_slope(content: ReportContent) -> None:
    slopes = build_document(content)["calibration"]["slopes"]
    honest, sure = slopes["sites"]["north"]["slope"], slopes["sites"]["south"]["slope"]
    assert honest is not None
    assert sure is not None
    assert honest["interval"][0] < 1 < honest["interval"][1]
    assert sure["interval"][1] < 0.8
    expected = fit_calibration_slope(content.test["south"].site).slope
    assert expected is not None
    assert sure["value"] == expected.value
    assert list(slopes["groups"]["sex"]) == ["f", "m"]
    assert slopes["pooled"]["n"] == 400


def test_page(content: ReportContent) -> None:
    document = build_document(content)
    page = render_page(document)
    assert "<h3>Slope and intercept</h3>" in page
    assert "Intercept at slope 1" in page
    before = copy.deepcopy(document)
    del before["calibration"]["slopes"]
    assert "<h3>Slope and intercept</h3>" not in render_page(before)


def test_groups_without_bins_are_left_out_and_a_site_says_why(content: ReportContent) -> None:
    """In the example all answers have one confidence."""
    document = build_document(make_content())
    south = document["calibration"]["slopes"]["sites"]["south"]
    assert (south["slope"], south["reason"]) == (None, "all images are in one bin")
    assert "n/a (all images are in one bin)" in render_page(document)


def test_calibration_of_compared_models_is_not_compared() -> None:
    document = build_document(make_fair_content())
    assert "without one" not in render_page(
        {**document, "calibration": {**document["calibration"], "temperature": None}}
    )
    temperature = {"temperature": 1.5, "n": 10, "nll_before": 1.0, "nll_after": 0.9, "sites": ["a"]}
    page = render_page({**document, "calibration": {**document["calibration"], "temperature": temperature}})
    assert any(set(entry["models"]) > {"federated"} for entry in document["benefit"].values())
    assert "only the federated model has a temperature" in page

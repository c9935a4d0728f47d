"""Sentences of the page that have to agree with its numbers."""

import re

import pytest

from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.report.document import build_document
from fedmed.report.drawing.markup import Numbers
from fedmed.report.page import render_page
from fedmed.report.sections.fairness_findings import list_findings
from tests.report.support.example import make_content, make_site, make_tables
from tests.report.support.fairness_example import make_fair_content
from tests.report.support.page_parser import Page

CLASSES = ("benign", "malignant", "unclear")


@pytest.fixture(scope="module")
def fair_document():
    return build_document(make_fair_content())


def _words(document) -> str:
    return Page(render_page(document)).text


def test_a_mean_names_the_classes_that_a_site_has_none_of():
    """South has no image of the third class: its balanced accuracy is over the other two."""
    north = make_site("north", [(true, true) for true in (0, 1, 2) for _ in range(4)], 3)
    south = make_site("south", [(true, true) for true in (0, 1) for _ in range(4)], 3)
    content = make_content(classes=CLASSES, composition=None, test={"north": north, "south": south}, validation={})
    numbers = Numbers(build_document(content))
    shown = Page(numbers.figure("sites", "south", "test", "balanced_accuracy")).text
    assert shown == "1.000 (over 2 of 3 classes, without unclear)"
    assert Page(numbers.figure("sites", "north", "test", "balanced_accuracy")).text == "1.000"


def test_the_largest_gap_of_one_class_names_the_class_and_both_sensitivities():
    """Of the second class all answers are right in one group, and a fifth in the other."""
    pairs = [(0, 0)] * 60 + [(1, 1)] * 60 + [(0, 0)] * 60 + [(1, 1)] * 12 + [(1, 0)] * 48
    tables = {
        "site": make_tables("north", pairs),
        "sex": make_tables("north", pairs, groups=["female"] * 120 + ["male"] * 120),
    }
    test = {"north": SiteTables({FEDERATED: tables})}
    document = build_document(make_content(test=test, validation={}, composition=None, single_sites=True))
    document["findings"]["sex"] |= {"figure": "class_sensitivity_gap", "flagged": True}
    words = _words(document)
    assert "Largest gap of one class, malignant, 0.800" in words
    assert "lowest for male at 0.200, highest for female at 1.000." in words
    assert "by sex (largest gap of one class, malignant, 0.800" in words


def test_a_gap_over_some_classes_shows_no_figures_of_groups_over_others(fair_document):
    """Their difference would not be the gap."""
    document = fair_document | {
        "gaps": fair_document["gaps"]
        | {
            "sex": fair_document["gaps"]["sex"]
            | {
                "gap_balanced_accuracy": fair_document["gaps"]["sex"]["gap_balanced_accuracy"]
                | {"over_classes": list(CLASSES[:2])}
            }
        }
    }
    for one, has_figure in ((fair_document, True), (document, False)):
        (sex,) = (found for found in list_findings(Numbers(one)) if found.get("name") == "Sex")
        assert [end["figure"] is not None for end in sex["ends"]] == [has_figure] * 2
    assert "Compared over the classes that all these groups have: without unclear. The figures" in _words(document)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_a_temperature_of_1_changed_nothing_and_no_before_is_shown(fair_document, temperature):
    record = {"temperature": temperature, "n": 100, "nll_before": 0.7, "nll_after": 0.7}
    document = fair_document | {"calibration": fair_document["calibration"] | {"temperature": record}}
    words = _words(document)
    is_one = temperature == 1
    assert ("1 makes the right answers to 100 validation images most likely" in words) == is_one
    assert ("before, the model was too sure of itself" in words) != is_one
    assert ("ECE before" in words) != is_one


def test_it_is_said_how_two_figures_of_benefit_differ(fair_document):
    benefit = {site: entry | {"disagree": True} for site, entry in fair_document["benefit"].items()}
    words = _words(fair_document | {"benefit": benefit})
    assert words.count("— only one of the two figures differs by more than chance, and the verdict rests on it") >= 1
    assert words.count("The two figures can differ, since balanced accuracy gives each class the same weight") == 1
    assert "The two figures can differ" not in _words(fair_document)


def test_crossings_are_folded_and_named_as_one(fair_document):
    page = render_page(fair_document)
    assert "<summary>Crossings of two attributes</summary>" in page
    assert "<bdi>Age band: &lt;50</bdi>" in page or "<bdi>Sex: female</bdi>" in page


def test_the_own_page_of_a_site_is_about_that_site():
    test = {"north": make_site("north", [(0, 0), (1, 1)])}
    document = build_document(make_content(test=test, validation=test, composition=None, history=[]))
    own = _words(document | {"command": "flower-client --fetch-model"})
    assert "1 site is on this page, and its images stay there" in own
    assert "The coordinating site released the model." in own
    assert "those of figures are; the others are made as follows. A 95 % interval" in own
    assert "who took part" not in own
    simulated = _words(document)
    assert "is on this page" not in simulated
    assert "nothing is released to anybody" in simulated


def test_one_image_is_one_image():
    tables = {"north": make_site("north", [(0, 0)] * 4 + [(1, 0)]), "south": make_site("south", [(0, 0)] * 4)}
    words = _words(build_document(make_content(test=tables, validation=tables)))
    assert "malignant (sensitivity 0.000, 1 image)" in words
    assert "1 images" not in words


def test_a_gap_of_none_has_no_lowest_and_no_highest_group():
    same = [(0, 0)] * 4 + [(1, 1)] * 4
    tables = {name: make_site(name, same) for name in ("north", "south")}
    page = render_page(build_document(make_content(test=tables, validation=tables)))
    (row,) = re.findall(r'<tr><th scope="row"><bdi>Site: gap in accuracy</bdi></th>.*?</tr>', page)
    assert re.findall(r"<td>(.*?)</td>", row)[-2:] == ["", ""]

"""The page's words on the federated model against other models of a site."""

import re

import numpy as np
import pytest

from fedmed.metrics.site_tables import FEDERATED, FINE_TUNED, LOCAL, PairedTables, SiteTables
from fedmed.report.figures.benefit import decide
from tests.report.support.example import make_content, make_site
from tests.report.support.page_parser import Page
from tests.report.test_page import write


def _compare(*classes, model=FINE_TUNED):
    """Return a site that compared one model; of each class (only the other right, only the federated, both)."""
    answer = make_site("north", [(0, 0), (0, 0), (1, 1), (1, 0)] * 3)
    cells = np.array([[[[0, other], [own, both]] for other, own, both in classes]], np.int64)
    return SiteTables(answer.models | {model: answer.models[FEDERATED]}, {model: {"site": PairedTables(("x",), cells)}})


def _read(directory, sites):
    content = make_content(validation={}, test=sites)
    document, text = write(directory, content)
    return document, Page(re.search(r'<section id="benefit".*?</section>', text, re.DOTALL).group()).text


def test_a_personalised_model_is_judged_on_both_figures(tmp_path):
    """Fine-tuned wins 18 of 100 images of one class and loses 1 of 4 of the other: clear in accuracy alone."""
    document, words = _read(
        tmp_path, {"north": _compare((18, 0, 82), (0, 1, 3)), "south": _compare((5, 4, 9), (3, 3, 4))}
    )
    accuracy, balanced = (
        document["benefit"]["north"]["differences"]["fine_tuned"][key] for key in ("accuracy", "balanced_accuracy")
    )
    assert accuracy["value"] == pytest.approx(-17 / 104)
    assert accuracy["family_p"] < 0.01
    assert balanced["verdict"] == "undecided"
    assert "the model does better than as it is released at 1 of 2 sites, worse at 0, undecided at 1." in words
    assert "personalising helps, by accuracy" in words


def test_a_verdict_on_a_personalised_model_needs_the_adjusted_p_value():
    one = {"value": -0.1, "interval": (-0.2, -0.01), "p_value": 0.04, "n": 50, "verdict": "worse", "reason": None}
    assert decide({"balanced_accuracy": one | {"family_p": 0.06}}) == ("undecided", "balanced_accuracy")
    assert decide({"balanced_accuracy": one | {"family_p": 0.045}}) == ("worse", "balanced_accuracy")


def test_too_few_patients_are_named_and_not_the_images(tmp_path):
    """100 images of four patients at one site, of as many patients as images at the other."""
    few, many = (_compare((22, 0, 28), (22, 0, 28), model=LOCAL) for _ in range(2))
    few.models[FEDERATED]["site"].patients[0] = [2, 0, 0, 1250]
    many.models[FEDERATED]["site"].patients[0] = [50, 0, 0, 50]
    document, words = _read(tmp_path, {"few": few, "many": many})
    assert document["benefit_summary"]["undecided"] == ["few"]
    assert document["benefit_summary"]["worse"] == ["many"]
    assert words.count("too few patients to tell, however many images they have") == 1
    assert words.index("few (balanced") < words.index("too few patients to tell") < words.index("An undecided site")

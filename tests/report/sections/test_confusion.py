"""Confusion matrices: what hospitals do not tell is no 0."""

import re
from dataclasses import replace

import numpy as np

from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from tests.report.support.example import make_content, make_tables
from tests.report.support.page_parser import Page

CLASSES = ("nevus", "melanoma", "vascular")
LIMITS = {"k": 10, "k_row": 5}


def _make_site(name: str, counts: list[list[int]], other: list[int]) -> SiteTables:
    pairs = [(row, column) for row, own in enumerate(counts) for column, n in enumerate(own) for _ in range(n)]
    tables = make_tables(name, pairs, len(counts))
    return SiteTables({FEDERATED: {"site": replace(tables, other_wrong=np.array([other]))}})


def _list_rows(page: str, anchor: str) -> list[list[str]]:
    """Return the text of the cells of the first matrix of a section."""
    section = re.search(rf'<section id="{anchor}".*?</section>', page, re.DOTALL).group()
    table = re.search(r"<tbody>(.*?)</tbody>", section, re.DOTALL).group(1)
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [[Page(cell).text.strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in rows]


def _draw(counts, other, thresholds):
    test = {name: _make_site(name, counts, other) for name in ("north", "south")}
    classes = CLASSES[: len(counts)]
    content = make_content(
        classes=classes, composition=None, test=test, validation={}, thresholds=thresholds, single_sites=False
    )
    return render_page(build_document(content))


def test_a_cell_that_is_not_told_has_a_dash_and_no_zero():
    page = _draw([[8, 2, 0], [0, 6, 0], [0, 0, 0]], [0, 2, 0], LIMITS)
    assert _list_rows(_draw([[0, 0, 0], [0, 6, 0], [0, 0, 1]], [3, 0, 0], LIMITS), "confusion")[0] == [
        "0 %0",  # that none is right is told
        "–",
        "–",
        "100 %6",
    ]
    nevus, melanoma, vascular = _list_rows(page, "confusion")
    assert nevus == ["80 %16", "20 %4", "0 %0", "0 %0"]  # all of its wrong answers are told
    assert melanoma == ["–", "75 %12", "–", "25 %4"]
    assert vascular == ["–"] * 4
    small = _list_rows(page, "confusion_sites")
    assert small[1:] == [["–", "6", "–", "2"], ["–"] * 4]
    words = Page(page).text
    assert "A dash is a number that the sites do not tell, which may be 0 or not." in words


def test_without_thresholds_a_zero_is_a_zero_and_no_class_without_images_has_shares():
    page = _draw([[8, 2, 0], [0, 6, 0], [0, 0, 0]], [0, 0, 0], {"k": 1, "k_row": 1})
    assert _list_rows(page, "confusion") == [["80 %16", "20 %4", "0 %0"], ["0 %0", "100 %12", "0 %0"], ["0", "0", "0"]]
    assert "A dash" not in Page(page).text


def test_of_two_classes_a_wrong_answer_is_the_other_one():
    page = _draw([[9, 0], [0, 6]], [1, 2], LIMITS)
    assert _list_rows(page, "confusion") == [["90 %18", "10 %2"], ["25 %4", "75 %12"]]

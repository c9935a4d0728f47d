"""Shift between sites in ``report.json`` and on the page."""

import pytest

from fedmed.report.document import build_document
from fedmed.report.figures.shift import describe_shift, find_range
from fedmed.report.page import render_page
from fedmed.storage.records import ShiftRecord
from tests.report.support.example import make_content


def make_record(distances: list[float], ratio: float = 1.0) -> ShiftRecord:
    numbers = {f"site{place}": value for place, value in enumerate(distances)}
    return {
        "round": 3,
        "source": "updates",
        "sites": {
            site: {"mean_shift": 0.1, "spread_ratio": ratio if site == "site0" else 1.0, "distance": value}
            for site, value in numbers.items()
        },
    }


def test_range_by_hand() -> None:
    """Median 3, absolute deviations 2, 1, 0, 1, 97: their median is 1."""
    usual = find_range(dict(zip("abcde", [1.0, 2.0, 3.0, 4.0, 100.0], strict=True)), "distance")
    assert usual == {"median": 3.0, "low": pytest.approx(3 - 4.4478), "high": pytest.approx(3 + 4.4478)}
    ratios = find_range(dict(zip("abcd", [0.5, 1.0, 1.0, 2.0], strict=True)), "spread_ratio")
    assert ratios["low"] == pytest.approx(1 / ratios["high"])


def test_the_site_that_lies_outside_is_named() -> None:
    document = build_document(make_content(shift=make_record([0.1, 0.12, 0.11, 0.13, 2.0])))
    shift = document["shift"]
    assert shift["outside"] == ["site4"]
    assert shift["sites"]["site4"]["outside"] == ["distance"]
    page = render_page(document)
    section = page[page.index('<section id="shift"') :].partition("</section>")[0]
    assert "<strong><bdi>site4</bdi></strong>" in section
    assert section.count('class="flag">outside') == 1
    assert section.count('<svg class="strip"') == 15


def test_few_sites_are_only_shown() -> None:
    document = build_document(make_content(shift=make_record([0.1, 0.1, 9.0])))
    assert document["shift"]["outside"] == []
    assert document["shift"]["by_chance"] is None
    assert "nobody can say what is usual" in render_page(document)


def test_chance_of_a_mark_falls_with_the_number_of_sites() -> None:
    """Nothing but normal numbers: with four sites the deviation is so uncertain that the rule often marks one."""
    chances = [describe_shift(make_content(shift=make_record([0.1] * number)))["by_chance"] for number in (4, 8, 40)]
    assert chances[0] > 0.5
    assert chances[0] > chances[1]


def test_without_statistics_there_is_no_section() -> None:
    document = build_document(make_content())
    assert document["shift"] is None
    assert 'id="shift"' not in render_page(document)
    before = dict(document)
    del before["shift"]
    assert 'id="shift"' not in render_page(before)

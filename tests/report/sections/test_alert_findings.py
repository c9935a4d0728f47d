"""An operating point that fails its aim or is of no use is said to, on the section and on the first page."""

from typing import Any

import pytest

from fedmed.report.page import render_page
from tests.report.figures.test_clinical import POINT, describe, make_site
from tests.report.support.page_parser import Page

FAILED = "The stated sensitivity of"
USELESS = "Alerts at this threshold are of no use by net benefit"
EVERYBODY = "Nearly every image raises an alert"


def read(missed: tuple[int, int] = (6, 0), **point: Any) -> str:
    tables = {"north": make_site("north", missed)}
    return Page(render_page(describe(test=tables, operating=POINT | point))).text  # type: ignore[arg-type]


def test_less_than_the_stated_sensitivity_is_said_where_it_lies_above_the_interval() -> None:
    # 44 of 60, with the interval .610 to .829.
    text = read((16, 0), stated_sensitivity=0.85)
    assert f"{FAILED} 0.850 was reached on validation images; on test images it is 0.733 (0.610 to 0.829): less" in text
    assert FAILED not in read((16, 0), stated_sensitivity=0.82)
    assert FAILED not in read((16, 0), stated_sensitivity=None, cost_ratio=2.0)


def test_alerts_that_do_no_better_than_everybody_or_nobody_are_of_no_use() -> None:
    # Half the images have the class. At the odds 1: (54 - 6) / 120 = .4 against 0.
    assert USELESS not in read()
    # At the odds exp(-4): .45 - .05 * .018 = .449 against .5 - .5 * .018 = .491.
    text = read(threshold=-4.0)
    assert f"{USELESS}: it is 0.449, that of an alert for every image 0.491 and that of none 0." in text
    # At the odds exp(3): .45 - .05 * 20.1 = -.554 against 0 of nobody.
    assert f"{USELESS}: it is -0.554" in read(threshold=3.0)


def test_an_alert_for_nearly_every_image_is_said() -> None:
    document = describe()
    assert EVERYBODY not in Page(render_page(document)).text  # type: ignore[arg-type]
    document["clinical"]["whole"]["specificity"] = {"value": 0.049, "interval": (0.03, 0.08)}
    text = Page(render_page(document)).text  # type: ignore[arg-type]
    assert f"{EVERYBODY}: of the images without such a class only a share of 0.049 has none." in text


@pytest.mark.parametrize("threshold", [0.0, -4.0])
def test_the_first_page_has_a_line_on_alerts(threshold: float) -> None:
    text = read(threshold=threshold)
    first = text[: text.index("Three figures that count")]
    assert "sensitivity 0.900 (0.799 to 0.953), specificity 0.900 (0.799 to 0.953)." in first
    assert (f"{USELESS}." in first) == (threshold < 0)


def test_the_first_page_says_that_no_operating_point_was_found_and_nothing_where_none_was_asked_for() -> None:
    assert "No operating point could be chosen" in read(threshold=None, note="9 validation images")
    document = describe(operating=None)
    assert "operating point" not in Page(render_page(document)).text.partition("Three figures that count")[0]  # type: ignore[arg-type]


def test_a_low_threshold_of_merged_bins_is_explained() -> None:
    said = "Sites told their scores in merged bins"
    assert said not in read()
    document = describe(thresholds={"k": 10, "k_row": 5})
    assert said in Page(render_page(document)).text  # type: ignore[arg-type]

"""The curves: small, self-contained SVG with the numbers in place."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np

from fedmed.report.drawing.markup import Numbers, format_number, make_pointer
from fedmed.report.drawing.plots import draw_loss, draw_reliability, draw_roc, draw_validation
from fedmed.report.sections.rounds import format_ranges


def _texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag == "text"]


def test_svg_is_well_formed_small_and_without_outside_references():
    for svg in (
        draw_loss([1, 2, 3], [1.0, None, 0.5], 2),
        draw_validation([1, 2], [0.1, 0.2], [[0.1, 0.2], [None, 0.3]], "Accuracy", 1),
        draw_roc([(9, [0.0, 0.5, 1.0], [0.0, 0.9, 1.0])]),
        draw_reliability([0] * 14 + [3], [None] * 14 + [0.98], [None] * 14 + [1.0]),
    ):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert "http" not in svg
        assert "#0" not in svg  # every colour is a variable of the page
        assert "<style" not in svg
        assert len(svg) < 30_000


def test_tick_labels_are_not_rounded():
    # steps of 0.00025: shortening the numbers of paths must leave text alone
    assert "0.22125" in _texts(draw_loss([1, 2], [0.2210, 0.2230], 1))


def test_many_sites_become_a_band():
    rounds, values = [1, 2, 3], [[0.1 * site, 0.2, 0.3] for site in range(9)]
    few = draw_validation(rounds, [0.5] * 3, values, "Accuracy", 1)
    many = draw_validation(rounds, [0.5] * 3, values * 20, "Accuracy", 1)
    assert "var(--range)" not in few
    assert "var(--range)" in many
    assert len(many) < len(few)


def test_a_round_without_any_site_leaves_a_gap():
    assert draw_validation([1, 2], [None, 0.2], [[None, 0.2]] * 20, "Accuracy", 1)


def test_a_users_matplotlib_settings_do_not_matter():
    expected = draw_loss([1, 2], [1.0, 0.5], 1)
    with mpl.rc_context({"font.size": 30, "lines.linestyle": ":", "text.usetex": True}):
        assert draw_loss([1, 2], [1.0, 0.5], 1) == expected


def test_a_curve_lies_where_its_numbers_say():
    # the ROC of guessing is the diagonal that is drawn anyway
    svg = draw_roc([(0, [0.0, 1.0], [0.0, 1.0])])
    (guessing,) = re.findall(r'd="([^"]*)"[^>]*stroke: var\(--c0\)', svg)
    (diagonal,) = re.findall(r'd="([^"]*)"[^>]*stroke-dasharray[^>]*stroke: var\(--muted\)', svg)
    assert guessing == diagonal


def test_ranges():
    assert format_ranges([]) == ""
    assert format_ranges([4]) == "4"
    assert format_ranges([1, 3, 4, 5, 8, 9]) == "1, 3 to 5, 8 to 9"


def test_numbers_are_shown_with_pointer_and_decimals():
    numbers = Numbers({"a/b~": {"value": 0.12345, "interval": [0.1, 0.2]}, "n": 12345})
    assert make_pointer("a/b~", 0, "value") == "/a~1b~0/0/value"
    assert numbers.figure("a/b~") == '<span class="num" data-key="/a~1b~0/value">0.123</span>'
    assert numbers.show("n") == '<span class="num" data-key="/n">12,345</span>'
    assert format_number(-0.5) == "-0.500"
    assert 'x="10.0"' in numbers.strip("a/b~")
    assert 'width="10.0"' in numbers.strip("a/b~")
    assert np.isclose(float(re.search(r'class="tick" x="([\d.]+)"', numbers.strip("a/b~")).group(1)), 11.6, atol=0.1)

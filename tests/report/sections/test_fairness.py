"""The page's sentences, tables and plots on fairness, benefit and calibration."""

import itertools
import re

import numpy as np
import pytest

from fedmed.fairness.figures.rates import Rates, rate_gaps
from fedmed.report.drawing.fairness_plots import draw_course, draw_front
from fedmed.report.drawing.forest import ForestRow, make_axis, render_forest
from fedmed.report.drawing.small_reliability import draw_small_reliability
from fedmed.report.drawing.wording import EXPLANATIONS, LABELS
from tests.report.support.example import make_content, make_record, make_site
from tests.report.support.fairness_example import draw_site, make_fair_content, make_sites, only_federated
from tests.report.support.page_parser import Page
from tests.report.test_page import HOSTILE, check_numbers, write


def _section(text, anchor):
    return Page(re.search(rf'<section id="{anchor}".*?</section>', text, re.DOTALL).group())


def test_every_number_of_the_page_is_the_one_in_the_json(fair_report):
    _, document, text = fair_report
    page = Page(text)
    check_numbers(document, page)
    shown = {pointer for pointer, _ in page.numbers}
    assert {f"/groups/sex/{group}/brier/value" for group in ("female", "male", "unknown")} <= shown
    assert {f"/gaps/sex/{key}/value" for key in document["gaps"]["sex"]} <= shown
    assert {f"/benefit/{site}/differences/local/balanced_accuracy/value" for site in document["sites"]} <= shown
    assert "/calibration/groups/age_band/60+/before/ece/value" in shown


def test_fairness_in_sentences(fair_report):
    _, document, text = fair_report
    words = _section(text, "fairness").text
    gap = document["gaps"]["sex"]["gap_balanced_accuracy"]
    low, high = (document["groups"]["sex"][sex]["balanced_accuracy"]["value"] for sex in ("male", "female"))
    assert (
        f"Sex: flagged. Gap in balanced accuracy {gap['value']:.3f}, 95 % interval {gap['interval'][0]:.3f} to "
        f"{gap['interval'][1]:.3f} (expected from chance and case mix: about {gap['chance']:.3f}; adjusted "
        f"p = {gap['family_p']:.3f}, flagged up to {gap['limit']:.3f}); "
        f"lowest for male at {low:.3f} on 375 images, highest for female at {high:.3f} on 375 images." in words
    )
    assert "Age band: not flagged. Gap in balanced accuracy" in words
    assert words.index("Sex: flagged") < words.index("Site: not flagged")
    assert "Alarm in round 7: a figure fell. Balanced accuracy of male (sex) fell from 0.550" in words
    summary = Page("".join(re.findall(r'<p class="summary">.*?</p>', text, re.DOTALL))).text
    assert f"differs by more than chance explains, by sex (gap in balanced accuracy {gap['value']:.3f}" in summary
    assert "the federated model is worse at 1 of 4 sites (north), better at 1 and undecided at 2." in summary


def test_benefit_names_the_worse_sites_first(fair_report):
    _, document, text = fair_report
    words = _section(text, "benefit").text
    own = document["benefit"]["north"]
    difference = own["differences"]["local"]["balanced_accuracy"]
    values = [own["models"][model]["balanced_accuracy"]["value"] for model in ("federated", "local")]
    assert (
        f"worse than the site's own model at 1 site: north (balanced accuracy {values[0]:.3f} against {values[1]:.3f} "
        f"for local-only, difference {difference['value']:+.3f}, 95 % interval {difference['interval'][0]:+.3f} to "
        f"{difference['interval'][1]:+.3f}; accuracy " in words
    )
    by_class = own["images_by_class"]
    counted = ", ".join(f"{name} {number}" for name, number in by_class.items())
    assert f"; 252 images, by class {counted})" in words
    assert sum(by_class.values()) == 252
    pooled = document["benefit_pooled"]["accuracy"]
    assert f"accuracy {pooled['value']:+.3f} (95 % interval {pooled['interval'][0]:+.3f}" in words
    assert words.index("worse than the site's own") < words.index("better than the site's own")
    assert "Personalised by fine-tuning at the site, the model does better" in words
    for name in ("Federated", "BatchNorm-personalised", "Fine-tuned", "Local-only"):
        assert f" {name} " in words


def test_calibration_before_and_after_in_words(fair_report):
    _, document, text = fair_report
    words = _section(text, "calibration").text
    before, after = (document["calibration"][form]["ece"]["value"] for form in ("before", "after"))
    assert "divided by a temperature of 1.600, fitted on 400 validation images; before, the model was too sure" in words
    assert f"(ECE) is {before:.3f} (" in words
    assert f") before and {after:.3f} (" in words
    labels = [a.get("aria-label", "") for tag, a in Page(text).tags if tag == "svg"]
    assert sum(label.startswith("Reliability, ") for label in labels) == 10  # 3 ages, 3 sexes, 4 sites


def test_plots_over_the_rounds_have_a_key_of_symbols(fair_report):
    _, _, text = fair_report
    page = _section(text, "groups")
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    assert labels == [
        "Gap in balanced accuracy between groups over the rounds, one line for each attribute.",
        "Balanced accuracy by age band over the rounds, one line for each group.",
        "Balanced accuracy by sex over the rounds, one line for each group.",
    ]
    assert "● site" in page.text.replace("●site", "● site")


def test_the_page_is_accessible(fair_report):
    _, _, text = fair_report
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
    scrolled = [a for tag, a in page.tags if tag == "div" and (a.get("class") or "").startswith("scroll")]
    assert all(a["tabindex"] == "0" for a in scrolled)


def test_hidden_and_withheld_groups_are_named(tmp_path):
    sites = make_sites() | {"isle": draw_site("isle", {("female", "0-39"): 30, ("diverse", "0-39"): 30})}
    sites["east"].models["federated"]["sex"].withheld[0, 2] = 1
    content = make_fair_content(
        test=sites,
        validation={},
        single_sites=False,
        thresholds={"k": 10, "k_row": 5},
        benefit_notes={"ost": "no disk"},
    )
    document, text = write(tmp_path, content)
    page = Page(text)
    check_numbers(document, page)
    words = page.text
    assert "sex “diverse”" in words
    assert "1 row (a class of a group at a site) of 1 group" in words
    assert "fewer than 10 patients or images are in the group or fewer than 5 in the class" in words
    assert dict(page.numbers)["/groups/sex/diverse/balanced_accuracy/value"] == "n/a (rests on one site)"
    assert "There is no comparison of 1 site: ost (no disk)." in words
    assert "No alarm was raised" not in words


def test_the_report_of_a_run_that_goes_on(tmp_path):
    content = make_fair_content(test={}, temperature=None)
    document, text = write(tmp_path, content)
    page = Page(text)
    check_numbers(document, page)
    assert "The run is still going on. Round 9 is the last one that is done" in page.text
    assert "Groups are compared on the validation images." in page.text
    assert "Sex: flagged." in page.text
    assert 'id="benefit"' not in text
    assert "No temperature was fitted" in page.text
    assert dict(page.numbers)["/groups/site/north/balanced_accuracy/value"] != "n/a"


def test_names_of_groups_from_outside_stay_text(tmp_path):
    answer = draw_site(HOSTILE, {(HOSTILE, "0-39"): 12, ("male", "60+"): 12})
    tables = {
        model: {(HOSTILE if name == "sex" else name): own for name, own in by_attribute.items()}
        for model, by_attribute in answer.models.items()
    }
    hostile = type(answer)(tables, answer.paired)
    record = make_record(1, {HOSTILE: "accepted"})
    record["validation"] |= {
        "groups": {HOSTILE: {HOSTILE: {"balanced_accuracy": 0.5, "n": 3}}},
        "gaps": {HOSTILE: {"gap_balanced_accuracy": 0.1}},
    }
    record["alarms"] = [{"kind": HOSTILE, "attribute": HOSTILE, "group": HOSTILE, "text": HOSTILE}]
    content = make_fair_content(
        test={HOSTILE: hostile}, validation={}, history=[record, record | {"round": 2}], benefit_notes={"x": HOSTILE}
    )
    document, text = write(tmp_path, content)
    page = Page(text)
    check_numbers(document, page)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_many_groups_are_folded(tmp_path):
    sizes = {("female", f"{index:02d}"): 12 for index in range(14)}
    sites = only_federated({"north": draw_site("north", sizes)})
    _, text = write(tmp_path, make_fair_content(test=sites, validation={}, history=[]))
    assert "The other 2 groups" in text
    forest, crossings, *_ = re.findall(r'<table class="forest">.*?</table>', text, re.DOTALL)
    # the site, one sex, and 12 of the ages; folded away 12 of the crossing
    assert forest.count('<th scope="row">') == 1 + 1 + 12
    assert crossings.count('<th scope="row">') == 12
    assert "<details><summary>Crossings of two attributes</summary>" in text


def test_without_attributes_the_sites_are_compared(tmp_path):
    document, text = write(tmp_path, make_content())
    assert "Site: not flagged." in _section(text, "fairness").text
    assert set(document["gaps"]) == {"site"}
    _, text = write(tmp_path, make_content(test={"north": make_site("north", [(0, 0), (1, 1)])}))
    assert "Site: not compared" in _section(text, "fairness").text


def test_every_figure_has_a_name_and_an_explanation(fair_report):
    _, document, text = fair_report
    for key in {*document["figures"], *document["gaps"]["sex"]}:
        assert key in LABELS, key
        assert key in EXPLANATIONS, key
    words = _section(text, "reading").text
    assert "Equalised odds difference (lower is better)" in words


def test_axis_has_round_ends_around_all_values():
    figures = [{"value": 0.62, "interval": [0.57, 0.71]}, {"value": None, "interval": None}, None]
    axis = make_axis(figures, 0.6)
    assert (axis.low, axis.high, axis.step) == (pytest.approx(0.55), pytest.approx(0.75), 0.05)
    assert axis.place(0.65) == pytest.approx(50)
    assert axis.place(2.0) == 100
    signed = make_axis([{"value": -0.1, "interval": [-0.25, 0.05]}], 0.0)
    assert signed.ticks == pytest.approx([-0.3, -0.2, -0.1, 0.0, 0.1])
    assert make_axis([], None).high == 1.0


def test_dots_and_intervals_lie_where_the_numbers_say():
    rows = [
        ForestRow("a", ["1"], {"value": 0.5, "interval": [0.25, 1.0]}),
        ForestRow("b", ["2"], {"value": 0.0, "interval": None}),
    ]
    table = render_forest("caption", ["Name", "Cell", "Drawn"], [("", rows)], None)
    assert 'class="whisker" d="M25.0 10H100.0"' in table
    assert re.findall(r'class="dot" d="M([\d.]+) 10h0"', table) == ["50.0", "0.0"]
    Page(table)


def test_small_reliability_diagram_places_its_marks():
    bins = {"n": [0, 4, 1], "confidence": [None, 0.5, 1.0], "accuracy": [None, 0.25, 1.0]}
    svg = draw_small_reliability(None, bins, "x")
    # the square is 100 wide and begins at (36, 6); areas go with the images: radius 5 for 4, 2.5 for 1
    marks = re.findall(r'<circle class="after" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg)
    assert marks == [("86.0", "81.0", "5.0"), ("136.0", "6.0", "2.5")]
    assert draw_small_reliability(bins, bins, "x").count('class="before"') == 2


def test_front_lists_all_options_and_draws_those_that_have_values():
    points = [
        ("fedavg", 0.7, (0.65, 0.75), 0.5, (0.4, 0.6)),
        ("ü" * 60, 0.6, None, 0.4, None),
        ("none", None, None, 0.1, None),
    ]
    svg = draw_front(points, "Balanced accuracy", "Worst group")
    assert "1 fedavg: 0.700 (0.650 to 0.750) across, 0.500 (0.400 to 0.600) upwards" in svg
    assert "3  none (n/a)" in svg
    assert "#0" not in svg
    alone = draw_front(points, "Balanced accuracy", "Worst group's balanced accuracy (age_band)", standalone=True)
    assert ">Worst group's balanced accuracy<" in alone.replace("&#x27;", "'"), (
        "a long name is broken, or it is cut off"
    )
    assert 'xmlns="http://www.w3.org/2000/svg"' in alone
    assert "var(--" not in alone


def test_lines_over_the_rounds_leave_gaps():
    assert draw_course([1, 2, 3], [[0.1, None, 0.3], [None] * 3], "Gap", 2, "lines").count("<path") > 4


def test_the_words_on_signed_gaps_are_true():
    """One group has more hits and fewer false alarms: 0.3 and -0.2 in each of two classes, which is 0.2 in all."""
    tpr, fpr = np.array([[0.6, 0.5], [0.9, 0.8]]), np.array([[0.5, 0.4], [0.3, 0.2]])
    gaps = rate_gaps(Rates(selection=tpr, tpr=tpr, fpr=fpr))
    found = {key: float(gaps[key].value) for key in ("eopp1", "eopp0", "eodd")}
    assert found == pytest.approx({"eopp1": 0.6, "eopp0": 0.4, "eodd": 0.2})
    assert LABELS["eodd"] == "Sum of signed gaps (EOdd)"
    assert "it can be smaller than either sum of gaps" in EXPLANATIONS["eodd"]

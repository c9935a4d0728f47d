"""Groups, gaps, benefit and calibration in report.json, against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from fedmed.fairness.chance.compare_groups import compare_groups
from fedmed.metrics.site_tables import FEDERATED, LOCAL, UNCALIBRATED, PairedTables, SiteTables
from fedmed.report.document import build_document
from tests.report.support.example import make_content, make_record, make_site, make_tables
from tests.report.support.fairness_example import make_fair_record, make_sites, only_federated

PAIRS = [(0, 0), (0, 0), (1, 1), (1, 0)] * 3


def make_answer(site, groups, pairs=PAIRS, **models):
    tables = {FEDERATED: {"site": make_tables(site, pairs), "sex": make_tables(site, pairs, groups=groups)}}
    return SiteTables(tables | models)


def two_sites(**changes):
    """Return two sites of 12 images: images 0 to 5 are of ``f``, 6 to 11 of ``m``; ``m`` is always right at south."""
    groups = ["f"] * 6 + ["m"] * 6
    right = [(true, true) for true, _ in PAIRS[6:]]
    sites = {"north": make_answer("north", groups), "south": make_answer("south", groups, [*PAIRS[:6], *right])}
    return make_content(**{"validation": {}, "test": sites} | changes)


def test_groups_are_pooled_over_sites():
    document = build_document(two_sites())
    groups = document["groups"]["sex"]
    # f: at each site (0,0) (0,0) (1,1) (1,0) (0,0) (0,0), so 4 of 4 and 1 of 2
    # m: 2 of 2 and 2 of 4 at north, all at south
    assert groups["f"]["accuracy"]["value"] == pytest.approx(10 / 12)
    assert groups["f"]["balanced_accuracy"]["value"] == pytest.approx((1 + 0.5) / 2)
    assert groups["m"]["balanced_accuracy"]["value"] == pytest.approx((1 + 6 / 8) / 2)
    assert groups["m"]["accuracy"]["n"] == 12
    assert groups["m"]["sensitivity"]["by_class"]["malignant"]["value"] == pytest.approx(6 / 8)
    assert document["groups"]["site"]["north"] == document["sites"]["north"]["test"]
    assert document["fairness_part"] == "test"
    gap = document["gaps"]["sex"]["gap_balanced_accuracy"]
    assert gap["value"] == pytest.approx(0.875 - 0.75)
    assert (gap["worst_group"], gap["best_group"], gap["n"], gap["better"]) == ("f", "m", 24, "down")
    assert gap["flagged"] is False
    assert gap["p_value"] is not None
    assert set(document["gaps"]) == {"site", "sex"}
    assert document["findings"]["sex"] == {"flagged": False, "figure": "gap_balanced_accuracy", "flagged_figures": []}


def test_gaps_are_those_of_the_library():
    content = two_sites()
    tables = content.test["north"].models[FEDERATED]["sex"] + content.test["south"].models[FEDERATED]["sex"]
    expected = compare_groups(tables, content.seed)
    found = build_document(content)["gaps"]["sex"]
    assert {key: gap["value"] for key, gap in found.items()} == {key: gap.value for key, gap in expected.items()}
    assert found["gap_accuracy"]["interval"] == list(expected["gap_accuracy"].interval)


def test_a_group_of_one_site_is_shown_only_where_it_may_be():
    groups = ["f"] * 6 + ["m"] * 4 + ["x"] * 2
    sites = {"north": make_answer("north", groups), "south": make_answer("south", ["f"] * 6 + ["m"] * 6)}
    document = build_document(two_sites(test=sites))
    assert document["hidden_groups"]["sex"] == {"x": "rests on one site", "m": "would give away a group of one site"}
    for figure in document["groups"]["sex"]["x"].values():
        assert (figure["value"], figure["interval"], figure["n"]) == (None, None, None)
        assert figure["reason"] == "rests on one site"
    # only f is left to compare
    assert all(gap["value"] is None for gap in document["gaps"]["sex"].values())
    assert document["calibration"]["groups"]["sex"]["x"]["reliability"] == {"before": None, "after": None}
    assert document["calibration"]["groups"]["sex"]["x"]["after"]["ece"]["value"] is None
    for allowed in ({"single_sites": True}, {"agreed": ("north",)}):
        shown = build_document(two_sites(test=sites, **allowed))
        assert shown["hidden_groups"]["sex"] == {}
        assert shown["groups"]["sex"]["x"]["accuracy"]["n"] == 2


def test_unknown_is_shown_and_left_out_of_gaps():
    groups = ["f"] * 4 + ["m"] * 4 + ["unknown"] * 4
    sites = {name: make_answer(name, groups) for name in ("north", "south")}
    document = build_document(two_sites(test=sites))
    assert document["groups"]["sex"]["unknown"]["accuracy"]["n"] == 8
    assert document["gaps"]["sex"]["gap_accuracy"]["n"] == 16


def test_what_is_withheld_is_said_with_the_threshold():
    groups = ["f"] * 6 + ["m"] * 6
    sites = {name: make_answer(name, groups) for name in ("north", "south")}
    for answer in sites.values():
        tables = answer.models[FEDERATED]["sex"]
        for name in ("counts", "calibration", "scores"):
            getattr(tables, name)[0, 1] = 0  # f, malignant
            getattr(tables, name)[1] = 0
        tables.brier[1] = 0
        tables.withheld[:] = [[0, 1], [1, 1]]
    document = build_document(two_sites(test=sites, thresholds={"k": 10, "k_row": 5}))
    figures = document["groups"]["sex"]["f"]
    assert figures["balanced_accuracy"]["value"] is None
    assert figures["balanced_accuracy"]["reason"] == "not told: malignant"
    assert figures["sensitivity"]["by_class"]["malignant"]["reason"] == "not told"
    assert figures["accuracy"]["n_withheld"] == 2
    assert document["groups"]["sex"]["m"]["accuracy"]["reason"] == "not told"
    assert document["groups"]["sex"]["m"]["accuracy"]["value"] is None


def compared(local_right, federated_right, per_class=50):
    """Return a site with two classes of images, in each of which so many are right with one model alone."""
    answer = make_site("north", PAIRS)
    cells = np.zeros((1, 2, 2, 2), np.int64)
    cells[0, :, 1, 0], cells[0, :, 0, 1] = federated_right, local_right
    cells[0, :, 1, 1] = per_class - local_right - federated_right
    return SiteTables(
        answer.models | {LOCAL: answer.models[FEDERATED]}, {LOCAL: {"site": PairedTables(("north",), cells)}}
    )


def test_benefit_of_every_site():
    sites = {"a": compared(30, 5), "b": compared(5, 30), "c": compared(5, 6), "d": make_site("d", PAIRS)}
    content = two_sites(test=sites, benefit_expected=True, benefit_notes={"e": "its training ran out of time"})
    document = build_document(content)
    assert document["benefit_summary"] == {
        "worse": ["a"],
        "better": ["b"],
        "undecided": ["c"],
        "unknown": ["d", "e"],
    }
    difference = document["benefit"]["a"]["differences"]["local"]["balanced_accuracy"]
    assert difference["value"] == pytest.approx((5 - 30) / 50)
    assert (difference["n"], difference["verdict"]) == (100, "worse")
    assert difference["interval"][0] < -0.5 < difference["interval"][1] < 0
    assert list(document["benefit"]["a"]["models"]) == ["federated", "local"]
    assert document["benefit"]["a"]["decided_by"] == "balanced_accuracy"
    assert document["benefit"]["a"]["models"]["local"]["accuracy"]["value"] == pytest.approx(0.75)
    assert document["benefit"]["e"]["reason"] == "its training ran out of time"
    assert document["benefit"]["d"]["reason"] == "the site answered without a model of its own"


def test_without_a_comparison_there_is_no_benefit():
    document = build_document(two_sites())
    assert document["benefit"] == {}
    assert document["benefit_summary"] == {"worse": [], "better": [], "undecided": [], "unknown": []}


def test_calibration_before_and_after():
    groups = ["f"] * 6 + ["m"] * 6
    before = {
        "site": make_tables("north", PAIRS, confidence=0.9),
        "sex": make_tables("north", PAIRS, confidence=0.9, groups=groups),
    }
    sites = {"north": make_answer("north", groups, uncalibrated=before)}
    assert UNCALIBRATED == "uncalibrated"
    document = build_document(two_sites(test=sites, single_sites=True, temperature={"temperature": 2.0, "n": 7}))
    calibration = document["calibration"]
    # 9 of 12 right; confidence 0.9 before and 0.8 after
    assert calibration["before"]["ece"]["value"] == pytest.approx(0.15)
    assert calibration["after"]["ece"]["value"] == pytest.approx(0.05)
    # Brier of two classes: 2 (1 - c)^2 where right, 2 c^2 where wrong
    assert calibration["before"]["brier"]["value"] == pytest.approx(0.75 * 0.02 + 0.25 * 1.62)
    assert calibration["temperature"] == {"temperature": 2.0, "n": 7}
    # m: (1,1) (1,0) (0,0) (0,0) (1,1) (1,0)
    of_group = calibration["groups"]["sex"]["m"]
    assert of_group["before"]["ece"]["value"] == pytest.approx(0.9 - 4 / 6)
    assert of_group["after"]["ece"] == {
        key: value for key, value in document["groups"]["sex"]["m"]["ece"].items() if key != "by_class"
    }
    (filled,) = [index for index, n in enumerate(of_group["reliability"]["before"]["n"]) if n]
    assert of_group["reliability"]["before"]["confidence"][filled] == pytest.approx(0.9)
    assert calibration["reliability"]["after"] == document["reliability"]


def test_while_the_run_goes_on_groups_are_those_of_the_validation_images():
    content = two_sites()
    document = build_document(dataclasses.replace(content, validation=content.test, test={}))
    assert document["fairness_part"] == "validation"
    assert document["groups"]["sex"]["f"]["accuracy"]["value"] == pytest.approx(10 / 12)
    assert document["figures"]["accuracy"]["value"] is None
    assert document["sites"]["north"]["validation"]["accuracy"]["interval"] is not None
    assert document["benefit"] == {}


def test_history_by_group_holds_what_may_be_shown():
    record = make_fair_record(1, ["north", "south"])
    sites = {"north": make_answer("north", ["female"] * 6 + ["male"] * 3 + ["unknown"] * 3)}
    sites["south"] = make_answer("south", ["female"] * 6 + ["male"] * 6)
    document = build_document(two_sites(test=sites, history=[record]))
    assert document["hidden_groups"]["sex"].keys() == {"male", "unknown"}
    (entry,) = document["history"]
    assert entry["validation"]["groups"]["sex"] == {"female": {"balanced_accuracy": pytest.approx(0.48), "n": 50}}
    assert entry["validation"]["gaps"]["sex"] == {"gap_balanced_accuracy": pytest.approx(0.06)}
    # a record that does not say that one-site groups were hidden in it is not believed
    del record["validation"]["hidden"]
    (entry,) = build_document(two_sites(test=sites, history=[record]))["history"]
    assert entry["validation"]["groups"] == {}
    assert set(entry["validation"]["gaps"]) == {"site"}
    (entry,) = build_document(two_sites(test=sites, history=[record], single_sites=True))["history"]
    assert set(entry["validation"]["groups"]["sex"]) == {"female", "male", "unknown"}


def test_alarms_name_their_round_and_no_hidden_group():
    record = make_record(3, {"north": "accepted"})
    record["alarms"] = [
        {"kind": "fall", "attribute": "sex", "group": group, "text": f"{group} fell"} for group in ("f", "x")
    ]
    groups = ["f"] * 6 + ["m"] * 4 + ["x"] * 2
    sites = {"north": make_answer("north", groups), "south": make_answer("south", ["f"] * 6 + ["m"] * 6)}
    document = build_document(two_sites(test=sites, history=[record]))
    assert [(alarm["round"], alarm["group"]) for alarm in document["alarms"]] == [(3, "f")]


def test_rules_that_compare_groups_name_the_figure_of_the_curves():
    for rule, figure in (("worst_group_macro_f1", "macro_f1"), ("es_auc", "auc"), ("accuracy", "accuracy")):
        document = build_document(two_sites(config={"choose_by": rule, "choose_attribute": "sex"}))
        assert (document["choose_by"], document["course_figure"]) == (rule, figure)
        assert document["choose_attribute"] == "sex"


def test_the_drawn_example_has_the_differences_that_were_put_in(fair_report):
    _, document, _ = fair_report
    assert document["findings"]["sex"]["flagged"] is True
    assert document["findings"]["age_band"]["flagged"] is False
    assert document["benefit_summary"]["worse"] == ["north"]
    assert only_federated(make_sites())["north"].attributes == ("site", "sex", "age_band", "sex x age_band")

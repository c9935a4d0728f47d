"""The statistics of a study against hand calculation and an oracle, and the page against the table."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from fedmed.errors import ConfigError
from simulations.studies.cell import shorten_report
from simulations.studies.figures import explain_absence, label_study_figure, read_figure, read_sites
from simulations.studies.report import describe_findings, render_markdown, write_tables
from simulations.studies.study import load_study, read_progress, save_result
from simulations.studies.table import build_table, estimate_crossed, estimate_mean, judge
from tests.report.support.page_parser import Page, resolve
from tests.simulations.studies.test_study import cell_result, figure, write_study  # noqa: F401


def test_mean_of_three_by_hand():
    """Values 1, 2, 6: mean 3, s^2 = (4 + 1 + 9)/2 = 7, t(2, 0.975) = 4.302653."""
    found = estimate_mean([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt(7 / 3)
    assert found["value"] == 3.0
    assert found["interval"] == pytest.approx([3 - half, 3 + half], rel=1e-6)


def test_mean_equals_scipy():
    values = np.random.default_rng(0).normal(size=7)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert estimate_mean(values)["interval"] == pytest.approx([interval.low, interval.high])


def test_equal_values_do_not_show_their_spread():
    assert estimate_mean([1.0, 1.0, 1.0]) == {"value": 1.0, "interval": None, "n": 3}
    assert estimate_mean([0.1 + 0.2, 0.3])["interval"] is None


def test_crossed_stays_finite_where_mean_squares_cancel():
    """Rows 1, -1 and -1, 1: all of it is rest; the seeds and sites alone have no spread at all."""
    assert estimate_crossed(np.array([[1.0, -1.0], [-1.0, 1.0]]))["interval"] is None
    found = estimate_crossed(np.array([[1.0, -1.0, 0.4], [-1.0, 1.0, 0.4]]))["interval"]
    assert found[1] - found[0] < 10


def test_one_value_has_no_interval_and_none_no_value():
    assert estimate_mean([0.5]) == {"value": 0.5, "interval": None, "n": 1}
    assert estimate_mean([]) == {"value": None, "interval": None, "n": 0}


def test_crossed_by_hand():
    """Seeds (rows) and sites: [[0, 4], [2, 8]]. Mean 3.5, row means 2 and 5, column means 1 and 6.

    MS_seed = 2 (1.5^2 + 1.5^2) = 9, MS_site = 2 (2.5^2 + 2.5^2) = 25, rest +-0.5: MS_rest = 1.
    Var(mean) = (9 + 25 - 1)/4; df = 33^2 / (81 + 625 + 1) = 1.540. Alone: seeds 9/4 with 1 df, sites 25/4 with 1 df;
    t(1) = 12.706 makes the sites alone the widest, 12.706 * 2.5 = 31.77.
    """
    found = estimate_crossed(np.array([[0.0, 4.0], [2.0, 8.0]]))
    half = max(
        stats.t.ppf(0.975, 33**2 / 707) * math.sqrt(33 / 4),
        stats.t.ppf(0.975, 1) * math.sqrt(9 / 4),
        stats.t.ppf(0.975, 1) * math.sqrt(25 / 4),
    )
    assert half == pytest.approx(31.766, abs=1e-3)
    assert found["interval"] == pytest.approx([3.5 - half, 3.5 + half])
    assert (found["n"], found["num_sites"]) == (2, 2)


def test_crossed_uses_both_sources():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 9)) + 0.1 * rng.normal(size=(8, 9))
    half = np.diff(estimate_crossed(values)["interval"])[0] / 2
    assert half > np.diff(estimate_mean(values.mean(axis=1))["interval"])[0] / 2
    assert half > np.diff(estimate_mean(values.mean(axis=0))["interval"])[0] / 2


def test_crossed_covers_about_as_often_as_it_says():
    """Effects of 3 seeds and 4 sites drawn anew: at least 93 of 100 intervals hold the true mean 0 (600 draws)."""
    rng = np.random.default_rng(2)
    draws = [rng.normal(size=(3, 1)) + rng.normal(size=(1, 4)) + rng.normal(size=(3, 4)) for _ in range(600)]
    covered = [low <= 0 <= high for low, high in (estimate_crossed(values)["interval"] for values in draws)]
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize(("shape", "interval"), [((1, 1), None), ((0, 3), None), ((3, 0), None)])
def test_crossed_without_spread_has_no_interval(shape, interval):
    assert estimate_crossed(np.ones(shape))["interval"] is interval


def test_crossed_with_one_seed_speaks_of_sites():
    values = np.array([[1.0, 2.0, 6.0]])
    assert estimate_crossed(values)["interval"] == pytest.approx(estimate_mean([1.0, 2.0, 6.0])["interval"])


def test_verdicts_follow_the_direction():
    assert judge([0.1, 0.2], "up") == "better"
    assert judge([0.1, 0.2], "down") == "worse"
    assert judge([-0.2, -0.1], "down") == "better"
    assert judge([-0.1, 0.1], "up") == "undecided"
    assert judge(None, "up") == "undecided"


def test_figures_are_found_by_their_names():
    result = cell_result(0.5, gap=0.2, worse=["north", "south"])
    assert read_figure(result, "balanced_accuracy") == 0.5
    assert read_figure(result, "macro_f1") is None
    assert read_figure(result, "gaps.sex.gap_accuracy") == 0.2
    assert read_figure(result, "groups.sex.female.accuracy") == 0.5
    assert read_figure(result, "gaps.age.gap_accuracy") is None
    assert read_figure(result, "benefit.worse") == 2.0
    assert read_figure(result | {"benefit_summary": {"worse": []}}, "benefit.worse") is None
    assert read_figure({"gaps": {"sex x age": {"eom": figure(0.3)}}}, "gaps.sex x age.eom") == 0.3


def test_figures_have_names_for_people():
    assert label_study_figure("balanced_accuracy") == "Balanced accuracy"
    assert label_study_figure("gaps.sex.gap_accuracy") == "Gap in accuracy (sex)"
    assert label_study_figure("groups.sex.female.accuracy") == "Accuracy (sex: female)"
    assert label_study_figure("classes.tail.sensitivity") == "Mean sensitivity of the tail classes"
    assert label_study_figure("classes.very_rare.auc") == "Mean AUC of the very rare classes"


GROUPS = {"head": ["nv"], "tail": ["df", "vasc"]}


def add_classes(result, north, south):
    """Give a result the sensitivity of nv, df and vasc: at two sites, and of all images as their means."""
    names = ("nv", "df", "vasc")
    pooled = [None if None in pair else sum(pair) / 2 for pair in zip(north, south, strict=True)]
    result["classes"] = list(names)
    result["figures"]["sensitivity"] = figure(0.4) | {"by_class": dict(zip(names, pooled, strict=True))}
    for site, values in (("north", north), ("south", south)):
        result["sites"][site]["sensitivity"] = figure(0.4) | {"by_class": dict(zip(names, values, strict=True))}
    return result


def test_figures_of_class_groups_are_means_over_classes():
    """Of all images nv has 0.8, df 0.4 and vasc 0.3: the tail's mean is 0.35; in the south vasc has none."""
    result = add_classes(cell_result(0.5), [0.9, 0.5, 0.3], [0.7, 0.3, 0.3])
    assert read_figure(result, "classes.head.sensitivity", GROUPS) == pytest.approx(0.8)
    assert read_figure(result, "classes.tail.sensitivity", GROUPS) == pytest.approx(0.35)
    assert read_sites(result, "classes.tail.sensitivity", GROUPS) == pytest.approx({"north": 0.4, "south": 0.3})
    assert explain_absence(result, "classes.tail.sensitivity", GROUPS) is None
    without = add_classes(cell_result(0.5), [0.9, 0.5, 0.3], [0.7, 0.3, None])
    assert read_figure(without, "classes.tail.sensitivity", GROUPS) is None
    assert read_figure(without, "classes.head.sensitivity", GROUPS) == pytest.approx(0.8)
    assert read_sites(without, "classes.tail.sensitivity", GROUPS) == pytest.approx({"north": 0.4})
    assert explain_absence(without, "classes.tail.sensitivity", GROUPS) == "no sensitivity of vasc"


def test_cells_without_classes_are_explained():
    result = cell_result(0.5)
    assert read_figure(result, "classes.tail.sensitivity", GROUPS) is None
    assert read_sites(result, "classes.tail.sensitivity", GROUPS) == {}
    assert "before sensitivity was kept by class" in explain_absence(result, "classes.tail.sensitivity", GROUPS)
    assert explain_absence(result, "balanced_accuracy", GROUPS) is None


@pytest.fixture
def finished(write_study, tmp_path):  # noqa: F811
    """Arm 'equal' is above 'plain' by 0.09, 0.10 and 0.11; its gap is above by 0.2 in the first two seeds only."""
    study = load_study(write_study(), results=tmp_path / "results")
    for cell in study.cells:
        higher = 0.09 + 0.01 * cell.seed if cell.arm == "equal" else 0.0
        wider = 0.2 if cell.arm == "equal" and cell.seed < 2 else 0.0
        save_result(study, cell, cell_result(0.5 + higher, 0.1 + wider, ["north"]))
    return study


def test_differences_are_paired_by_seed(finished):
    """Differences 0.09, 0.10, 0.11: mean 0.1, s = 0.01, half-width 4.302653 * 0.01 / sqrt(3) = 0.024841."""
    found = build_table(finished, read_progress(finished))["arms"]["equal"]["differences"]["balanced_accuracy"]
    assert found["value"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx([0.1 - 0.024841, 0.1 + 0.024841], abs=1e-6)
    assert found["verdict"] == "better"
    assert found["sites"]["num_sites"] == 2
    assert found["sites"]["interval"] == pytest.approx(found["interval"])


def test_figures_of_groups_have_the_direction_of_all_images(write_study, tmp_path):  # noqa: F811
    figures = ["groups.sex.female.balanced_accuracy", "gaps.sex.gap_accuracy"]
    study = load_study(write_study(figures=figures), results=tmp_path / "results")
    save_result(study, study.cells[0], cell_result(0.5))
    table = build_table(study, read_progress(study))
    assert [table["better"][figure] for figure in figures] == ["up", "down"]


@pytest.fixture
def tailed(write_study, tmp_path):  # noqa: F811
    """Tails of 'plain': 0.2, 0.3, 0.4; of 'equal' 0.1 more, but in the last seed none: vasc has none in the south."""
    path = write_study(class_groups=GROUPS, figures=["classes.tail.sensitivity"], front=None)
    study = load_study(path, results=tmp_path / "results")
    for cell in study.cells:
        tail = 0.2 + 0.1 * cell.seed + (0.1 if cell.arm == "equal" else 0.0)
        lost = cell.arm == "equal" and cell.seed == 2
        south = [0.9, tail, None if lost else tail]
        save_result(study, cell, add_classes(cell_result(0.5), [0.9, tail, tail], south))
    return study


def test_class_groups_are_compared_like_other_figures(tailed):
    """Differences 0.1 and 0.1 of two seeds; by site 0.1 in the north, and of the south one seed lacks it."""
    table = build_table(tailed, read_progress(tailed))
    found = table["arms"]["equal"]["differences"]["classes.tail.sensitivity"]
    assert table["better"]["classes.tail.sensitivity"] == "up"
    assert table["arms"]["plain"]["figures"]["classes.tail.sensitivity"]["value"] == pytest.approx(0.3)
    assert (found["value"], found["n"]) == (pytest.approx(0.1), 2)
    assert (found["sites"]["value"], found["sites"]["n"], found["sites"]["num_sites"]) == (pytest.approx(0.1), 3, 1)
    assert table["not_defined"] == {"classes.tail.sensitivity": {"equal-2": "no sensitivity of vasc"}}
    sentence = "Mean sensitivity of the tail classes is n/a in equal-2 (no sensitivity of vasc)."
    assert f"- {sentence}" in render_markdown(table)
    assert sentence in write_tables(tailed, read_progress(tailed)).read_text()


def test_wrong_classes_are_found_from_the_cells(tailed, write_study):  # noqa: F811
    path = write_study(class_groups={"tail": ["df", "vacs"]}, figures=["classes.tail.sensitivity"], front=None)
    other = load_study(path, results=tailed.results)
    with pytest.raises(ConfigError, match=r"cell .*'class_groups.tail' names the class 'vacs'.*Did you mean 'vasc'"):
        build_table(other, read_progress(other))


def test_an_arm_without_cells_is_shown_as_missing(finished):
    for cell in finished.cells:
        if cell.arm == "equal":
            finished.result_file(cell).unlink()
    page = write_tables(finished, read_progress(finished)).read_text()
    table = json.loads((finished.results / "table.json").read_text())
    text = (finished.results / "table.md").read_text()
    assert table["complete"] is False
    assert table["arms"]["equal"]["differences"]["balanced_accuracy"]["verdict"] == "missing"
    assert "Incomplete: 3 of 6 cells" in text
    assert "Incomplete: 3 of 6 cells" in page
    assert "| plain: as it is | 3 of 3 | 0.500" in text
    assert "| equal: equal <weights> | 0 of 3 | missing | missing | missing |" in text
    assert "| equal | missing |  |  |  |" in text
    assert describe_findings(table)[0] == (
        "Balanced accuracy: against plain, no arm is better, no arm is worse, 0 undecided, equal is missing."
    )


def test_only_seeds_of_both_arms_are_compared(finished):
    finished.result_file(finished.cells[0]).unlink()
    table = build_table(finished, read_progress(finished))
    assert table["arms"]["equal"]["differences"]["balanced_accuracy"]["n"] == 2
    assert table["arms"]["equal"]["figures"]["balanced_accuracy"]["n"] == 3
    assert not table["complete"]


def test_findings_are_told_as_they_are(finished):
    table = build_table(finished, read_progress(finished))
    assert describe_findings(table) == [
        "Balanced accuracy: against plain, equal is better, no arm is worse, 0 undecided.",
        "Gap in accuracy (sex): against plain, no arm is better, no arm is worse, 1 undecided.",
        "Sites worse than their own model: against plain, no arm is better, no arm is worse, 1 undecided.",
    ]


def test_page_shows_the_numbers_of_the_table(finished):
    page = write_tables(finished, read_progress(finished)).read_text()
    table = json.loads((finished.results / "table.json").read_text())
    shown = Page(page).numbers
    assert len(shown) >= 20
    for pointer, text in shown:
        value = resolve(table, pointer)
        assert text == (f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
    assert "equal &lt;weights&gt;" in page
    assert "<script" not in page
    assert page.count("<h1>") == 1
    assert "Synthetic phantom images" in page


def test_markdown_has_a_row_for_every_arm(finished):
    write_tables(finished, read_progress(finished))
    text = (finished.results / "table.md").read_text()
    assert "**6 of 6 cells done, which took 0:00:12 together.**" in text
    assert "| equal: equal <weights> | 3 of 3 | 0.600 [0.575, 0.625] | 0.233 [-0.054, 0.520] | 1.000 |" in text
    assert "| equal | +0.100 [+0.075, +0.125] | better | +0.100 [+0.075, +0.125] | better |" in text


def test_a_report_is_shortened_to_its_figures():
    report = {
        "environment": {"versions": {"torch": "1"}},
        "synthetic": True,
        "classes": ["a", "b"],
        "rounds": 3,
        "chosen_round": 2,
        "figures": {
            "auc": {
                **{"value": 0.123456789, "interval": [0.1, 0.2], "n": 5, "better": "up"},
                "by_class": {"a": {"value": 0.1234567, "interval": [0, 1]}, "b": {"value": None, "reason": "no image"}},
            }
        },
        "sites": {"north": {"train_images": 5, "test": {"auc": {"value": None, "reason": "no images", "n": 0}}}},
        "groups": {"sex": {"female": {"auc": {"value": 0.5, "n": 4, "better": "up"}, "n": 4}}},
        "gaps": {"sex": {"gap_auc": {"value": 0.1, "interval": None, "p_value": 0.2, "better": "down", "skipped": 1}}},
        "benefit": {
            "north": {
                "verdict": "worse",
                "models": {},
                "differences": {"local": {"accuracy": {"value": -0.1, "interval": [-0.2, 0.0], "verdict": "worse"}}},
            }
        },
        "benefit_summary": {"better": [], "worse": ["north"], "undecided": [], "unknown": []},
    }
    found = shorten_report(report)
    by_class = {"a": 0.123457, "b": None}
    assert found["classes"] == ["a", "b"]
    assert found["figures"] == {
        "auc": {"value": 0.123457, "interval": [0.1, 0.2], "n": 5, "better": "up", "by_class": by_class}
    }
    assert found["sites"] == {"north": {"auc": {"n": 0}}}
    assert found["groups"] == {"sex": {"female": {"auc": {"value": 0.5, "n": 4}}}}
    assert found["gaps"] == {"sex": {"gap_auc": {"value": 0.1, "better": "down", "p_value": 0.2}}}
    assert found["benefit"]["north"]["verdict"] == "worse"
    assert found["benefit"]["north"]["differences"]["local"]["accuracy"]["interval"] == [-0.2, 0.0]
    assert found["benefit_summary"]["worse"] == ["north"]

"""Alerts where images of some classes are withheld: nothing is shown as if there were none."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from fedmed.metrics.evaluation import ALERT_BINS
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.metrics.tables import EvaluationTables
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from tests.report.figures.test_clinical import POINT
from tests.report.support.example import make_content
from tests.report.support.page_parser import Page

CLASSES = ("nevus", "bcc", "mel")
BOTH = POINT | {"alert_classes": ["bcc", "mel"], "prevalence": None}


def tell(groups: dict[str, list[tuple[int, int]]]) -> EvaluationTables:
    """Return tables of groups with (images, alerts) of each class; a class without images is withheld."""
    alerts = np.array(list(groups.values()), np.int64)
    counts = np.zeros((len(groups), 3, 3), np.int64)
    counts[:, np.arange(3), np.arange(3)] = alerts[..., 0]
    decision = np.zeros((len(groups), 2, ALERT_BINS), np.int64)
    decision[:, 0, [100, 120]] = _split(alerts[:, 1:].sum(axis=1))
    decision[:, 1, [100, 120]] = _split(alerts[:, 0])
    withheld = (alerts[..., 0] == 0).astype(np.int64)
    return EvaluationTables.make(tuple(groups), 3, counts=counts, alerts=alerts, decision=decision, withheld=withheld)


def _split(alerts: np.ndarray) -> np.ndarray:
    """Return images below the score 0 and from it on, by group."""
    return np.stack([alerts[:, 0] - alerts[:, 1], alerts[:, 1]], axis=1)


def describe(**changes: Any) -> dict[str, Any]:
    """Return a report of two sites: north tells no mel, and of its younger patients none of either sort."""
    north = {
        "site": tell({"north": [(60, 30), (20, 18), (0, 0)]}),
        "age": tell({"40-59": [(30, 15), (18, 18), (0, 0)], "60+": [(30, 15), (0, 0), (0, 0)]}),
    }
    south = {
        "site": tell({"south": [(40, 10), (20, 20), (40, 30)]}),
        "age": tell({"60+": [(40, 10), (20, 20), (40, 30)]}),
    }
    silent = {"site": tell({"west": [(50, 49), (0, 0), (0, 0)]}), "age": tell({"60+": [(50, 49), (0, 0), (0, 0)]})}
    sites = {"north": north, "south": south, "west": silent}
    values: dict[str, Any] = {
        "classes": CLASSES,
        "test": {name: SiteTables({FEDERATED: tables}) for name, tables in sites.items()},
        "validation": {},
        "composition": None,
        "history": [],
        "operating": BOTH,
        "single_sites": True,
        "thresholds": {"k": 10, "k_row": 5},
    }
    return dict(build_document(make_content(**(values | changes))))


def test_predictive_values_of_a_group_with_withheld_images_are_not_shown_and_why() -> None:
    part = describe()["clinical"]  # of the group's site, mel is withheld; south has none of the group
    group = part["groups"]["age"]["40-59"]
    for key in ("ppv", "npv"):
        assert group[key] == {"value": None, "interval": None, "reason": "images of mel are not told here"}
    assert group["net_benefit"] is None
    assert group["net_benefit_reason"] == "images of mel are not told here"
    assert group["sensitivity"]["value"] == 1
    # Of the older ones some are told of each class, and some site tells none.
    assert part["groups"]["age"]["60+"]["ppv"]["reason"] == "images of bcc, mel are not told by some site"
    assert part["sites"]["south"]["ppv"]["value"] == pytest.approx(50 / 60)
    assert (
        part["sites"]["north"]["ppv"]["reason"]
        == "images of mel are not told here: fewer than 5, or beside so few, withheld"
    )


def test_a_stated_prevalence_needs_every_alert_class() -> None:
    part = describe(operating=BOTH | {"prevalence": 0.1})["clinical"]
    assert part["groups"]["age"]["40-59"]["ppv_stated"] is None
    assert part["sites"]["north"]["ppv_stated"] is None
    # Sensitivity 50 / 60, specificity 30 / 40.
    expected = 0.1 * 50 / 60 / (0.1 * 50 / 60 + 0.9 * 10 / 40)
    assert part["sites"]["south"]["ppv_stated"]["value"] == pytest.approx(expected)


def test_a_site_whose_alert_classes_are_withheld_is_not_told_to_have_none() -> None:
    text = Page(render_page(describe())).text  # type: ignore[arg-type]
    assert "not told with, 50 without*" in text
    assert re.search(r"\b0 with", text) is None
    assert "n/a (images of bcc, mel are not told here: fewer than 5, or beside so few, withheld)" in text
    assert "n/a (not defined)" not in text[text.index("Alerts: whom") :]


def test_what_a_group_leaves_out_is_named_where_its_images_and_its_misses_stand() -> None:
    text = Page(render_page(describe())).text  # type: ignore[arg-type]
    assert "18 with (over bcc only), 30 without*" in text
    assert "60+ about 25 (14 to 40; 40 images); for 40-59 it is not told." in text
    silent = {"age": tell({name: [(30, 15), (18, 18), (0, 0)] for name in ("40-59", "60+")})}
    silent["site"] = tell({"north": [(60, 30), (36, 36), (0, 0)]})
    own = describe(test={"north": SiteTables({FEDERATED: silent})})
    told = "How many images with mel would be missed is told of none of the groups."
    assert told in Page(render_page(own)).text  # type: ignore[arg-type]


def test_all_told_images_have_predictive_values_and_say_what_they_lack() -> None:
    document = describe()
    whole = document["clinical"]["whole"]
    assert whole["ppv"]["value"] == pytest.approx(68 / (68 + 89))
    assert whole["not_told"] == ["bcc", "mel"]
    text = Page(render_page(document)).text  # type: ignore[arg-type]
    assert "These are figures of the images that are told: some site tells none of bcc and mel." in text
    assert "All images that are told" in text


def test_an_alert_class_that_no_site_tells_leaves_no_predictive_value_at_all() -> None:
    tables = SiteTables({FEDERATED: {"site": tell({"north": [(60, 30), (20, 18), (0, 0)]})}})
    document = describe(test={"north": tables})
    assert document["clinical"]["whole"]["ppv"]["reason"] == "images of mel are not told here"
    text = Page(render_page(document)).text  # type: ignore[arg-type]
    assert "how many of them are right: n/a (images of mel are not told here)." in text


def test_the_curve_is_of_the_images_of_the_table_and_goes_through_its_point() -> None:
    document = describe(operating=BOTH | {"threshold": -0.5})
    part = document["clinical"]
    place = int(np.argmin(np.abs(np.array(part["curve_thresholds"]) - part["probability"])))
    assert part["curve_thresholds"][place] == part["probability"]
    assert part["curve"]["value"][place] == pytest.approx(part["whole"]["net_benefit"])
    assert part["curve"]["all"][place] == pytest.approx(part["whole"]["net_benefit_all"])
    assert part["curve_images"] == {"n_with": 80, "n_without": 150}
    assert part["curve_sites"] == ["north", "south", "west"]
    assert list(part["curves"]) == ["south"]  # the others leave images out
    text = Page(render_page(document)).text  # type: ignore[arg-type]
    assert "all sites; thin: 1 site of which no image is left out" in text
    assert "80 images with such a class and 150 without, the same as in the first line of the table" in text


def test_a_curve_of_other_images_than_the_table_says_so() -> None:
    tables = {site: tell({site: [(40, 10), (20, 20), (40, 30)]}) for site in ("north", "south")}
    tables["south"] = dataclasses.replace(tables["south"], decision=tables["south"].decision * 0)
    document = describe(test={site: SiteTables({FEDERATED: {"site": own}}) for site, own in tables.items()})
    text = Page(render_page(document)).text  # type: ignore[arg-type]
    assert (
        "It is of 1 of 2 sites: 60 images with such a class and 40 without, which are others than in the table" in text
    )


def test_a_report_of_an_earlier_version_is_shown_without_what_it_does_not_have() -> None:
    document = describe()
    part = document["clinical"]
    del part["curve_images"], part["curve_sites"]
    for entry in (part["whole"], *part["sites"].values(), *part["groups"]["age"].values()):
        for key in ("not_told", "net_benefit_reason", "net_benefit_all"):
            entry.pop(key, None)
        entry["ppv"].pop("reason", None)
    text = Page(render_page(document)).text  # type: ignore[arg-type]
    assert "dotted: the threshold that was chosen. It is of 1 of 3 sites. A model is of use" in text
    del part["curve"]
    part["whole"]["net_benefit"] = None
    shown = Page(render_page(document)).text  # type: ignore[arg-type]
    assert "Decision curve: n/a, since no alert scores of both kinds are told." in shown

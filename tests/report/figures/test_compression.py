"""The report's part on compression, with numbers that can be checked by hand."""

import re
from typing import Any

import numpy as np
import pytest

from fedmed.metrics.site_tables import FEDERATED, STUDENT, TEACHER, SiteTables, make_paired
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from tests.report.support.example import make_content, make_tables

LARGE = {"north": [(0, 0)] * 5 + [(1, 1)] * 5, "south": [(0, 0)] * 4 + [(0, 1)] + [(1, 1)] * 5}
SMALL = {"north": [(0, 0)] * 5 + [(1, 1)] * 4 + [(1, 0)], "south": [(0, 0)] * 5 + [(1, 1)] * 5}
RESTS_ON = {"label": "mole", "group": None, "num_images": 12, "limit_images": 0.6}
GROUPS = {"north": ["f"] * 10, "south": ["f"] * 5 + ["m"] * 5}


def make_site(site: str, first: dict[str, Any], other: dict[str, Any], name: str) -> SiteTables:
    """Return tables of two models on the same ten images, told apart by site and sex."""
    groups = {"site": [site] * 10, "sex": GROUPS[site]}
    labels = np.array([true for true, _ in first[site]])
    right, other_right = [np.array([true == predicted for true, predicted in of[site]]) for of in (first, other)]
    return SiteTables(
        {
            model: {attribute: make_tables(site, of[site], groups=values) for attribute, values in groups.items()}
            for model, of in ((FEDERATED, first), (name, other))
        },
        {name: {attribute: make_paired(right, other_right, labels, values, 2) for attribute, values in groups.items()}},
    )


def make_record(status: str, **changes: Any) -> dict[str, Any]:
    size = {"name": "resnet18", "parameters": 1000, "deployed_parameters": 900, "deployed_mib": 0.5}
    check = {"teacher": 0.95, "student": 0.9, "loss": 0.05, "limit": 0.02, "passed": False, "p_value": None}
    return {
        "status": status,
        "kind": "proxy",
        "reason": "The gap between groups of 'sex' grows from 1.0 to 9.0 points, by more than 2.",
        "phases": {"explore": 1.5, "train": 20.0, "gate": 0.5},
        "sizes": {TEACHER: size, STUDENT: size | {"parameters": 10}},
        "distilled": {"history": [{"step": 100, "train_loss": 1.0, "held_out_loss": 2.0, "agreement": 0.5}]},
        "earlier": [{"round": 7, "seconds": 4.5, "agreement": 0.5}],
        "distance": {"proxy": 2.0, "sites": 1.0, "warning": None},
        "decision": {
            "checks": [
                check | {"name": "balanced_accuracy", "subject": "all", "rests_on": RESTS_ON},
                check | {"name": "gap", "subject": "sex", "rests_on": RESTS_ON | {"group": "m"}},
            ],
            "num_images": 20,
        },
    } | changes


def make_report(status: str, **changes: Any) -> dict[str, Any]:
    accepted = status == "accepted"
    test = {site: make_site(site, SMALL, LARGE, TEACHER) for site in LARGE} if accepted else None
    gate = {site: make_site(site, LARGE, SMALL, STUDENT) for site in LARGE}
    return build_document(
        make_content(compression=make_record(status), gate=gate, **({"test": test} if test else {}), **changes)
    )


@pytest.mark.parametrize(("status", "part"), [("accepted", "test"), ("rejected", "validation")])
def test_both_networks_are_compared_on_the_same_images(status: str, part: str) -> None:
    """North: 10 of 10 right and 9 of 10; south: 9 and 10. Small minus large: -0.1 and +0.1, of either direction."""
    found = make_report(status, single_sites=True)["compression"]
    assert found["part"] == part
    sites = found["comparison"]["site"]
    assert sites["north"]["models"]["teacher"]["accuracy"]["value"] == 1.0
    assert sites["north"]["models"]["student"]["accuracy"]["value"] == pytest.approx(0.9)
    assert sites["south"]["models"]["teacher"]["accuracy"]["value"] == pytest.approx(0.9)
    assert sites["north"]["differences"]["accuracy"]["value"] == pytest.approx(-0.1)
    assert sites["south"]["differences"]["accuracy"]["value"] == pytest.approx(0.1)
    assert set(found["comparison"]["sex"]) == {"f", "m"}
    assert found["seconds"] == 22.0


def test_groups_of_one_site_stay_hidden() -> None:
    """All men are at one site: neither they nor a gap that they are part of are shown."""
    document = make_report("rejected")
    found = document["compression"]
    assert "m" not in found["comparison"]["sex"]
    gap = found["checks"][1]
    assert (gap["subject"], gap["teacher"], gap["student"], gap["passed"]) == ("sex", None, None, False)
    assert gap["rests_on"] is None
    assert "9.0" not in found["reason"]
    assert "rests on one site" in render_page(document)


@pytest.mark.parametrize("status", ["accepted", "rejected"])
def test_page_shows_decision_phases_and_sizes(status: str) -> None:
    page = render_page(make_report(status, single_sites=True))
    section = page[page.index('<section id="compression"') :]
    section = section[: section.index("</section>")]
    assert status in section
    for text in (
        "The gate",
        "What it took",
        "Small against large network",
        "1,000",
        "resnet18",
        "reconstruction",
        "Distillation after round",
    ):
        assert text in section, text


def section_of(page: str) -> str:
    """Return the text of the section, without its tags."""
    section = page[page.index('<section id="compression"') :]
    return re.sub("<[^>]+>", "", section[: section.index("</section>")])


def test_page_says_how_many_images_a_limit_is() -> None:
    text = section_of(render_page(make_report("rejected", single_sites=True)))
    assert "0.6 of 12 images of mole" in text
    assert "0.6 of 12 images of mole in m" in text
    assert "FedDF" not in text
    hidden = section_of(render_page(make_report("rejected")))
    assert "0.6 of 12 images of mole" in hidden
    assert "images of mole in" not in hidden


def test_page_of_an_older_run_says_nothing_of_images() -> None:
    record = make_record("rejected")
    for check in record["decision"]["checks"]:
        del check["rests_on"]
    gate = {site: make_site(site, LARGE, SMALL, STUDENT) for site in LARGE}
    page = render_page(build_document(make_content(compression=record, gate=gate, single_sites=True)))
    assert "images of mole" not in section_of(page)


def test_page_says_whose_answers_were_learned() -> None:
    record = make_record("rejected")
    record["distilled"] |= {"target": "ensemble", "members": ["north", "south"]}
    gate = {site: make_site(site, LARGE, SMALL, STUDENT) for site in LARGE}
    page = render_page(build_document(make_content(compression=record, gate=gate, single_sites=True)))
    assert "the mean answer of the single models of 2 sites (as in FedDF)" in section_of(page)


def test_skipped_and_none() -> None:
    skipped = {"status": "skipped", "kind": "skip", "reason": "It was not asked for.", "phases": {}}
    assert "It was not asked for." in render_page(build_document(make_content(compression=skipped)))
    without = build_document(make_content())
    assert without["compression"] is None
    assert 'id="compression"' not in render_page(without)

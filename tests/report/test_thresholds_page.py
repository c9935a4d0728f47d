"""A page at a hospital's real thresholds says something: means over the classes that are told, and which."""

from dataclasses import replace

import numpy as np
import torch

from fedmed.fairness.disclosure.rows import plan_disclosure
from fedmed.fairness.disclosure.tables import Disclosure, disclose_tables
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from fedmed.report.schema.document import Document
from tests.report.support.example import make_content, make_tables
from tests.report.support.example import make_site as make_image_site
from tests.report.support.page_parser import Page

LIMITS = Disclosure(k=10, k_row=5, k_bin=5)


def make_site(seed: int, name: str, sizes: tuple[int, int, int]) -> SiteTables:
    """Return what a hospital tells of images with a class of two."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(np.repeat(np.arange(3), sizes))
    logits = rng.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels.numpy()] += 1.5
    groups = {"site": [name] * len(labels), "sex": rng.choice(["female", "male"], len(labels)).tolist()}
    plan = plan_disclosure(labels, groups, [f"{name}{place}" for place in range(len(labels))], LIMITS)
    return disclose_tables({FEDERATED: torch.from_numpy(logits)}, labels, groups, plan, LIMITS)


def build_report(test: dict[str, SiteTables]) -> Document:
    """Return the report of a federation of hospitals."""
    return build_document(
        make_content(
            classes=("nevus", "melanoma", "vascular"),
            composition=None,
            test=test,
            validation={},
            thresholds={"k": 10, "k_row": 5},
            single_sites=False,
        )
    )


def test_means_are_over_the_classes_that_are_told_and_say_so() -> None:
    """Of the third class each site has too few images, and so has everybody."""
    test = {"north": make_site(1, "north", (120, 60, 2)), "south": make_site(2, "south", (90, 70, 3))}
    document = build_report(test)
    first, second, last = document["classes"]
    for figures in (document["figures"], document["sites"]["north"]["test"], document["groups"]["sex"]["female"]):
        assert figures["balanced_accuracy"]["over_classes"] == [first, second]
        recalls = [figures["sensitivity"]["by_class"][name]["value"] for name in (first, second)]
        assert figures["balanced_accuracy"]["value"] == sum(recalls) / 2
        assert figures["balanced_accuracy"]["interval"] is not None
        assert figures["macro_f1"]["value"] is not None
    pooled = document["figures"]["balanced_accuracy"]["value"]
    assert document["sites"]["north"]["test"]["balanced_accuracy"]["pooled"] == pooled
    gap = document["gaps"]["sex"]["gap_balanced_accuracy"]
    assert (gap["over_classes"], gap["overall"]) == ([first, second], pooled)
    assert gap["family_p"] is not None
    words = Page(render_page(document)).text
    assert "Of the classes whose sensitivity is known, the one that is recognised least often is" in words
    assert "the class that does worst of those whose sensitivity is known" in words
    assert f"(over 2 of 3 classes, without {last})" in words
    assert f"(over 2 of 3 classes, without {last}; all together over the same: {pooled:.3f})" in words
    assert f"Compared over the classes that all these groups have: without {last}." in words


def test_sites_over_different_classes_are_not_ranked_in_the_summary() -> None:
    """One tells the third class, the other does not; by the gap they are compared over the first two."""
    test = {"north": make_site(1, "north", (120, 60, 2)), "south": make_site(2, "south", (60, 50, 20))}
    document = build_report(test)
    assert "over_classes" not in document["sites"]["south"]["test"]["balanced_accuracy"]
    assert document["gaps"]["site"]["gap_balanced_accuracy"]["over_classes"] == ["nevus", "melanoma"]
    assert "Among the sites, balanced accuracy is highest" not in Page(render_page(document)).text
    words = Page(render_page(document)).text
    assert "All sites, by name, since they tell different classes." in words
    assert document["sites"]["north"]["test"]["accuracy"]["over_classes"] == ["nevus", "melanoma"]


def test_a_site_without_images_of_a_class_is_not_ranked_either() -> None:
    """Nothing is withheld; the north has three classes and recognises none of the third, the south has two."""
    content = make_content(
        classes=("nevus", "melanoma", "keratosis"),
        test={
            "north": make_image_site("north", [(0, 0)] * 5 + [(1, 1)] * 4 + [(2, 0)] * 2, 3),
            "south": make_image_site("south", [(0, 0)] * 4 + [(1, 0)] * 1 + [(1, 1)] * 4, 3),
        },
        composition=None,
        validation={},
    )
    words = Page(render_page(build_document(content))).text
    assert "Among the sites, balanced accuracy is highest" not in words
    assert "All sites, by name, since they tell different classes." in words


def test_calibration_errors_are_told_to_be_of_merged_bins() -> None:
    test = {"north": make_site(1, "north", (120, 60, 2)), "south": make_site(2, "south", (90, 70, 3))}
    words = Page(render_page(build_report(test))).text
    assert "Each site puts neighbouring ones of 15 equal bins together until each holds enough patients." in words
    assert "The same distance in the worst of these bins." in words
    assert "averaged over 15 equal bins" not in words
    assert "calibration error in the sites' merged bins" in words


def test_images_whose_class_is_not_told_are_no_patients_that_are_counted() -> None:
    """Ten images of two classes, and five more of rare ones, of which four are right."""
    tables = replace(make_tables("north", [(0, 0)] * 5 + [(1, 1)] * 5, 3), rare=np.array([[5, 4]]))
    document = build_report({"north": SiteTables({FEDERATED: {"site": tables}})})
    document["thresholds"]["unit"] = "patients"
    assert document["figures"]["accuracy"]["n"] == document["flow"]["total"]["scored"] == 15
    words = Page(render_page(document)).text
    assert "15 test images are in the figures; the class is told of 10" in words
    assert "Some scored images are of classes that a site does not tell" in words
    assert "Training images are rounded down by the sites." in words
    assert "Test images: those whose class the sites tell." in words


def test_a_figure_that_needs_untold_wrong_answers_says_so() -> None:
    """All 30 wrong answers of two classes are of unknown class: the precision of the third could be anything."""
    rows = [(0, 0)] * 30 + [(1, 1)] * 30 + [(2, 2)] * 5
    tables = replace(make_tables("north", rows, 3), other_wrong=np.array([[15, 15, 0]]))
    document = build_report({"north": SiteTables({FEDERATED: {"site": tables}})})
    entry = document["figures"]["macro_precision"]["by_class"]["vascular"]
    assert entry == {"value": None, "interval": None, "reason": "wrong answers are not told by class"}
    assert "(never predicted)" not in render_page(document)

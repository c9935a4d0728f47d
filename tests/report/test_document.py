"""report.json, against numbers worked out by hand from the example's tables."""

import pytest

from fedmed.report.document import build_document
from tests.report.support.example import make_content, make_record


def test_pooled_figures():
    document = build_document(make_content())
    figures = document["figures"]
    # counts: benign 6 right, 2 wrong; malignant 1 right, 1 wrong
    assert figures["accuracy"]["value"] == pytest.approx(0.7)
    assert figures["accuracy"]["n"] == 10
    assert figures["accuracy"]["better"] == "up"
    assert figures["balanced_accuracy"]["value"] == pytest.approx((0.75 + 0.5) / 2)
    assert figures["sensitivity"]["by_class"]["malignant"]["value"] == pytest.approx(0.5)
    # Wilson, z = 1.959964: 7 of 10 is 0.3968 to 0.8922
    assert figures["accuracy"]["interval"] == pytest.approx([0.39678, 0.89221], abs=1e-4)
    # confidence 0.8 throughout, 0.7 right
    assert figures["ece"]["value"] == pytest.approx(0.1)
    # right: 0.2^2 + 0.2^2; wrong: 0.8^2 + 0.8^2
    assert figures["brier"]["value"] == pytest.approx(0.7 * 0.08 + 0.3 * 1.28)
    assert figures["brier"]["better"] == "down"
    assert all("interval" in figure and "n" in figure for figure in figures.values())


def test_sites_parts_and_counts():
    document = build_document(make_content())
    assert document["classes"] == ["benign", "malignant"]
    assert list(document["sites"]) == ["north", "south"]
    assert document["sites"]["north"]["train_images"] == 40
    assert document["sites"]["south"]["test"]["accuracy"]["value"] == pytest.approx(0.5)
    assert document["sites"]["south"]["validation"]["accuracy"]["value"] == pytest.approx(0.5)
    assert document["test_images"] == {"total": 10, "by_class": {"benign": 8, "malignant": 2}}
    assert document["confusion"]["pooled"] == [[6, 2], [1, 1]]
    assert document["confusion"]["sites"]["south"] == [[2, 1], [1, 0]]
    assert document["composition"]["south"]["train"] == {"benign": 20, "malignant": 20}
    assert (document["chosen_round"], document["rounds"], document["seed"]) == (2, 3, 0)
    assert document["thresholds"] == {"k": 1, "k_row": 1}


def test_curves():
    document = build_document(make_content())
    curve = document["roc"]["malignant"]
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0.0, 0.0, 1.0, 1.0)
    # the only threshold between: 2 of 8 benign and 1 of 2 malignant images are called malignant
    assert (0.25, 0.5) in list(zip(curve["fpr"], curve["tpr"], strict=True))
    bins = document["reliability"]
    filled = [index for index, n in enumerate(bins["n"]) if n]
    assert len(filled) == 1
    assert bins["accuracy"][filled[0]] == pytest.approx(0.7)
    assert bins["confidence"][filled[0]] == pytest.approx(0.8)
    assert bins["confidence"][0] is None


def test_participation():
    participation = build_document(make_content())["participation"]
    assert participation["rounds"] == [1, 2, 3]
    assert participation["sites"]["south"] == {
        "accepted_rounds": 1,
        "missed_rounds": 2,
        "mean_share": pytest.approx(0.5 / 3),
        "update_bytes": 1000,
        "statuses": ["accepted", "late", "late"],
        "reasons": [{"status": "late", "reason": "was late", "rounds": [2, 3]}],
    }
    assert participation["sites"]["north"]["mean_share"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert participation["bytes_to_sites"] == 3 * 2000
    assert participation["bytes_from_sites"] == (2 + 1 + 1) * 1000


def test_a_round_that_was_tried_again_counts_once():
    first, second = make_record(1, {"north": "late"}), make_record(1, {"north": "accepted"})
    document = build_document(make_content(history=[first, second | {"attempt": 2}]))
    assert len(document["history"]) == 1
    assert document["participation"]["sites"]["north"]["statuses"] == ["accepted"]


def test_a_site_that_is_not_in_a_round_is_absent():
    history = [make_record(1, {"north": "accepted"}), make_record(2, {"north": "accepted", "south": "accepted"})]
    document = build_document(make_content(history=history))
    assert document["participation"]["sites"]["south"]["statuses"] == ["absent", "accepted"]
    assert document["participation"]["sites"]["south"]["reasons"] == []


def test_history_holds_the_figure_that_chose():
    content = make_content(config={"choose_by": "accuracy"})
    (entry, *_) = build_document(content)["history"]
    assert entry["validation"]["sites"]["north"] == {"accuracy": 0.5}
    assert entry["loss"] == 1.0
    assert entry["accepted_sites"] == 2

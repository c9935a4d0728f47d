import dataclasses
import time

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame
from sklearn import metrics as oracle

from fedmed.metrics.classification import compute_figures, count_values, roc_points
from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from tests.metrics.support.samples import LONG_TAIL, draw_predictions, draw_tables

KEYS = {
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "kappa",
    "mcc",
    "sensitivity",
    "specificity",
    "auc",
    "ece",
    "mce",
    "classwise_ece",
    "brier",
    "worst_class_recall",
    "class_recall_gap",
    "class_auc_std",
}


def values_of(tables):
    return {key: figure.value for key, figure in compute_figures(tables).items()}


def tables_of(labels, predicted, num_classes):
    """Tables of answers given with a fixed confidence."""
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).double() * 3
    return tables_from_logits(logits, torch.tensor(labels), ["a"] * len(labels))


@pytest.mark.parametrize(
    ("shares", "num_images", "seed"), [(LONG_TAIL, 3000, 0), ((0.9, 0.1), 400, 1), ((0.4, 0.3, 0.3), 30, 2)]
)
def test_figures_of_counts_equal_scikit_learn(shares, num_images, seed):
    logits, labels = draw_predictions(num_images, shares=shares, seed=seed)
    y, predicted, classes = labels.numpy(), logits.argmax(dim=1).numpy(), range(len(shares))
    figures = compute_figures(tables_from_logits(logits, labels, ["a"] * num_images))
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(y, predicted, labels=classes, zero_division=0)
    expected = {
        "accuracy": oracle.accuracy_score(y, predicted),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, predicted),
        "macro_f1": f1.mean(),
        "macro_precision": precision.mean(),
        "macro_recall": recall.mean(),
        "kappa": oracle.cohen_kappa_score(y, predicted),
        "mcc": oracle.matthews_corrcoef(y, predicted),
        "sensitivity": oracle.balanced_accuracy_score(y, predicted),
    }
    assert {key: figures[key].value for key in expected} == pytest.approx(expected, abs=1e-12)
    assert figures["macro_f1"].by_class == pytest.approx(f1, abs=1e-12)
    assert figures["macro_precision"].by_class == pytest.approx(precision, abs=1e-12)
    assert figures["macro_recall"].by_class == figures["sensitivity"].by_class == pytest.approx(recall, abs=1e-12)
    assert all(figure.n == num_images and figure.reason is None for figure in figures.values())


def test_mcc_by_hand_and_where_it_is_none():
    """Two classes, answers [[3, 1], [2, 4]]: (3 x 4 - 1 x 2) / sqrt(5 x 5 x 4 x 6).

    Counts of a draw need not be whole. Where all answers are of one class, n**2 and the sum of the squares are the
    same number, and their difference rounded is below zero.
    """
    assert count_values(np.array([[3, 1], [2, 4]]))["mcc"].value == pytest.approx(10 / np.sqrt(600))
    column = [8.63317484044385, 1.31115276595823, 0.528884336912931, 26.024647654408717, 29.208178472887095]
    counts = np.zeros((5, 5))
    counts[:, 0] = column
    n = counts.sum(axis=(-2, -1))
    assert n**2 - np.square(counts.sum(axis=0)).sum() < 0, "the case is one"
    assert np.isnan(count_values(counts)["mcc"].value)
    assert np.isnan(count_values(counts.T)["mcc"].value)


def test_every_figure_has_its_key_and_direction():
    figures = compute_figures(draw_tables(50))
    assert set(figures) == KEYS
    assert all(figure.key == key for key, figure in figures.items())
    assert {key for key, figure in figures.items() if figure.better == "down"} == {
        "ece",
        "mce",
        "classwise_ece",
        "brier",
        "class_recall_gap",
        "class_auc_std",
    }


def test_specificity_by_hand():
    """Six images: true 0 0 0 1 1 2, answers 0 0 1 1 2 2.

    Class 0: 3 negatives, none called 0: 1. Class 1: 4 negatives, one called 1: 3/4. Class 2: 5 negatives, one called 2:
    4/5.
    """
    figure = compute_figures(tables_of([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], 3))["specificity"]
    assert figure.by_class == pytest.approx((1, 3 / 4, 4 / 5))
    assert figure.value == pytest.approx((1 + 3 / 4 + 4 / 5) / 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_auc_is_within_its_tolerance_of_scikit_learn_on_rare_classes(temperature):
    logits, labels = draw_predictions(20000, seed=5, temperature=temperature)
    p, y = torch.softmax(logits, dim=1).numpy(), labels.numpy()
    figure = compute_figures(tables_from_logits(logits, labels, ["a"] * 20000))["auc"]
    expected = [oracle.roc_auc_score(y == c, p[:, c]) for c in range(7)]
    assert np.abs(np.array(figure.by_class) - expected).max() < 0.005
    assert figure.value == pytest.approx(np.mean(figure.by_class), abs=1e-12)
    assert figure.value == pytest.approx(oracle.roc_auc_score(y, p, multi_class="ovr", average="macro"), abs=0.005)


def test_equal_bins_of_the_probability_would_miss_that_tolerance():
    logits, labels = draw_predictions(20000, seed=5, signal=1.0)
    p, y = torch.softmax(logits, dim=1).numpy()[:, 6], labels.numpy() == 6
    exact = oracle.roc_auc_score(y, p)
    binned = oracle.roc_auc_score(y, np.floor(p * 64))
    assert abs(binned - exact) > 0.02
    ours = compute_figures(tables_from_logits(logits, labels, ["a"] * 20000))["auc"].by_class[6]
    assert ours == pytest.approx(exact, abs=0.005)


def test_auc_counts_ties_half():
    """Scores of class 0: own images 1 and 0, others 0 and -1; of four pairs three are won and one is a tie: 3.5 / 4."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    figure = compute_figures(tables_from_logits(logits, torch.tensor([0, 0, 1, 1]), ["a"] * 4))["auc"]
    assert figure.by_class == (0.875, 0.875)


def test_roc_points_enclose_the_auc():
    tables = draw_tables(500, group="a") + draw_tables(300, group="b", seed=1)
    figure = compute_figures(tables)["auc"]
    for c in range(7):
        fpr, tpr = roc_points(tables, c)
        assert fpr.shape == tpr.shape == (65,)
        assert (fpr[0], tpr[0]) == (0, 0)
        assert (fpr[-1], tpr[-1]) == (1, 1)
        assert (np.diff(fpr) >= 0).all()
        assert (np.diff(tpr) >= 0).all()
        assert np.trapezoid(tpr, fpr) == pytest.approx(figure.by_class[c], abs=1e-12)


def test_roc_points_of_a_class_without_images_are_empty():
    tables = tables_of([0, 0, 1], [0, 1, 1], 3)
    assert [len(side) for side in roc_points(tables, 2)] == [0, 0]
    with pytest.raises(ValueError, match="no class 3"):
        roc_points(tables, 3)


def test_figures_by_group_equal_fairlearn():
    logits, labels = draw_predictions(600, shares=(0.6, 0.3, 0.1), seed=4)
    groups = np.array(["f", "m", "unknown"])[np.random.default_rng(0).integers(0, 3, 600)]
    tables = tables_from_logits(logits, labels, list(groups))
    y, predicted = labels.numpy(), logits.argmax(dim=1).numpy()

    def recall_of(c):
        return lambda y_true, y_pred: oracle.recall_score(y_true == c, y_pred == c, zero_division=0)

    metrics = {"accuracy": oracle.accuracy_score} | {f"recall_{c}": recall_of(c) for c in range(3)}
    frame = MetricFrame(metrics=metrics, y_true=y, y_pred=predicted, sensitive_features=groups)
    for group, row in frame.by_group.iterrows():
        figures = compute_figures(tables.select(group))
        assert figures["accuracy"].value == pytest.approx(row["accuracy"], abs=1e-12)
        assert figures["sensitivity"].by_class == pytest.approx([row[f"recall_{c}"] for c in range(3)], abs=1e-12)
    assert values_of(tables)["accuracy"] == pytest.approx(frame.overall["accuracy"], abs=1e-12)


def test_a_class_that_is_absent_and_never_answered():
    """Two of three classes occur. Recall 1/2 and 1, precision 1 and 1/2; the macro figures count class 2 as 0."""
    figures = compute_figures(tables_of([0, 0, 1], [0, 1, 1], 3))
    assert figures["balanced_accuracy"].value == pytest.approx(3 / 4)
    assert figures["sensitivity"].by_class == pytest.approx((1 / 2, 1, None))
    assert figures["macro_recall"].value == pytest.approx((1 / 2 + 1) / 3)
    assert figures["macro_precision"].value == pytest.approx((1 + 1 / 2) / 3)
    assert figures["macro_precision"].by_class == (1.0, 0.5, None)
    assert figures["macro_f1"].value == pytest.approx((2 / 3 + 2 / 3) / 3)
    assert figures["macro_f1"].by_class[2] is None
    assert figures["specificity"].by_class == (1.0, 0.5, 1.0)
    assert figures["auc"].by_class[2] is None
    assert figures["auc"].value == pytest.approx(np.mean(figures["auc"].by_class[:2]))
    assert figures["classwise_ece"].by_class[2] is not None  # whether its probability is as low as its share


def test_an_absent_class_that_is_answered_has_precision_and_f1_zero():
    figures = compute_figures(tables_of([0, 0, 1], [0, 2, 1], 3))
    assert figures["macro_precision"].by_class[2] == 0
    assert figures["macro_f1"].by_class[2] == 0
    assert figures["macro_recall"].by_class[2] is None


def test_images_of_one_class_only():
    figures = compute_figures(tables_of([1, 1, 1], [1, 1, 1], 2))
    assert figures["accuracy"].value == 1
    assert figures["balanced_accuracy"].value == 1
    assert figures["specificity"].by_class == (1.0, None)
    for key, reason in {
        "kappa": "all images and all answers are of one class",
        "mcc": "all images or all answers are of one class",
        "auc": "the images are all of one class",
        "class_auc_std": "the images are all of one class",
        "class_recall_gap": "the images are all of one class",
    }.items():
        assert figures[key].value is None
        assert figures[key].reason == reason
    assert compute_figures(tables_of([1, 1, 1], [1, 1, 0], 2))["kappa"].value == 0


@pytest.mark.parametrize("num_classes", [2, 7])
def test_no_image_at_all_gives_no_figure(num_classes):
    empty = tables_from_logits(torch.zeros(0, num_classes), torch.zeros(0, dtype=torch.int64), [])
    figures = compute_figures(empty)
    assert set(figures) == KEYS
    for figure in figures.values():
        assert figure.value is None
        assert figure.reason == "no images"
        assert figure.n == 0
        assert figure.by_class in (None, (None,) * num_classes)


def test_without_shared_scores_only_figures_of_the_auc_are_missing():
    tables = draw_tables(100)
    hidden = dataclasses.replace(tables, scores=np.zeros_like(tables.scores), areas=np.zeros_like(tables.areas))
    figures = compute_figures(hidden)
    assert figures["auc"].reason == "the tables hold no scores"
    assert {key for key, figure in figures.items() if figure.value is None} == {
        "auc",
        "class_auc_std",
        "classwise_ece",
    }


def test_class_level_disparities_by_hand():
    """Recalls 1/2, 1 and 3/4 of three classes, the fourth absent; the spread of the AUC is NumPy's."""
    figures = compute_figures(tables_of([0, 0, 1, 2, 2, 2, 2], [0, 1, 1, 2, 2, 2, 0], 4))
    assert figures["worst_class_recall"].value == 0.5
    assert figures["class_recall_gap"].value == 0.5
    areas = compute_figures(draw_tables(500))
    assert areas["class_auc_std"].value == pytest.approx(np.std(areas["auc"].by_class), abs=1e-12)


def hide_class(tables, hidden, rare_right=None):
    """The tables with one class held back at one site; with ``rare_right`` its images go to the rare ones."""
    arrays = {name: array.copy() for name, array in tables.to_arrays().items()}
    images = int(arrays["counts"][0, hidden].sum())
    for name in ("counts", "patients", "scores", "calibration", "areas"):
        arrays[name][:, hidden] = 0
    arrays["withheld"][0, hidden] = 1
    if rare_right is not None:
        arrays["rare"][0] = images, rare_right
        arrays["mixed"][0, 14] = images, images, rare_right
    return type(tables)(tables.groups, **arrays)


def test_a_class_withheld_everywhere_is_left_out_of_means_over_the_classes():
    """By hand from what is told: recalls 8/10 and 3/5; F1 of answers to these images only."""
    counts = np.array([[[8, 1, 1], [1, 3, 1], [2, 2, 6]]])
    told = hide_class(EvaluationTables.make(("a",), 3, counts=counts), 2)
    figures = compute_figures(told)
    expected = {
        "balanced_accuracy": (0.8 + 0.6) / 2,
        "macro_recall": (0.8 + 0.6) / 2,
        "macro_precision": (8 / 9 + 3 / 4) / 2,
        "macro_f1": (16 / 19 + 6 / 9) / 2,
        "specificity": (4 / 5 + 9 / 10) / 2,
        "worst_class_recall": 0.6,
        "class_recall_gap": 0.2,
    }
    assert {key: figures[key].value for key in expected} == pytest.approx(expected)
    assert {figures[key].classes for key in expected} == {(0, 1)}
    assert figures["accuracy"].classes is None
    for figure in figures.values():
        assert figure.n_withheld == 1
        if figure.by_class is not None:
            assert figure.by_class[2] is None
    same = compute_figures(EvaluationTables.make(("a",), 3, counts=counts), np.array([True, True, False]))
    assert {key: same[key].value for key in expected} == pytest.approx(expected)


def test_of_fewer_than_two_told_classes_there_is_no_mean():
    tables = hide_class(hide_class(draw_tables(400, shares=(0.5, 0.3, 0.2)), 2), 1)
    figures = compute_figures(tables)
    macro = {"balanced_accuracy", "macro_f1", "macro_precision", "macro_recall", "sensitivity", "specificity", "auc"}
    macro |= {"classwise_ece", "worst_class_recall", "class_recall_gap", "class_auc_std"}
    assert {key for key, figure in figures.items() if figure.value is None} == macro | {"mcc"}
    assert {figures[key].reason for key in macro} == {"classes 1, 2 are withheld"}


def test_a_class_withheld_at_one_site_only_is_taken_from_the_other():
    shared, hidden = draw_tables(100, shares=(0.5, 0.5)), hide_class(draw_tables(100, shares=(0.5, 0.5), seed=1), 1)
    figures = compute_figures(shared + hidden)
    assert all(figure.value is not None and figure.n_withheld == 1 for figure in figures.values())
    recall = compute_figures(shared)["sensitivity"].by_class[1]
    assert figures["sensitivity"].by_class[1] == pytest.approx(recall)


def test_images_of_rare_classes_count_without_class():
    """Two of three right and one of class 1 of four rare ones: accuracy 3 / 7; the ECE takes the rare bin, too."""
    tables = hide_class(tables_of([0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0, 0], 2), 1, rare_right=1)
    figures = compute_figures(tables)
    assert (figures["accuracy"].value, figures["accuracy"].n) == (pytest.approx(3 / 7), 7)
    confidence = 1 / (1 + np.exp(-3))
    expected = abs(2 - 3 * confidence + 1 - 4) / 7  # all seven have a confidence in the last bin
    assert (figures["ece"].value, figures["ece"].n) == (pytest.approx(expected), 7)
    assert figures["classwise_ece"].n == figures["sensitivity"].n == 3
    assert figures["sensitivity"].by_class == (pytest.approx(2 / 3), None)


def test_a_group_withheld_as_a_whole_has_no_figure():
    tables = tables_of([0, 1], [0, 1], 2)
    nothing = {name: np.zeros_like(array) for name, array in tables.to_arrays().items()}
    figures = compute_figures(type(tables)(("a",), **(nothing | {"withheld": np.ones((1, 2), np.int64)})))
    assert {(figure.value, figure.reason) for figure in figures.values()} == {(None, "all images are withheld")}


def test_pooling_is_not_averaging():
    """1 of 1 right at one site and 1 of 3 at the other is 2 of 4, not 2/3."""
    first, second = tables_of([0], [0], 2), tables_of([0, 1, 1], [0, 0, 0], 2)
    assert values_of(first + second)["accuracy"] == 0.5


def test_a_round_of_one_hundred_sites_takes_a_moment():
    sites = [draw_tables(50, seed=i) for i in range(100)]
    start = time.process_time()
    for tables in sites:
        compute_figures(tables)
    assert time.process_time() - start < 1.0


def test_areas_within_sites_stand_in_for_histograms_that_are_not_told():
    """Two sites whose scores differ in level: pooled pairs are compared within each site only."""
    first, second = draw_tables(300, group="a"), draw_tables(200, group="b", seed=1)
    complete = compute_figures(first + second)["auc"]
    assert (complete.within_sites, complete.n) == (False, 500)
    assert 0 < complete.bound < 0.05
    hidden = dataclasses.replace(first, scores=np.zeros_like(first.scores))
    for tables in (hidden + second, hidden + dataclasses.replace(second, scores=np.zeros_like(second.scores))):
        found = compute_figures(tables)["auc"]
        pairs, won = (first.areas + second.areas)[0, :, :2].T
        assert (found.within_sites, found.n, found.bound) == (True, 500, None)
        assert found.by_class == pytest.approx(tuple(won / pairs))
        assert found.value == pytest.approx((won / pairs).mean())


def test_histograms_that_are_too_coarse_give_no_area():
    """Nearly equal scores lie in one bin, so that half of all pairs would be ties; the areas know better."""
    logits, labels = draw_predictions(300, shares=(0.5, 0.5))
    weak = tables_from_logits(logits / 100, labels, ["a"] * 300)
    found = compute_figures(weak)["auc"]
    assert (found.within_sites, found.bound) == (False, None)  # of one site, all images are compared
    assert found.value == pytest.approx(oracle.roc_auc_score(labels, (logits[:, 1] - logits[:, 0])))
    without = compute_figures(dataclasses.replace(weak, areas=np.zeros_like(weak.areas)))["auc"]
    assert (without.value, without.by_class) == (None, (None, None))
    assert without.reason == "the histograms of the scores are too coarse for this model"
    assert without.bound > 0.05


def test_figures_of_groups_without_histograms_say_so():
    tables = draw_tables(100)
    names = ("scores", "areas", "calibration", "brier")
    counts = dataclasses.replace(tables, **{name: np.zeros_like(getattr(tables, name)) for name in names})
    figures = compute_figures(counts)
    assert figures["auc"].reason == "the tables hold no scores"
    assert figures["classwise_ece"].reason == "it is not told class by class"
    assert {figures[key].reason for key in ("ece", "mce", "brier")} == {"it is told for whole sites only"}
    assert figures["accuracy"].value == compute_figures(tables)["accuracy"].value


def test_the_area_of_one_site_is_that_of_its_images():
    """Histograms are good enough here, and off all the same."""
    logits, labels = draw_predictions(300, shares=(0.5, 0.5))
    tables = tables_from_logits(logits / 4, labels, ["a"] * 300)
    exact = oracle.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    binned = compute_figures(dataclasses.replace(tables, areas=np.zeros_like(tables.areas)))["auc"]
    found = compute_figures(tables)["auc"]
    assert (found.value, found.bound, found.n) == (pytest.approx(exact), None, 300)
    assert 1e-5 < abs(binned.value - exact) < binned.bound < 0.05

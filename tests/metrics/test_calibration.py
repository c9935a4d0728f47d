import numpy as np
import pytest
import torch

from fedmed.metrics.calibration import reliability
from fedmed.metrics.classification import compute_figures
from fedmed.metrics.tables import tables_from_logits
from tests.metrics.support.samples import draw_predictions, draw_tables


def binned_loop(confidence, correct):
    """ECE and MCE as a loop over the bins."""
    ece, mce = 0.0, 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            ece, mce = ece + inside.mean() * gap, max(mce, gap)
    return ece, mce


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_figures_equal_the_binned_loop(temperature):
    logits, labels = draw_predictions(700, seed=2, temperature=temperature)
    p, y = torch.softmax(logits, dim=1).numpy(), labels.numpy()
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    figures = compute_figures(tables_from_logits(logits, labels, ["a"] * 700))
    ece, mce = binned_loop(confidence, correct)
    assert figures["ece"].value == pytest.approx(ece, abs=1e-12)
    assert figures["mce"].value == pytest.approx(mce, abs=1e-12)
    assert figures["brier"].value == pytest.approx(np.square(p - np.eye(7)[y]).sum(axis=1).mean(), abs=1e-12)


def test_a_perfect_model_has_no_error():
    labels = torch.arange(4).repeat(5)
    figures = compute_figures(tables_from_logits(torch.eye(4)[labels] * 1000, labels, ["a"] * 20))
    for key in ("ece", "mce", "brier"):
        assert figures[key].value == 0
    assert figures["classwise_ece"].value < 1e-5  # the outermost scores are open bins


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_class_wise_error_looks_at_the_probability_of_each_class_over_all_images(temperature):
    """The histogram's bins of log-odds are near the equal bins of the probability; a calibrated model has about 0."""
    logits, labels = draw_predictions(20000, seed=2, temperature=temperature)
    p, y = torch.softmax(logits, dim=1).numpy(), labels.numpy()
    found = compute_figures(tables_from_logits(logits, labels, ["a"] * len(y)))["classwise_ece"]
    expected = [binned_loop(p[:, k], y == k)[0] for k in range(7)]
    assert found.by_class == pytest.approx(expected, abs=0.004)
    assert found.value == pytest.approx(np.mean(found.by_class), abs=1e-12)
    assert (found.value < 0.006) == (temperature == 1.0)


@pytest.mark.parametrize("num_classes", [2, 3, 8])
def test_the_brier_score_of_uniform_answers(num_classes):
    """(1 - 1/K)^2 + (K - 1) / K^2 = 1 - 1/K."""
    labels = torch.arange(num_classes)
    tables = tables_from_logits(torch.zeros(num_classes, num_classes), labels, ["a"] * num_classes)
    figures = compute_figures(tables)
    assert figures["brier"].value == pytest.approx(1 - 1 / num_classes, abs=1e-15)
    assert figures["ece"].value == pytest.approx(0, abs=1e-15)  # 1/K right with confidence 1/K


def test_the_worst_model_reaches_the_largest_brier_score():
    logits = torch.tensor([[1000.0, 0.0]] * 3)
    figures = compute_figures(tables_from_logits(logits, torch.ones(3, dtype=torch.int64), ["a"] * 3))
    assert figures["brier"].value == 2
    assert figures["ece"].value == figures["mce"].value == 1


def test_reliability_points_by_hand():
    """Confidences 0.8, 0.8 (one right) in bin 11 and 0.5 (wrong) in bin 7, over two groups."""
    logits = torch.tensor([[4.0, 1.0], [4.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    points = reliability(tables_from_logits(logits, torch.tensor([0, 1, 1]), ["a", "b", "b"]))
    np.testing.assert_array_equal(points["n"], np.eye(15)[11] * 2 + np.eye(15)[7])
    assert points["confidence"][[7, 11]] == pytest.approx([0.5, 0.8])
    assert points["accuracy"][[7, 11]] == pytest.approx([0.0, 0.5])
    assert np.isnan(np.delete(points["accuracy"], [7, 11])).all()


def test_reliability_agrees_with_the_ece():
    tables = draw_tables(300)
    points = reliability(tables)
    gaps = np.abs(points["accuracy"] - points["confidence"])
    expected = np.nansum(points["n"] / 300 * gaps)
    assert compute_figures(tables)["ece"].value == pytest.approx(expected, abs=1e-12)

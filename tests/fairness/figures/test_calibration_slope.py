"""Calibration slope and intercept against scikit-learn and scipy, and where they do not exist."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from fedmed.fairness.figures.calibration_slope import find_log_odds, fit_calibration_slope
from fedmed.metrics.clusters import count_clusters
from fedmed.metrics.tables import CALIBRATION_BINS, EvaluationTables, calibration_bins, tables_from_logits
from fedmed.metrics.values import Array


def make_tables(confidence_N: Array, right_N: Array) -> EvaluationTables:
    """Return tables of one class of two; each image is in the bin of its confidence."""
    table = np.zeros((1, 2, CALIBRATION_BINS, 3))
    for column, values in enumerate((np.ones(len(right_N)), confidence_N, right_N)):
        np.add.at(table[0, 0, :, column], calibration_bins(confidence_N), values)
    right = int(right_N.sum())
    counts = np.array([[[right, len(right_N) - right], [0, 0]]])
    return EvaluationTables.make(("all",), 2, counts=counts, calibration=table)


def draw(slope: float, intercept: float, num_images: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    confidence_N = rng.uniform(0.5, 0.99, num_images)
    chance_N = 1 / (1 + np.exp(-(intercept + slope * find_log_odds(confidence_N))))
    return confidence_N, (rng.random(num_images) < chance_N).astype(np.float64)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, 0.3), (1.8, -0.4)])
def test_fit_is_scikit_learns_on_expanded_data(slope: float, intercept: float) -> None:
    """Every image with the log-odds of its bin's mean confidence; standard errors from the likelihood's curvature."""
    confidence_N, right_N = draw(slope, intercept, 400, seed=3)
    fitted = fit_calibration_slope(make_tables(confidence_N, right_N))
    bins_N = calibration_bins(confidence_N)
    x_N = np.array([find_log_odds(confidence_N[bins_N == b].mean()) for b in bins_N])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(x_N[:, None], right_N)
    assert fitted.slope is not None
    assert fitted.intercept is not None
    assert fitted.in_the_large is not None
    assert fitted.slope.value == pytest.approx(model.coef_[0, 0], abs=1e-6)
    assert fitted.intercept.value == pytest.approx(model.intercept_[0], abs=1e-6)
    p_N = model.predict_proba(x_N[:, None])[:, 1]
    design = np.stack([np.ones_like(x_N), x_N], axis=1)
    covariance = np.linalg.inv(design.T @ (design * (p_N * (1 - p_N))[:, None]))
    assert fitted.slope.standard_error == pytest.approx(covariance[1, 1] ** 0.5, rel=1e-5)
    assert fitted.intercept.standard_error == pytest.approx(covariance[0, 0] ** 0.5, rel=1e-5)
    assert fitted.slope.interval[1] - fitted.slope.value == pytest.approx(1.959964 * covariance[1, 1] ** 0.5, rel=1e-5)

    def loss(a: Array) -> float:
        eta_N = a[0] + x_N
        return float((np.logaddexp(0, eta_N) - right_N * eta_N).sum())

    best = minimize(loss, [0.0], method="BFGS", options={"gtol": 1e-8})
    assert fitted.in_the_large.value == pytest.approx(best.x[0], abs=1e-5)
    assert (fitted.n, fitted.num_bins) == (400, len(set(bins_N)))


@pytest.mark.parametrize(
    ("confidence", "right", "reason"),
    [
        ([0.6, 0.6, 0.6], [1, 0, 1], "all images are in one bin"),
        ([0.6, 0.9], [1, 1], "all answers are right"),
        ([0.6, 0.9], [0, 0], "all answers are wrong"),
        ([0.6, 0.8, 0.9], [0, 0, 1], "right and wrong answers do not overlap"),
        ([0.6, 0.8, 0.8, 0.9], [0, 0, 1, 1], "right and wrong answers do not overlap"),  # one bin holds both
        ([0.6, 0.8, 0.9], [1, 1, 0], "right and wrong answers do not overlap"),
    ],
)
def test_where_there_is_no_slope(confidence: list[float], right: list[int], reason: str) -> None:
    fitted = fit_calibration_slope(make_tables(np.array(confidence), np.array(right, dtype=np.float64)))
    assert (fitted.slope, fitted.intercept, fitted.reason) == (None, None, reason)
    assert (fitted.in_the_large is None) == (len(set(right)) == 1)


def test_no_bins() -> None:
    hidden = dataclasses.replace(
        make_tables(np.array([0.6, 0.9]), np.array([0.0, 1.0])), calibration=np.zeros((1, 2, CALIBRATION_BINS, 3))
    )
    assert fit_calibration_slope(hidden).reason == "its bins are not told"
    assert fit_calibration_slope(EvaluationTables.make(("all",), 2)).reason == "no images"


def test_images_without_their_class_count() -> None:
    confidence_N, right_N = draw(1.0, 0.0, 60, seed=0)
    told = make_tables(confidence_N, right_N)
    mixed = dataclasses.replace(told, calibration=np.zeros_like(told.calibration), mixed=told.calibration.sum(axis=1))
    assert fit_calibration_slope(mixed) == fit_calibration_slope(told)


def test_certain_model_has_finite_numbers() -> None:
    """Logits that spread over hundreds: every confidence is 1, and some answers are wrong."""
    logits = torch.tensor([[400.0, 0.0]] * 30 + [[0.1, 0.0]] * 30, dtype=torch.float64)
    labels = torch.tensor([0] * 25 + [1] * 5 + [0] * 16 + [1] * 14)
    fitted = fit_calibration_slope(tables_from_logits(logits, labels, ["all"] * 60))
    assert fitted.slope is not None
    assert 0 < fitted.slope.value < 0.3


def test_several_images_a_patient_make_it_wider() -> None:
    """Twenty patients with nine images, all answered alike: an image is worth a ninth, an error three times as long."""
    rng, patient_N = np.random.default_rng(1), np.repeat(np.arange(20), 9)
    confidence_N, right_N = rng.uniform(0.5, 0.99, 180), (rng.random(20) < 0.7).astype(np.float64)[patient_N]
    tables = make_tables(confidence_N, right_N)
    clusters = count_clusters(np.zeros(180, np.int64), patient_N, right_N > 0, 2)[None]
    alone, clustered = (fit_calibration_slope(one) for one in (tables, dataclasses.replace(tables, patients=clusters)))
    assert alone.slope is not None
    assert clustered.slope is not None
    assert clustered.slope.standard_error == pytest.approx(3 * alone.slope.standard_error)


@pytest.mark.ci
@pytest.mark.parametrize("slope", [0.6, 1.0, 1.5])
def test_intervals_hold_the_truth(slope: float) -> None:
    held = {"slope": 0, "intercept": 0}
    for seed in range(300):
        fitted = fit_calibration_slope(make_tables(*draw(slope, 0.2, 200, seed)))
        assert fitted.slope is not None
        assert fitted.intercept is not None
        held["slope"] += fitted.slope.interval[0] <= slope <= fitted.slope.interval[1]
        held["intercept"] += fitted.intercept.interval[0] <= 0.2 <= fitted.intercept.interval[1]
    assert min(held.values()) >= 0.92 * 300, held

"""Calibration slope and intercept, from the bins of confidence that sites tell.

The answer "the first choice is right" is explained by how sure the model says it is: ``logit P(right) = a + b logit c``
for the mean confidence c of a bin. An honest model has b = 1 and a = 0; b < 1 is a model that is too sure of itself
where it is sure and not sure enough where it is not, b > 1 one that spreads its confidence too little (Cox, Two Further
Applications of a Model for Binary Regression, Biometrika 45, 1958; Van Calster et al., Journal of Clinical Epidemiology
74, 2016).

Letters: B bins.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fedmed.fairness.figures.design_effects import find_pooled_effect
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array

SUREST = 1 - 1e-6
"""Largest confidence that counts as such, since that of 1 has no log-odds; likewise at the other end."""
_STEPS = 100
_CLOSE = 1e-10


@dataclass(frozen=True)
class Estimate:
    """A coefficient with its standard error and its interval."""

    value: float
    standard_error: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class CalibrationSlope:
    """The fit, as far as it exists.

    Attributes
    ----------
    n, num_bins : int
        Images, and bins with images.
    slope, intercept : Estimate or None
        b and a, fitted together.
    in_the_large : Estimate or None
        a where b is held at 1: above 0 the model is not sure enough on the whole, below 0 it is too sure.
    reason : str or None
        Why something is None.
    """

    n: int
    num_bins: int
    slope: Estimate | None = None
    intercept: Estimate | None = None
    in_the_large: Estimate | None = None
    reason: str | None = None


def fit_calibration_slope(tables: EvaluationTables, level: float = 0.95) -> CalibrationSlope:
    """Fit a logistic regression of right answers on the log-odds of the confidence, to the bins of tables.

    Parameters
    ----------
    tables : EvaluationTables
        Any number of groups; their bins are put together, of images without their class, too.
    level : float
        Between 0 and 1.

    Returns
    -------
    CalibrationSlope
        Without slope and intercept where they do not exist: no images, all answers right or all wrong, one bin, or a
        confidence that divides right answers from wrong ones. Without any number where no bin is told.

    Notes
    -----
    Maximum likelihood by iteratively reweighted least squares over B binomial counts; standard errors from the inverse
    information, intervals normal. A bin stands for its images with their mean confidence. Where patients have several
    images, standard errors are longer by the root of the design effect of right answers.
    """
    table = tables.calibration.sum(axis=(0, 1)) + tables.mixed.sum(axis=0)
    n_B, confidence_B, right_B = (column[table[:, 0] > 0.5] for column in table.T)
    n, num_bins = round(float(n_B.sum())), len(n_B)
    if not num_bins:
        return CalibrationSlope(0, 0, reason="its bins are not told" if tables.num_images else "no images")
    x_B = find_log_odds(confidence_B / n_B)
    right_B = np.clip(right_B, 0.0, n_B)
    right = float(right_B.sum())
    if right <= 0 or right >= float(n_B.sum()):
        return CalibrationSlope(n, num_bins, reason=f"all answers are {'right' if right > 0 else 'wrong'}")
    stretch = find_pooled_effect(tables) ** 0.5
    large = _fit(np.ones((num_bins, 1)), x_B, n_B, right_B)
    in_the_large = None if large is None else _make_estimates(*large, stretch, level)[0]
    if num_bins == 1 or _is_separated(x_B, n_B, right_B):
        reason = "all images are in one bin" if num_bins == 1 else "right and wrong answers do not overlap"
        return CalibrationSlope(n, num_bins, in_the_large=in_the_large, reason=reason)
    both = _fit(np.stack([np.ones(num_bins), x_B], axis=1), np.zeros(num_bins), n_B, right_B)
    if both is None:
        return CalibrationSlope(n, num_bins, in_the_large=in_the_large, reason="the fit does not come to an end")
    intercept, slope = _make_estimates(*both, stretch, level)
    return CalibrationSlope(n, num_bins, slope, intercept, in_the_large)


def find_log_odds(confidence: Array) -> Array:
    """Return ``log c / (1 - c)`` of confidences, which are kept off 0 and 1."""
    kept = np.clip(confidence, 1 - SUREST, SUREST)
    odds: Array = np.log(kept) - np.log1p(-kept)
    return odds


def _is_separated(x_B: Array, n_B: Array, right_B: Array) -> bool:
    """Return whether a confidence divides right answers from wrong ones, so that the largest likelihood is nowhere."""
    with_right, with_wrong = x_B[right_B > 0], x_B[right_B < n_B]
    return bool(with_wrong.max() <= with_right.min() or with_right.max() <= with_wrong.min())


def _fit(design_BP: Array, offset_B: Array, n_B: Array, right_B: Array) -> tuple[Array, Array] | None:
    """Return the coefficients and their covariances; None if the steps do not come to an end."""
    beta_P = np.zeros(design_BP.shape[1])
    for _ in range(_STEPS):
        eta_B = np.clip(offset_B + design_BP @ beta_P, -30, 30)
        mean_B = 1 / (1 + np.exp(-eta_B))
        information_PP = design_BP.T @ (design_BP * (n_B * mean_B * (1 - mean_B))[:, None])
        try:
            step_P = np.linalg.solve(information_PP, design_BP.T @ (right_B - n_B * mean_B))
            covariance_PP = np.linalg.inv(information_PP)
        except np.linalg.LinAlgError:
            return None
        # A step that is too long leaves the place where the curvature holds.
        beta_P = beta_P + step_P / max(1.0, float(np.abs(step_P).max()) / 2)
        if float(np.abs(step_P).max()) < _CLOSE * (1 + float(np.abs(beta_P).max())):
            return beta_P, covariance_PP
    return None


def _make_estimates(beta_P: Array, covariance_PP: Array, stretch: float, level: float) -> list[Estimate]:
    z = NormalDist().inv_cdf((1 + level) / 2)
    errors_P = stretch * np.sqrt(np.diagonal(covariance_PP))
    return [
        Estimate(value, error, (value - z * error, value + z * error))
        for value, error in zip(beta_P.tolist(), errors_P.tolist(), strict=True)
    ]

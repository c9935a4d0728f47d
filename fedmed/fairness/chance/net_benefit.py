"""The interval of a net benefit, from the numbers of right and of false alerts."""

from dataclasses import dataclass

import numpy as np

from fedmed.fairness.chance.proportions import proportion_interval


@dataclass(frozen=True)
class AlertCounts:
    """Images with and without an alert class, and how many of them raise an alert: right ones and false ones."""

    n_with: int
    right: int
    n_without: int
    false: int


def bound_net_benefit(
    counts: AlertCounts, threshold: float, effects: tuple[float, float, float] = (1.0, 1.0, 1.0), level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of the net benefit of alerts.

    Parameters
    ----------
    counts : AlertCounts
        At least one image of either kind.
    threshold : float
        Probability t from which on an image raises an alert.
    effects : (float, float, float)
        Design effects, at least 1: of the images with an alert class, of those without, and of which images are of an
        alert class at all. The last one is the mean number of images of an image's patient, since a patient's images
        are mostly of the same kind.
    level : float
        Between 0 and 1.

    Returns
    -------
    (float, float) or None
        None without images of either kind.

    Notes
    -----
    With prevalence c, sensitivity p, specificity q and odds w = t / (1 - t) the net benefit is
    ``c p - (1 - c) (1 - q) w`` (Vickers and Elkin, Medical Decision Making 26, 2006). Images are taken to come as they
    do, so that the prevalence is estimated, too. Each of the three has the interval of
    :func:`fedmed.fairness.chance.proportions.proportion_interval`, and each end is as far from the net benefit as the
    root of the sum of squares of their distances, times ``c``, ``(1 - c) w`` and ``p + (1 - q) w`` (Zou and Donner,
    Statistics in Medicine 27, 2008; the delta method, with ends that allow for few images).
    """
    if not counts.n_with or not counts.n_without:
        return None
    odds, total = threshold / (1 - threshold), counts.n_with + counts.n_without
    right = np.array([counts.right, counts.n_without - counts.false, counts.n_with], np.float64)
    n = np.array([counts.n_with, counts.n_without, total], np.float64)
    low, high = proportion_interval(right / np.array(effects), n / np.array(effects), level)
    sensitivity, specificity, prevalence = share = right / n
    slopes = np.array([prevalence, (1 - prevalence) * odds, sensitivity + (1 - specificity) * odds])
    value = prevalence * sensitivity - (1 - prevalence) * (1 - specificity) * odds
    below, above = (float(np.sqrt(np.square(slopes * (share - end)).sum())) for end in (low, high))
    # An alert for no image and one for every image, of any prevalence, lie between these.
    return max(float(value) - below, -odds), min(float(value) + above, 1.0)

"""The operating point as a model's manifest holds it."""

from typing_extensions import TypedDict

from fedmed.clinical.values import to_probability
from fedmed.formats import OPERATING_POINT
from fedmed.storage.records import OperatingRecord


class ReachedEntry(TypedDict):
    """What the threshold was chosen on, and what was reached there at least."""

    n_with: int
    """Validation images of an alert class."""
    n_without: int
    sensitivity: float | None
    specificity: float | None


class OperatingEntry(TypedDict):
    """From which alert score on the model raises an alert, and how that was chosen."""

    alert_classes: list[str]
    threshold: float
    """Log-odds of the probability of these classes together, after the temperature."""
    probability: float
    """The same as a probability."""
    stated_sensitivity: float | None
    cost_ratio: float | None
    prevalence: float | None
    """Stated for the model's use."""
    validation: ReachedEntry


def describe_operating_point(chosen: OperatingRecord | None) -> OperatingEntry | None:
    """Return from which score on a model raises an alert; None where it raises none."""
    threshold = None if chosen is None else chosen["threshold"]
    if chosen is None or threshold is None:
        return None
    return {
        "alert_classes": chosen["alert_classes"],
        "threshold": threshold,
        "probability": to_probability(threshold),
        "stated_sensitivity": chosen["stated_sensitivity"],
        "cost_ratio": chosen["cost_ratio"],
        "prevalence": chosen["prevalence"],
        "validation": {
            "n_with": chosen["n_with"],
            "n_without": chosen["n_without"],
            "sensitivity": chosen["sensitivity"],
            "specificity": chosen["specificity"],
        },
    }


def read_operating_entry(told: OperatingEntry | None) -> OperatingRecord | None:
    """Return what :func:`describe_operating_point` was given, as far as it tells; None for None.

    What has no value may be missing in an entry that was read from a file.
    """
    if told is None:
        return None
    reached = told["validation"]
    return {
        "format": OPERATING_POINT.number,
        "model_sha256": "",
        "alert_classes": told["alert_classes"],
        "stated_sensitivity": told.get("stated_sensitivity"),
        "cost_ratio": told.get("cost_ratio"),
        "prevalence": told.get("prevalence"),
        "threshold": told["threshold"],
        "n_with": reached["n_with"],
        "n_without": reached["n_without"],
        "sensitivity": reached["sensitivity"],
        "specificity": reached["specificity"],
        "note": None,
        "sites": [],
        "doubts": [],
    }


def say_operating_point(point: OperatingEntry, names: str) -> str:
    """Return what the operating point means, for a model card.

    Parameters
    ----------
    point : OperatingEntry
        Of the manifest.
    names : str
        The alert classes, as they are safe to show.
    """
    reached, stated, prevalence = point["validation"], point.get("stated_sensitivity"), point.get("prevalence")
    goal = f"the stated sensitivity of {stated:g}" if stated else f"a cost ratio of {point.get('cost_ratio') or 0:g}"
    where = f" It is meant for patients of whom a share of {prevalence:g} has such a class." if prevalence else ""
    return (
        f"`predict.py` writes `yes` in the column `alert` where {names} together have a probability of at least "
        f"{point['probability']:.3f} (log-odds {point['threshold']:.1f}). That operating point was chosen on "
        f"validation images only, for {goal}: of {reached['n_with']:,} images with such a class a share of at least "
        f"{reached['sensitivity'] or 0:.3f} had an alert, and of {reached['n_without']:,} others a share of at least "
        f"{reached['specificity'] or 0:.3f} had none. No alert does not mean that nothing is there: the report says "
        f"how many are missed at each site and in each group.{where}"
    )

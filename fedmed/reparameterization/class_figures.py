"""Figures of train form and deploy form on the same images, class by class."""

from typing import TypedDict

from torch import Tensor

from fedmed.metrics.classification import compute_figures
from fedmed.metrics.tables import tables_from_logits
from fedmed.reparameterization.proof import paired_table

OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece")


class FormFigures(TypedDict):
    """Figures of one form: each by class, None where it is undefined, and ``figures`` of all classes."""

    sensitivity: list[float | None]
    specificity: list[float | None]
    macro_precision: list[float | None]
    macro_f1: list[float | None]
    figures: dict[str, float | None]


class PerClass(TypedDict):
    """Figures of both forms, and K rows of images right in both forms, only before, only after, in neither."""

    paired: list[list[int]]
    before: FormFigures
    after: FormFigures


def figures_before_and_after(labels: Tensor, before: Tensor, after: Tensor) -> PerClass:
    """Return the figures of both forms, by class and overall, and the paired table."""
    return {
        "paired": paired_table(labels, before, after),
        "before": _compute_form_figures(labels, before),
        "after": _compute_form_figures(labels, after),
    }


def _compute_form_figures(labels: Tensor, logits: Tensor) -> FormFigures:
    figures = compute_figures(tables_from_logits(logits, labels, ["all"] * len(labels)))
    return {
        "sensitivity": list(figures["sensitivity"].by_class or ()),
        "specificity": list(figures["specificity"].by_class or ()),
        "macro_precision": list(figures["macro_precision"].by_class or ()),
        "macro_f1": list(figures["macro_f1"].by_class or ()),
        "figures": {key: figures[key].value for key in OVERALL},
    }

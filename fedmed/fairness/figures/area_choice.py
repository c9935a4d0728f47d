"""Which areas under ROC curves groups are compared by: those of the images themselves, or those of histograms.

Images themselves are compared within sites only, which of a group of one site is all that there is to compare. Areas of
histograms take two scores in one bin for a tie; where that may be more than
:data:`fedmed.metrics.answer_ranges.MOST_OFF` off in a group, a gap between groups would be one of bins.
"""

from typing import Literal

import numpy as np

from fedmed.fairness.figures.class_sets import find_class_set
from fedmed.metrics.answer_ranges import MOST_OFF
from fedmed.metrics.areas import PAIRS
from fedmed.metrics.evaluation import EvaluationTables
from fedmed.metrics.roc import area_bounds, compare_all_pairs, split_scores

AreaChoice = Literal["images", "histograms"]


def choose_areas(known: EvaluationTables) -> AreaChoice | None:
    """Return from what the areas of all groups are taken, ``None`` where neither is good enough.

    Parameters
    ----------
    known : EvaluationTables
        Of the groups that are compared.

    Notes
    -----
    In this order: areas of the images themselves, where they compare all pairs of images of every compared group;
    histograms, where no class is too far off in any of these groups or in all together; areas of the images themselves,
    where every compared group tells them.
    """
    kept = find_class_set(known.row_images).groups
    told = find_class_set(known.areas[..., PAIRS]).groups
    if told.any() and (told >= kept).all() and compare_all_pairs(known)[kept].all():
        return "images"
    if known.scores.any() and are_fine(known):
        return "histograms"
    return "images" if told.any() and (told >= kept).all() else None


def explain_absence(known: EvaluationTables) -> str:
    """Return why groups have no area to compare."""
    if known.scores.any() and not are_fine(known):
        return "the histograms of the scores are too coarse for this model"
    return "the tables hold no scores"


def are_fine(known: EvaluationTables) -> bool:
    """Return whether no area of the histograms may be too far off, of the compared groups and of all together."""
    own, others = split_scores(known.scores)
    chosen = find_class_set(own.sum(axis=-1))
    own, others = own[chosen.groups], others[chosen.groups]
    bounds = np.vstack([area_bounds(own, others), area_bounds(own.sum(axis=0), others.sum(axis=0))[None]])
    return not (bounds[:, chosen.classes] > MOST_OFF).any()

"""Whether all tables of one site's answer fit together, and what was asked: at the server's door.

A site may send anything. What passes here is about the attributes and crossings of the plan, with few enough groups
that all later work is short, and no table contradicts another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedmed.config import FairnessConfig
from fedmed.errors import tame
from fedmed.fairness.disclosure.pooled_groups import CROSSING
from fedmed.metrics.plausible import find_implausible
from fedmed.metrics.site_tables import FEDERATED, SITE_ATTRIBUTE, PairedTables, SiteTables
from fedmed.metrics.tables import SCORE_BINS, EvaluationTables
from fedmed.metrics.values import Array

MOST_VALUES = 64
"""Groups of an attribute; a hospital's own check allows 50."""
MOST_CROSSED = 256
"""Groups of a crossing."""
_MOST_GROUPS = 8000
"""In all tables of an answer together."""
_SPARE_BYTES = 2**20
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Asked:
    """What a site was asked for."""

    site: str
    num_classes: int
    most_images: int
    """That the site has declared for this part."""
    fairness: FairnessConfig = field(default_factory=FairnessConfig)
    """Of the plan."""


def find_most_bytes(num_classes: int) -> int:
    """Return how many bytes an answer with tables may have; looked at before it is unpacked."""
    of_class = num_classes * (SCORE_BINS + 1) + 15 * 3 + 8
    return min(_MOST_BYTES, _SPARE_BYTES + _MOST_GROUPS * 8 * (num_classes * of_class + 64))


def find_contradiction(tables: SiteTables, asked: Asked) -> str | None:
    """Return what cannot be true of an answer or was not asked for, as a sentence, or None.

    Parameters
    ----------
    tables : SiteTables
        As they arrived.
    asked : Asked
        What they should be.
    """
    reference = tables.models[FEDERATED]
    for model, by_attribute in tables.models.items():
        for attribute, own in by_attribute.items():
            problem = (
                _find_not_asked(attribute, own.groups, tables, asked)
                or _find_wrong_size(own, attribute, asked)
                or find_implausible(own.to_arrays(), asked.most_images)
                or _find_other_images(own, reference.get(attribute), model)
            )
            if problem is not None:
                return f"{problem} (model '{model}', attribute '{tame(attribute, 60)}')"
    for attribute, own in reference.items():
        if not reference[SITE_ATTRIBUTE].withheld.any() and own.num_images > tables.site.num_images:
            return f"The tables by '{tame(attribute, 60)}' count more images than those of the whole site."
    return _find_wrong_pairs(tables, asked)


def _find_not_asked(attribute: str, groups: tuple[str, ...], tables: SiteTables, asked: Asked) -> str | None:
    """Return what is wrong with the name of an attribute, or with the number of its groups."""
    wanted = asked.fairness
    most = MOST_CROSSED if CROSSING in attribute else MOST_VALUES
    if len(groups) > most:
        return f"There are {len(groups)} groups; at most {most} can be told apart."
    if attribute == SITE_ATTRIBUTE:
        return None
    if attribute not in tables.attributes:
        return "The models are told by different attributes."
    parts = attribute.split(CROSSING)
    known = set(tables.attributes) - {SITE_ATTRIBUTE} if wanted.attributes is None else {*wanted.attributes}
    if len(parts) == 1:
        return None if attribute in known else "The plan does not ask for this attribute."
    if not set(parts) <= known & {*tables.attributes} or len(set(parts)) < len(parts):
        return "It crosses an attribute that is not told, or one twice."
    if wanted.intersections == "pairs":
        is_asked = len(parts) == 2
    else:
        is_asked = wanted.intersections != "none" and parts in [list(crossing) for crossing in wanted.intersections]
    return None if is_asked else "The plan does not ask for this crossing."


def _find_wrong_size(tables: EvaluationTables, attribute: str, asked: Asked) -> str | None:
    if tables.num_classes != asked.num_classes:
        return f"The tables have {tables.num_classes} classes and the plan has {asked.num_classes}."
    if attribute == SITE_ATTRIBUTE and not set(tables.groups) <= {asked.site}:
        return "The tables are not of this site."
    return None


def _find_other_images(own: EvaluationTables, reference: EvaluationTables | None, model: str) -> str | None:
    """Return a sentence if a model's tables are about other rows than those of the federated one."""
    if model == FEDERATED or reference is None:
        return None
    if own.groups != reference.groups or (_count_rows(own) != _count_rows(reference)).any():
        return "The tables are about other images than those of the federated model."
    return None


def _count_rows(tables: EvaluationTables) -> Array:
    arrays: Mapping[str, Array] = tables.to_arrays()
    rows: Array = arrays["counts"].sum(axis=-1) + arrays.get("other_wrong", 0)
    return rows


def _find_wrong_pairs(tables: SiteTables, asked: Asked) -> str | None:
    for model, by_attribute in tables.paired.items():
        for attribute, paired in by_attribute.items():
            arrays = {"cells": paired.cells, **({"spread": paired.spread} if hasattr(paired, "spread") else {})}
            federated, other = (tables.models.get(name, {}).get(attribute) for name in (FEDERATED, model))
            problem = find_implausible(arrays, asked.most_images)
            if problem is None and (
                federated is None or other is None or not _fit(paired, federated, other, asked.num_classes)
            ):
                problem = "The paired tables do not fit the tables of the two models"
            if problem is not None:
                return f"{problem} (model '{model}', attribute '{tame(attribute, 60)}')"
    return None


def _fit(paired: PairedTables, federated: EvaluationTables, other: EvaluationTables, num_classes: int) -> bool:
    """Return whether paired tables are of images that the tables of both models count, and right as often."""
    if paired.groups != federated.groups or paired.groups != other.groups or paired.cells.shape[1] != num_classes:
        return False
    right, other_right = (np.diagonal(one.counts, axis1=1, axis2=2) for one in (federated, other))
    return bool(
        (paired.cells.sum(axis=(2, 3)) <= _count_rows(federated)).all()
        and (paired.cells[:, :, 1].sum(axis=-1) <= right).all()
        and (paired.cells[:, :, :, 1].sum(axis=-1) <= other_right).all()
    )

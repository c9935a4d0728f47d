"""Small numbers: the tables of a site as they leave it.

A table can still identify somebody: the score histogram of a (group, true class) row with a single image *is* that
patient's vector of probabilities. So the unit of disclosure is the row. Which rows may leave is decided in
:mod:`fedmed.fairness.disclosure.rows`; here the others are left out of all tables before anything is counted, since
sums such as the Brier score cannot be taken apart afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.row_span import Mask
from fedmed.fairness.disclosure.rows import AttributePlan, Disclosure, DisclosurePlan, plan_disclosure
from fedmed.metrics.site_tables import FEDERATED, PAIRED_MODELS, PairedTables, SiteTables, combine_paired, make_paired
from fedmed.metrics.tables import (
    CALIBRATION_BINS,
    SCORE_BINS,
    Array,
    EvaluationTables,
    combine_tables,
    tables_from_logits,
)

__all__ = ["Disclosure", "counts_may_leave", "disclose_tables", "find_breach", "tell_everything"]


def disclose_tables(
    logits: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    groups: Mapping[str, Sequence[str]],
    plan: DisclosurePlan,
    disclosure: Disclosure,
) -> SiteTables:
    """Count what models answer on the images that may be counted.

    Parameters
    ----------
    logits : mapping of str to Tensor, each of shape (N,K)
        Output of each model, the federated one at least.
    labels : Tensor of integers, shape (N,)
        True classes.
    groups : mapping of str to sequence of str
        Attribute to the group of each image.
    plan : DisclosurePlan
        Which images are counted, made for these labels and groups.
    disclosure : Disclosure
        Whether scores may leave.

    Returns
    -------
    SiteTables
        All models by all attributes, with every group that has images; and paired tables for every model with which
        the federated one is compared.
    """
    y_N = labels.numpy()
    # As tables_from_logits chooses the class: of equal logits the first, which torch does not promise.
    right = {model: z_NK.double().numpy().argmax(axis=1) == y_N for model, z_NK in logits.items()}
    num_classes = logits[FEDERATED].shape[1]
    compared = [model for model in PAIRED_MODELS if model in logits]
    return SiteTables(
        models={
            model: {
                attribute: _count(z_NK, labels, of_images, plan.attributes[attribute], disclosure.scores)
                for attribute, of_images in groups.items()
            }
            for model, z_NK in logits.items()
        },
        paired={
            model: {
                attribute: _pair(
                    right[FEDERATED], right[model], y_N, of_images, plan.attributes[attribute], num_classes
                )
                for attribute, of_images in groups.items()
            }
            for model in compared
        },
    )


def tell_everything(
    logits: Mapping[str, torch.Tensor], labels: torch.Tensor, groups: Mapping[str, Sequence[str]]
) -> SiteTables:
    """Return tables with nothing held back, which are not for leaving the site.

    Parameters
    ----------
    logits, labels, groups
        As for :func:`disclose_tables`.
    """
    items = [str(place) for place in range(len(labels))]
    return disclose_tables(logits, labels, groups, plan_disclosure(labels, groups, items, Disclosure()), Disclosure())


def counts_may_leave(counts: Sequence[int], disclosure: Disclosure) -> bool:
    """Return whether images of one group may be told class by class: none of the numbers is a small one."""
    total = sum(counts)
    return all(count == 0 or count >= disclosure.k_row for count in counts) and (total == 0 or total >= disclosure.k)


def find_breach(tables: SiteTables, disclosure: Disclosure, site: str) -> str | None:
    """Return what in tables must not leave, or None; the last look before they do.

    Parameters
    ----------
    tables : SiteTables
        About to leave.
    disclosure : Disclosure
        What may leave.
    site : str
        The site that they are of.
    """
    federated = tables.models[FEDERATED]
    if not set(federated[SITE_ATTRIBUTE].groups) <= {site}:
        return "they are of other groups than the site"
    if any(set(of_model) != set(federated) for of_model in (*tables.models.values(), *tables.paired.values())):
        return "their models are told by different attributes"
    for attribute, reference in federated.items():
        for of_model in tables.models.values():
            breach = _find_small(of_model[attribute], disclosure) or _find_other_images(
                of_model[attribute], reference, disclosure
            )
            if breach is not None:
                return breach
        for model, paired in tables.paired.items():
            if model not in tables.models or not _fit(paired[attribute], reference, tables.models[model][attribute]):
                return "the tables are about different images"
    return None


def _count(
    z_NK: torch.Tensor, labels: torch.Tensor, groups: Sequence[str], plan: AttributePlan, scores: bool
) -> EvaluationTables:
    names = sorted(set(groups))
    empty = _make_empty(names, z_NK.shape[1])
    rare = tables_from_logits(*_choose(plan.rare, z_NK, labels, groups))
    for position, name in enumerate(rare.groups):
        empty["rare"][names.index(name)] += rare.calibration[position].sum(axis=0)
    told = EvaluationTables(tuple(names), **empty)
    counted = tables_from_logits(*_choose(plan.counted, z_NK, labels, groups))
    if not scores:
        arrays = counted.to_arrays()
        counted = EvaluationTables(counted.groups, **(arrays | {"scores": np.zeros_like(arrays["scores"])}))
    withheld = empty["withheld"]
    for name, label in {(groups[i], int(labels[i])) for i in np.flatnonzero(~plan.counted).tolist()}:
        withheld[names.index(name), label] = 1
    total = combine_tables([told, counted])
    withheld[total.counts.sum(axis=-1) > 0] = 0  # of such a row, some images are set aside
    withheld[[names.index(name) for name in plan.whole]] = 1
    return EvaluationTables(total.groups, **(total.to_arrays() | {"withheld": withheld}))


def _pair(  # noqa: PLR0917
    right_N: Mask, other_N: Mask, y_N: Array, groups: Sequence[str], plan: AttributePlan, num_classes: int
) -> PairedTables:
    names = tuple(sorted(set(groups)))
    chosen = np.flatnonzero(plan.counted)
    counted = make_paired(
        right_N[chosen], other_N[chosen], y_N[chosen], [groups[place] for place in chosen.tolist()], num_classes
    )
    return combine_paired([PairedTables(names, np.zeros((len(names), num_classes, 2, 2), np.int64)), counted])


def _choose(
    inside_N: Mask, z_NK: torch.Tensor, labels: torch.Tensor, groups: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    chosen = np.flatnonzero(inside_N)
    index = torch.from_numpy(chosen)
    return z_NK[index], labels[index], [groups[place] for place in chosen.tolist()]


def _make_empty(names: Iterable[str], num_classes: int) -> dict[str, Array]:
    num_groups, k = len(list(names)), num_classes
    return {
        "counts": np.zeros((num_groups, k, k), np.int64),
        "scores": np.zeros((num_groups, k, k, SCORE_BINS), np.int64),
        "calibration": np.zeros((num_groups, k, CALIBRATION_BINS, 3)),
        "brier": np.zeros((num_groups, 3)),
        "rare": np.zeros((num_groups, CALIBRATION_BINS, 3)),
        "withheld": np.zeros((num_groups, k), np.int64),
    }


def _find_small(tables: EvaluationTables, disclosure: Disclosure) -> str | None:
    rows_GK, rare_G = tables.counts.sum(axis=-1), tables.rare[..., 0].sum(axis=-1)
    told_G = rows_GK.sum(axis=-1) + rare_G
    if ((rows_GK > 0) & (rows_GK < disclosure.k_row)).any():
        return f"a class has fewer than k_row = {disclosure.k_row} images"
    if ((rare_G > 0) & (rare_G < disclosure.k_row)).any():
        return f"the rare classes of a group have fewer than k_row = {disclosure.k_row} images"
    # Of a group that is large enough some rows may be held back; then it is larger than what is told of it.
    whole_G = ~(tables.withheld > 0).any(axis=-1)
    if (whole_G & (told_G > 0) & (told_G < disclosure.k)).any():
        return f"a group has fewer than k = {disclosure.k} images"
    if not disclosure.scores and tables.scores.any():
        return "they hold scores"
    if ((tables.withheld > 0) & (rows_GK > 0)).any() or tables.withheld.max(initial=0) > 1:
        return "they count a class that is withheld"
    return None


def _find_other_images(tables: EvaluationTables, reference: EvaluationTables, disclosure: Disclosure) -> str | None:
    """Return a word if the tables of a model do not agree on which images they are about."""
    rows_GK = tables.counts.sum(axis=-1)
    agree = (
        tables.groups == reference.groups
        and (rows_GK == reference.counts.sum(axis=-1)).all()
        and (tables.withheld == reference.withheld).all()
        and (tables.rare[..., 0].sum(axis=-1) == reference.rare[..., 0].sum(axis=-1)).all()
        and (tables.brier[:, 0] == rows_GK.sum(axis=-1)).all()
        and (tables.calibration[..., 0].sum(axis=-1) == rows_GK).all()
        and (not disclosure.scores or (tables.scores.sum(axis=-1)[..., 0] == rows_GK).all())
    )
    return None if agree else "the tables are about different images"


def _fit(paired: PairedTables, federated: EvaluationTables, other: EvaluationTables) -> bool:
    """Return whether paired tables are of the same images and right as often as the tables of both models."""
    if paired.groups != federated.groups or paired.cells.shape[1] != federated.num_classes:
        return False
    right, other_right = (np.diagonal(tables.counts, axis1=1, axis2=2) for tables in (federated, other))
    return bool(
        (paired.cells.sum(axis=(2, 3)) == federated.counts.sum(axis=-1)).all()
        and (paired.cells[:, :, 1].sum(axis=-1) == right).all()
        and (paired.cells[:, :, :, 1].sum(axis=-1) == other_right).all()
    )

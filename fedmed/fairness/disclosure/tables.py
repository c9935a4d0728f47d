"""Small numbers: the tables of a site as they leave it.

A table can still identify somebody: the score histogram of a (group, true class) row with a single image *is* that
patient's vector of probabilities. So the unit of disclosure is the row. Which rows may leave is decided in
:mod:`fedmed.fairness.disclosure.rows`; here the others are left out of all tables before anything is counted, since
sums such as the Brier score cannot be taken apart afterwards. What of the rest a hospital tells is in
:mod:`fedmed.fairness.disclosure.coarse`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedmed.clinical.scores import AlertScores
from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.breach import find_breach
from fedmed.fairness.disclosure.coarse import Grouped, pair_coarsely, tell_coarsely
from fedmed.fairness.disclosure.row_span import Mask
from fedmed.fairness.disclosure.rows import Disclosure, DisclosurePlan, plan_disclosure
from fedmed.metrics.site_tables import FEDERATED, PAIRED_MODELS, PairedTables, SiteTables
from fedmed.metrics.tables import EvaluationTables

__all__ = ["Disclosure", "counts_may_leave", "disclose_tables", "find_breach", "tell_everything"]


def disclose_tables(  # noqa: PLR0917
    logits: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    groups: Mapping[str, Sequence[str]],
    plan: DisclosurePlan,
    disclosure: Disclosure,
    patients: Sequence[str] | None = None,
    alerts: AlertScores | None = None,
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
        The thresholds, and whether what is made of scores may leave.
    patients : sequence of str, optional
        Whose image each is. Without, every image is taken for a patient's only one.
    alerts : AlertScores, optional
        Of the federated model; without, alerts are not asked for.

    Returns
    -------
    SiteTables
        All models by all attributes, and paired tables for every model with which the federated one is compared. Under
        thresholds above 1 with the groups of which anything is told, else with every group that has images. The same
        again for the same images, models and plan.
    """
    y_N = labels.numpy()
    # As tables_from_logits chooses the class: of equal logits the first, which torch does not promise.
    right = {model: z_NK.double().numpy().argmax(axis=1) == y_N for model, z_NK in logits.items()}
    num_classes = logits[FEDERATED].shape[1]
    images = {name: Grouped(name, labels, own, patients, plan.attributes[name]) for name, own in groups.items()}
    return SiteTables(
        models={
            model: {
                name: _count(z_NK, replace(own, alerts=alerts) if model == FEDERATED else own, disclosure)
                for name, own in images.items()
            }
            for model, z_NK in logits.items()
        },
        paired={
            model: {
                name: _pair(right[FEDERATED], right[model], own, num_classes, disclosure)
                for name, own in images.items()
            }
            for model in PAIRED_MODELS
            if model in logits
        },
    )


def tell_everything(
    logits: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    groups: Mapping[str, Sequence[str]],
    patients: Sequence[str] | None = None,
    alerts: AlertScores | None = None,
) -> SiteTables:
    """Return tables with nothing held back or rounded, which are not for leaving the site.

    Parameters
    ----------
    logits, labels, groups, patients, alerts
        As for :func:`disclose_tables`.
    """
    items = [str(place) for place in range(len(labels))]
    plan = plan_disclosure(labels, groups, items, Disclosure())
    return disclose_tables(logits, labels, groups, plan, Disclosure(), patients, alerts)


def counts_may_leave(counts: Sequence[int], disclosure: Disclosure) -> bool:
    """Return whether images of one group may be told class by class: none of the numbers is a small one."""
    total = sum(counts)
    return all(count == 0 or count >= disclosure.k_row for count in counts) and (total == 0 or total >= disclosure.k)


def _count(z_NK: torch.Tensor, images: Grouped, disclosure: Disclosure) -> EvaluationTables:
    if not disclosure.is_open:
        return tell_coarsely(z_NK, images, disclosure)
    exact = images.count(z_NK, images.plan.counted)
    if images.alerts is not None and images.attribute == SITE_ATTRIBUTE and exact.groups:
        decision = images.count_decisions(images.plan.counted, 1, 1)[None]
        exact = EvaluationTables(exact.groups, **(exact.to_arrays() | {"decision": decision}))
    if disclosure.scores:
        return exact
    hidden = {name: np.zeros_like(array) for name, array in exact.to_arrays().items() if name in ("scores", "areas")}
    return EvaluationTables(exact.groups, **(exact.to_arrays() | hidden))


def _pair(right_N: Mask, other_N: Mask, images: Grouped, num_classes: int, disclosure: Disclosure) -> PairedTables:
    if disclosure.is_open:
        return images.pair(right_N, other_N, images.plan.counted, num_classes)
    return pair_coarsely(right_N, other_N, images, num_classes)

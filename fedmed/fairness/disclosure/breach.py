"""The last look at a site's tables before they leave: whether anything in them must not.

It knows the numbers alone, not the images. So a fault of the counting is found whatever its cause.
"""

import numpy as np

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.disclosure.coarse import WHOLE
from fedmed.fairness.disclosure.rows import Disclosure
from fedmed.metrics.areas import OTHER_PATIENTS, OWN_PATIENTS, PAIRS
from fedmed.metrics.clusters import PATIENTS, SIZES
from fedmed.metrics.rounding import DIGITS, is_rounded
from fedmed.metrics.site_tables import FEDERATED, PairedTables, SiteTables
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array

DIFFERENT = "the tables are about different images"
DIGITS_LEFT = f"a sum over images has more than {DIGITS} digits"


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
            breach = _find_small(of_model[attribute], disclosure)
            if breach is None and not disclosure.is_open:
                breach = _find_fine(of_model[attribute], disclosure, attribute)
            if breach is None and not _is_of_same_images(of_model[attribute], reference, disclosure):
                breach = DIFFERENT
            if breach is not None:
                return breach
        for model, paired in tables.paired.items():
            if model not in tables.models or not _fit(
                paired[attribute], reference, tables.models[model][attribute], disclosure
            ):
                return DIFFERENT
            if not disclosure.is_open and not is_rounded(paired[attribute].spread):
                return DIGITS_LEFT
    return None


def _find_small(tables: EvaluationTables, disclosure: Disclosure) -> str | None:
    """Return which number of images is too small, or what of a row or group is told that must not be."""
    rows_GK, rare_G, k_row = tables.row_images, tables.rare[:, 0], disclosure.k_row
    told_G = rows_GK.sum(axis=-1) + rare_G
    # Of a group that is large enough some rows may be held back; then it is larger than what is told of it.
    whole_G = ~(tables.withheld > 0).any(axis=-1)
    return _name_first(
        (_is_between(rows_GK, k_row), f"a class has fewer than k_row = {k_row} images"),
        (
            not disclosure.is_open and _is_between(tables.patients[..., PATIENTS], k_row),
            f"a class has fewer than k_row = {k_row} patients",
        ),
        (_is_between(rare_G, k_row), f"the rare classes of a group have fewer than k_row = {k_row} images"),
        (_is_between(told_G * whole_G, disclosure.k), f"a group has fewer than k = {disclosure.k} images"),
        (
            ((tables.alerts[..., 0] > 0) & (tables.alerts[..., 0] != rows_GK)).any()
            or (disclosure.is_open and tables.alerts.any() and (tables.alerts[..., 0] != rows_GK).any()),
            "they tell alerts of other images than of a class",
        ),
        (not disclosure.scores and (tables.scores.any() or tables.areas.any()), "they hold scores"),
        (
            ((tables.withheld > 0) & (rows_GK > 0)).any() or tables.withheld.max(initial=0) > 1,
            "they count a class that is withheld",
        ),
        (
            not disclosure.is_open and ((tables.withheld == 0) & (rows_GK == 0)).any(),
            "they tell an empty class from one that is withheld",
        ),
        (not disclosure.is_open and (told_G == 0).any(), "they name a group of which nothing is told"),
    )


def _find_fine(tables: EvaluationTables, disclosure: Disclosure, attribute: str) -> str | None:
    """Return what is told in more detail than a hospital may, if anything is."""
    k_row, k_bin = disclosure.k_row, disclosure.k_bin
    wrong = tables.counts * ~np.eye(tables.num_classes, dtype=np.bool_)
    by_group = tables.mixed.any() or tables.brier.any() or tables.areas.any()
    decisions = tables.decision.sum(axis=-1)
    rounded = all(is_rounded(np.delete(getattr(tables, name), places, axis=-1)) for name, places in WHOLE.items())
    return _name_first(
        (_is_between(wrong, k_row), f"they tell fewer than k_row = {k_row} wrong answers class by class"),
        (tables.scores.any() or tables.calibration.any(), "they hold histograms by class"),
        (
            by_group and attribute != SITE_ATTRIBUTE and not disclosure.group_histograms,
            "they tell calibration, Brier score or AUC of groups",
        ),
        (_is_between(tables.mixed[..., 0], k_bin), f"a bin of confidence has fewer than k_bin = {k_bin} images"),
        (
            (tables.mixed[..., 1:].any(axis=-1) & (tables.mixed[..., 0] == 0)).any(),
            "an empty bin of confidence has a sum",
        ),
        (tables.decision.any() and attribute != SITE_ATTRIBUTE, "they tell alert scores of groups"),
        (
            _is_between(tables.decision, k_bin) or _is_between(decisions, k_row),
            f"a bin of alert scores has fewer than k_bin = {k_bin} images",
        ),
        (not rounded, DIGITS_LEFT),
    )


def _name_first(*problems: tuple[object, str]) -> str | None:
    return next((text for is_there, text in problems if is_there), None)


def _is_between(numbers: Array, threshold: int) -> bool:
    """Return whether any number is small, but not 0."""
    return bool(((numbers > 0) & (numbers < threshold)).any())


def _is_of_same_images(tables: EvaluationTables, reference: EvaluationTables, disclosure: Disclosure) -> bool:
    """Return whether the tables of a model agree with each other and with another's on which images they are about."""
    rows_GK = tables.row_images
    told_G = rows_GK.sum(axis=-1) + tables.rare[:, 0]
    return bool(
        tables.groups == reference.groups
        and (rows_GK == reference.row_images).all()
        and (tables.withheld == reference.withheld).all()
        and (tables.rare[:, 0] == reference.rare[:, 0]).all()
        and (tables.patients[..., [PATIENTS, SIZES]] == reference.patients[..., [PATIENTS, SIZES]]).all()
        and ((tables.patients[..., PATIENTS] > 0) == (rows_GK > 0)).all()
        and _is_all_or_none(tables.brier[:, 0], rows_GK.sum(axis=-1))
        and _is_all_or_none(tables.mixed[..., 0].sum(axis=-1), told_G)
        and _are_pairs(tables.areas, rows_GK)
        and (not disclosure.is_open or (tables.calibration[..., 0].sum(axis=-1) == rows_GK).all())
        and (not (disclosure.is_open and disclosure.scores) or (tables.scores.sum(axis=-1)[..., 0] == rows_GK).all())
    )


def _is_all_or_none(found: Array, images: Array) -> bool:
    return bool(((found == images) | (found == 0)).all())


def _are_pairs(areas: Array, rows_GK: Array) -> bool:
    """Return whether areas are of all images of the rows, or of none."""
    pairs = rows_GK * (rows_GK.sum(axis=-1, keepdims=True) - rows_GK)
    few = (areas[..., OWN_PATIENTS] <= rows_GK) & (
        areas[..., OTHER_PATIENTS] <= rows_GK.sum(axis=-1, keepdims=True) - rows_GK
    )
    empty = ~areas.any(axis=-1)
    return bool((empty | ((areas[..., PAIRS] == pairs) & few)).all())


def _fit(paired: PairedTables, federated: EvaluationTables, other: EvaluationTables, disclosure: Disclosure) -> bool:
    """Return whether paired tables are of the same images and right as often as the tables of both models.

    Under thresholds a row may be left out, since it would give others away; then all of it is zero.
    """
    if paired.groups != federated.groups or paired.cells.shape[1] != federated.num_classes:
        return False
    right, other_right = (np.diagonal(tables.counts, axis1=1, axis2=2) for tables in (federated, other))
    same_GK = (
        (paired.cells.sum(axis=(2, 3)) == federated.row_images)
        & (paired.cells[:, :, 1].sum(axis=-1) == right)
        & (paired.cells[:, :, :, 1].sum(axis=-1) == other_right)
    )
    empty_GK = ~paired.cells.any(axis=(2, 3)) & (paired.spread == 0)
    return bool((same_GK | (empty_GK & (not disclosure.is_open))).all())

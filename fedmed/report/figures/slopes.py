"""Calibration slope and intercept as plain data: of all images, by site, and by group where the bins are told."""

from fedmed.fairness.figures.calibration_slope import Estimate, fit_calibration_slope
from fedmed.fairness.figures.groups import order_groups
from fedmed.metrics.site_tables import SITE_ATTRIBUTE
from fedmed.metrics.tables import EvaluationTables
from fedmed.report.figures.describe import make_empty_tables
from fedmed.report.figures.fairness import Groups
from fedmed.report.schema.slope import EstimateEntry, SlopeEntry, SlopesEntry


def describe_slopes(groups: Groups, num_classes: int) -> SlopesEntry:
    """Fit slope and intercept of the model as it is released.

    Parameters
    ----------
    groups : Groups
        The groups of the part of the data that the report is about.
    num_classes : int
        K.
    """
    by_site = groups.tables.get(SITE_ATTRIBUTE, make_empty_tables(num_classes, ()))
    by_group: dict[str, dict[str, SlopeEntry]] = {}
    for attribute, tables in groups.tables.items():
        told = [group for group in order_groups(groups.shown(attribute)) if _has_bins(tables.select(group))]
        if attribute != SITE_ATTRIBUTE and told:
            by_group[attribute] = {group: describe_slope(tables.select(group)) for group in told}
    return {
        "pooled": describe_slope(by_site.pool()),
        "sites": {site: describe_slope(by_site.select(site)) for site in by_site.groups},
        "groups": by_group,
    }


def describe_slope(tables: EvaluationTables) -> SlopeEntry:
    """Return the fit to the bins of tables."""
    fitted = fit_calibration_slope(tables)
    return {
        "n": fitted.n,
        "bins": fitted.num_bins,
        "slope": _describe(fitted.slope),
        "intercept": _describe(fitted.intercept),
        "in_the_large": _describe(fitted.in_the_large),
        "reason": fitted.reason,
    }


def _describe(estimate: Estimate | None) -> EstimateEntry | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "standard_error": estimate.standard_error, "interval": estimate.interval}


def _has_bins(tables: EvaluationTables) -> bool:
    return bool(tables.calibration.any() or tables.mixed.any())

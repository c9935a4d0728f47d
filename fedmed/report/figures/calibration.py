"""The calibration part of ``report.json``: the temperature, and how honest the confidence is before and after it."""

from collections.abc import Mapping

from fedmed.metrics.site_tables import SITE_ATTRIBUTE, UNCALIBRATED, combine_attribute
from fedmed.metrics.tables import EvaluationTables
from fedmed.report.content import ReportContent
from fedmed.report.figures.describe import describe_calibration, describe_reliability, keep_calibration
from fedmed.report.figures.fairness import Groups
from fedmed.report.figures.slopes import describe_slopes
from fedmed.report.schema.figures import CalibrationEntry, FigureEntries, GroupCalibration


def describe_calibration_part(
    content: ReportContent,
    groups: Groups,
    figures: FigureEntries,
    by_group: Mapping[str, Mapping[str, FigureEntries]],
) -> CalibrationEntry:
    """Compare the model as it is released with the same model before its temperature.

    Parameters
    ----------
    content : ReportContent
        With the temperature.
    groups : Groups
        The groups of the part of the data that the report is about.
    figures : dict
        The released model's pooled figures on that part, as they are described already.
    by_group : mapping of str to mapping
        The same by attribute and group.

    Returns
    -------
    CalibrationEntry
        ``temperature``; ``before`` (None where only one form was scored) and ``after``: figures; ``reliability`` and
        ``groups`` likewise.
    """
    before = {attribute: combine_attribute(groups.sites, attribute, UNCALIBRATED) for attribute in groups.tables}
    whole = before.get(SITE_ATTRIBUTE)
    pooled = groups.tables.get(SITE_ATTRIBUTE)
    return {
        "temperature": content.temperature,
        "before": None if whole is None else describe_calibration(whole.pool(), content),
        "after": keep_calibration(figures),
        "reliability": {
            "before": None if whole is None else describe_reliability(whole),
            "after": None if pooled is None else describe_reliability(pooled),
        },
        "groups": {
            attribute: {
                group: _describe_group(
                    content,
                    _select_shown(groups, groups.tables[attribute], attribute, group),
                    _select_shown(groups, before[attribute], attribute, group),
                    entry,
                )
                for group, entry in by_group[attribute].items()
            }
            for attribute in by_group
        },
        "slopes": describe_slopes(groups, content.num_classes),
    }


def _describe_group(
    content: ReportContent,
    after: EvaluationTables | None,
    before: EvaluationTables | None,
    figures: FigureEntries,
) -> GroupCalibration:
    return {
        "before": None if before is None else describe_calibration(before, content),
        "after": keep_calibration(figures),
        "reliability": {
            "before": None if before is None else describe_reliability(before),
            "after": None if after is None else describe_reliability(after),
        },
    }


def _select_shown(
    groups: Groups, tables: EvaluationTables | None, attribute: str, group: str
) -> EvaluationTables | None:
    hidden = group in groups.hidden.get(attribute, {})
    return None if tables is None or hidden or group not in tables.groups else tables.select(group)

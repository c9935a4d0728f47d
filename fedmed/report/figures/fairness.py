"""The fairness part of ``report.json``: figures by group, gaps between groups, and what of them chance explains."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from fedmed.fairness.chance.compare_groups import GapFigure, compare_groups
from fedmed.fairness.chance.flags import flag_attributes
from fedmed.fairness.disclosure.pooled_groups import find_hidden_groups, leave_out
from fedmed.fairness.figures.groups import order_groups
from fedmed.metrics.site_tables import SITE_ATTRIBUTE, UNKNOWN, SiteTables, combine_attribute
from fedmed.metrics.tables import EvaluationTables, combine_tables
from fedmed.report.content import ReportContent
from fedmed.report.figures.describe import add_pooled, describe_tables, name_classes
from fedmed.report.schema.document import RoundCourse
from fedmed.report.schema.figures import (
    AlarmEntry,
    FairnessPart,
    FigureEntries,
    FindingEntry,
    GapEntry,
    Part,
)
from fedmed.storage.history import RoundRecord

LEADING_GAPS = ("gap_balanced_accuracy", "gap_accuracy")
COURSE_GAPS = ("gap_balanced_accuracy", "gap_accuracy", "gap_macro_f1", "gap_auc", "worst_group_balanced_accuracy")


@dataclasses.dataclass(frozen=True)
class Groups:
    """The pooled tables of all attributes of one part of the data.

    Attributes
    ----------
    part : str
        ``test``, or ``validation`` while there are no test tables.
    sites : mapping of str to SiteTables
        Where they are from.
    tables : dict of str to EvaluationTables
        By attribute, with the groups that must not be shown still in them.
    hidden : dict of str to dict of str to str
        Those groups and the reasons, by attribute.
    """

    part: Part
    sites: Mapping[str, SiteTables]
    tables: dict[str, EvaluationTables]
    hidden: dict[str, dict[str, str]]

    def shown(self, attribute: str) -> list[str]:
        """Return the groups of an attribute that may be shown."""
        return [group for group in self.tables[attribute].groups if group not in self.hidden.get(attribute, {})]


def pool_groups(content: ReportContent) -> Groups:
    """Return the chosen model's groups on the test images or, while these are not scored, on the validation images."""
    part: Part = "test" if content.test else "validation"
    sites = content.test or content.validation
    attributes = sorted({attribute for tables in sites.values() for attribute in tables.attributes})
    attributes.sort(key=lambda name: (name != SITE_ATTRIBUTE, " x " in name))
    tables = {}
    for attribute in attributes:
        own = _combine_sites(sites) if attribute == SITE_ATTRIBUTE else combine_attribute(sites, attribute)
        if own is not None:
            tables[attribute] = own
    agreed = set(sites) if content.single_sites else set(content.agreed)
    return Groups(part, sites, tables, find_hidden_groups(sites, agreed))


def _combine_sites(sites: Mapping[str, SiteTables]) -> EvaluationTables:
    # By the name under which the site is known, whatever it calls itself.
    return combine_tables(dataclasses.replace(sites[name].site.pool(), groups=(name,)) for name in sorted(sites))


def describe_fairness(
    content: ReportContent, groups: Groups, site_figures: Mapping[str, FigureEntries], records: Sequence[RoundRecord]
) -> FairnessPart:
    """Compute figures by group, gaps and findings.

    Parameters
    ----------
    content : ReportContent
        Classes, seed, thresholds.
    groups : Groups
        From :func:`pool_groups`.
    site_figures : mapping of str to dict
        The figures of every site on ``groups.part``, as they are described already.
    records : sequence of RoundRecord
        The rounds.

    Returns
    -------
    FairnessPart
        ``groups``, ``gaps``, ``findings``, ``hidden_groups``, ``fairness_part`` and ``alarms``.
    """
    described = {attribute: _describe_groups(content, groups, attribute, site_figures) for attribute in groups.tables}
    gaps = flag_attributes(
        {attribute: compare_groups(_select_compared(groups, attribute), content.seed) for attribute in groups.tables}
    )
    return {
        "fairness_part": groups.part,
        "groups": described,
        "hidden_groups": groups.hidden,
        "gaps": {
            attribute: {key: _describe_gap(gap, content.classes) for key, gap in figures.items()}
            for attribute, figures in gaps.items()
        },
        "findings": {attribute: summarise_gaps(figures) for attribute, figures in gaps.items()},
        "alarms": list(_list_alarms(records, groups)),
    }


def _describe_groups(
    content: ReportContent, groups: Groups, attribute: str, site_figures: Mapping[str, FigureEntries]
) -> dict[str, FigureEntries]:
    tables, hidden = groups.tables[attribute], groups.hidden.get(attribute, {})
    if attribute == SITE_ATTRIBUTE:
        return {group: site_figures[group] for group in tables.groups}
    everyone = leave_out(tables, hidden)
    return {
        group: add_pooled(describe_tables(tables.select(group), content, reason=hidden.get(group)), everyone, content)
        for group in order_groups(tables.groups)
    }


def _select_compared(groups: Groups, attribute: str) -> EvaluationTables:
    """Return the groups that gaps are computed of: those that are shown and known. A hidden one could be the worst."""
    tables = groups.tables[attribute]
    unknown = {group for group in tables.groups if is_unknown(attribute, group)}
    return leave_out(tables, {*groups.hidden.get(attribute, {}), *unknown})


def is_unknown(attribute: str, group: str) -> bool:
    """Return whether a group is of the images whose value is not known; a site may be called so, too."""
    return group == UNKNOWN and attribute != SITE_ATTRIBUTE


def summarise_gaps(gaps: Mapping[str, GapFigure]) -> FindingEntry:
    """Return what the gaps of one attribute say together.

    Returns
    -------
    FindingEntry
        ``flagged``: True if any gap is larger than chance explains, None if none could be tested; ``figure``: key of
        the gap to name, a flagged one if there is any; ``flagged_figures``: keys.
    """
    flagged = [key for key, gap in gaps.items() if gap.flagged]
    tested = [key for key, gap in gaps.items() if gap.flagged is not None]
    defined = [key for key in LEADING_GAPS if key in gaps and gaps[key].value is not None]
    leading = [key for key in defined if key in flagged] or flagged or defined
    return {
        "flagged": bool(flagged) if tested else None,
        "figure": leading[0] if leading else None,
        "flagged_figures": flagged,
    }


def _describe_gap(gap: GapFigure, classes: tuple[str, ...]) -> GapEntry:
    described: GapEntry = {
        "value": gap.value,
        "better": gap.better,
        "n": gap.n,
        "mean": gap.mean,
        "interval": gap.interval,
        "skipped": gap.skipped,
        "reason": (gap.reason or "not defined for these groups") if gap.value is None else gap.reason,
        "p_value": gap.p_value,
        "chance": gap.chance,
        "flagged": gap.flagged,
        "worst_group": gap.worst_group,
        "best_group": gap.best_group,
        "mean_interval": gap.mean_interval,
        "chance_mean": gap.chance_mean,
        "family_p": gap.family_p,
        "worst_class": None if gap.worst_class is None else classes[gap.worst_class],
        "left_out": list(gap.left_out),
        "n_withheld": gap.n_withheld,
    }
    if gap.classes is not None:
        described["over_classes"], described["overall"] = [classes[k] for k in gap.classes], gap.overall
    if gap.lacking:
        described["lacking"] = {classes[k]: list(names) for k, names in gap.lacking.items()}
    if gap.limit is not None:
        described["limit"] = gap.limit
    if gap.by_class is not None:
        described["by_class"] = {name: {"value": value} for name, value in name_classes(classes, gap.by_class).items()}
    return described


def _list_alarms(records: Iterable[RoundRecord], groups: Groups) -> Iterable[AlarmEntry]:
    for record in records:
        for alarm in record.alarms:
            if alarm.group not in groups.hidden.get(alarm.attribute, {}):
                # What another version of fedmed has written about it stays in.
                yield cast(AlarmEntry, {"round": record.round, **alarm.to_json()})


def describe_course(record: RoundRecord, figure: str, content: ReportContent, groups: Groups) -> RoundCourse:
    """Return the validation figures by group and the gaps of one round, as far as they may be shown.

    Parameters
    ----------
    record : RoundRecord
        The round.
    figure : str
        Key of the figure by group.
    content : ReportContent
        Says whether groups may rest on one site.
    groups : Groups
        Says which groups are hidden.
    """
    by_group, gaps = record.validation.groups, record.validation.gaps
    # Who contributed to a group may differ from round to round; only the server that wrote the record knew.
    if not content.single_sites and record.validation.hidden is None:
        by_group = {}
        gaps = {name: own for name, own in gaps.items() if name == SITE_ATTRIBUTE}
    return {
        "groups": {
            attribute: {
                group: {figure: values.get(figure), "n": values.get("n")}
                for group, values in own.items()
                if group not in groups.hidden.get(attribute, {})
            }
            for attribute, own in by_group.items()
            if attribute != SITE_ATTRIBUTE
        },
        "gaps": {attribute: {key: own[key] for key in COURSE_GAPS if key in own} for attribute, own in gaps.items()},
    }

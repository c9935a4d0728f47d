"""The report as data: ``report.json``. The page shows numbers of this document and no others."""

from collections.abc import Mapping, Sequence

from fedmed.formats import REPORT
from fedmed.metrics.answer_ranges import settle_other
from fedmed.metrics.classification import roc_points
from fedmed.metrics.site_tables import SITE_ATTRIBUTE, SiteTables
from fedmed.metrics.tables import EvaluationTables, combine_tables
from fedmed.report.content import ReportContent
from fedmed.report.figures.benefit import describe_benefit
from fedmed.report.figures.calibration import describe_calibration_part
from fedmed.report.figures.clinical import describe_clinical
from fedmed.report.figures.compression import describe_compression
from fedmed.report.figures.data_flow import describe_flow
from fedmed.report.figures.describe import (
    add_pooled,
    describe_reliability,
    describe_tables,
    make_empty_tables,
    name_classes,
)
from fedmed.report.figures.distillation import describe_distillation
from fedmed.report.figures.fairness import Groups, describe_course, describe_fairness, pool_groups
from fedmed.report.figures.pooled_auc import describe_pooled_auc
from fedmed.report.figures.shift import describe_shift
from fedmed.report.schema.document import (
    Confusion,
    Document,
    LeftOut,
    ParticipationEntry,
    RocCurve,
    RoundEntry,
    SiteEntry,
    SiteParticipation,
)
from fedmed.report.schema.figures import FigureEntries, Part
from fedmed.storage.history import Participation, RoundRecord, to_plain_json
from fedmed.storage.statuses import find_status

_LIMITED = "limited"
_DERIVED = ("worst_group_", "es_")


def build_document(content: ReportContent) -> Document:
    """Compute all figures of a report.

    Parameters
    ----------
    content : ReportContent
        Settings, history and tables of a finished run.

    Returns
    -------
    Document
        Plain JSON types only, no NaN and no infinity. ``figures`` is the pooled test of the chosen model; a figure that
        is not defined has ``value: None`` and a ``reason``.
    """
    classes = content.classes
    records = _last_attempts(content.history)
    test, validation = (_pool_sites(tables, len(classes)) for tables in (content.test, content.validation))
    groups = pool_groups(content)
    sites = _describe_sites(content, records, groups)
    figures: dict[Part, FigureEntries] = {
        "test": describe_tables(test, content),
        "validation": describe_tables(validation, content),
    }
    on_part = {name: sites[name][groups.part] for name in groups.sites}
    fairness = describe_fairness(content, groups, on_part, records)
    document: Document = {
        "format": REPORT.number,
        "title": content.title,
        "synthetic": content.synthetic,
        "classes": list(classes),
        "chosen_round": content.chosen_round,
        "rounds": content.rounds_done,
        "choose_by": _choose_by(content),
        "choose_attribute": str(content.config.get("choose_attribute") or SITE_ATTRIBUTE),
        "course_figure": _find_course_figure(content),
        "seed": content.seed,
        "thresholds": content.thresholds,
        "figures": figures["test"],
        "validation": figures["validation"],
        "test_images": {
            "total": test.num_images,
            "by_class": name_classes(classes, test.row_images.sum(axis=0).tolist()),
        },
        "sites": sites,
        **fairness,
        **describe_benefit(content, on_part),
        **describe_clinical(content, groups),
        "compression": describe_compression(content),
        "calibration": describe_calibration_part(content, groups, figures[groups.part], fairness["groups"]),
        "shift": describe_shift(content),
        "pooled_auc": describe_pooled_auc(content, figures["test"]["auc"]),
        "history": [_describe_round(record, content, groups) for record in records],
        "participation": _describe_participation(records),
        "composition": _describe_composition(content),
        "distillation": describe_distillation(content, records),
        "confusion": _describe_confusion(test, content),
        "flow": describe_flow(content, groups, {name: site["train_images"] for name, site in sites.items()}),
        "roc": {name: _describe_roc(test, index) for index, name in enumerate(classes)},
        "reliability": describe_reliability(test),
        "config": dict(content.config),
        "environment": dict(content.environment),
        "notes": content.notes,
        "command": content.command,
    }
    plain: Document = to_plain_json(document)
    return plain


def _choose_by(content: ReportContent) -> str:
    return str(content.config.get("choose_by", "balanced_accuracy"))


def _find_course_figure(content: ReportContent) -> str:
    """Return the figure that the curves show: what the rule of choice is made of, if it compares groups."""
    rule = _choose_by(content)
    for prefix in _DERIVED:
        rule = rule.removeprefix(prefix)
    return rule


def _last_attempts(history: Sequence[RoundRecord]) -> list[RoundRecord]:
    """Return one record a round: of a round that was tried again, the last attempt."""
    by_round = {record.round: record for record in history}
    return [by_round[number] for number in sorted(by_round)]


def _pool_sites(tables: Mapping[str, SiteTables], num_classes: int) -> EvaluationTables:
    parts = [tables[site].site for site in sorted(tables)]
    return combine_tables(parts).pool() if parts else make_empty_tables(num_classes)


def _describe_sites(content: ReportContent, records: Sequence[RoundRecord], groups: Groups) -> dict[str, SiteEntry]:
    """Return the figures of every site that trained or answered, with intervals for the part that the report is on."""
    train_images = _count_train_images(content, records)
    names = sorted({*train_images, *content.validation, *content.test})

    def describe(name: str, tables: Mapping[str, SiteTables], *, with_intervals: bool) -> FigureEntries:
        own = _pool_sites({name: tables[name]} if name in tables else {}, len(content.classes))
        figures = describe_tables(own, content, with_intervals=with_intervals)
        return add_pooled(figures, _pool_sites(tables, len(content.classes)), content)

    return {
        name: {
            "train_images": train_images.get(name),
            "test": describe(name, content.test, with_intervals=groups.part == "test"),
            "validation": describe(name, content.validation, with_intervals=groups.part == "validation"),
        }
        for name in names
    }


def _count_train_images(content: ReportContent, records: Sequence[RoundRecord]) -> dict[str, int | None]:
    """Return training images by site, as the sites reported them with their updates where they tell no composition."""
    images: dict[str, int | None] = {}
    for record in records:
        for entry in record.participation:
            images[entry.site] = entry.images or images.get(entry.site)
    return images | {site: sum(parts["train"]) for site, parts in (content.composition or {}).items()}


def _describe_round(record: RoundRecord, content: ReportContent, groups: Groups) -> RoundEntry:
    sites, figure = record.validation.sites, _find_course_figure(content)
    statuses = [entry.status for entry in record.participation]
    return {
        "round": record.round,
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "wall_s": record.wall_s,
        "coverage_images": record.coverage_images,
        "accepted_sites": statuses.count("accepted"),
        "validation": {
            "pooled": record.validation.pooled,
            "sites": {site: {figure: sites[site].get(figure)} for site in sorted(sites)},
            **describe_course(record, figure, content, groups),
        },
    }


def _describe_participation(records: Sequence[RoundRecord]) -> ParticipationEntry:
    """Return for every site its status by round, its mean share of a model's weight and why it was left out."""
    by_round = [{entry.site: entry for entry in record.participation} for record in records]
    sites: dict[str, SiteParticipation] = {}
    for name in sorted({site for entries in by_round for site in entries}):
        statuses = [entries[name].status if name in entries else "absent" for entries in by_round]
        shares = [entries[name].share or 0.0 if name in entries else 0.0 for entries in by_round]
        sites[name] = {
            "accepted_rounds": statuses.count("accepted"),
            "missed_rounds": sum(find_status(status).missed for status in statuses),
            "mean_share": sum(shares) / len(shares),
            "update_bytes": sum(entries[name].update_bytes or 0 for entries in by_round if name in entries),
            "statuses": statuses,
            "reasons": _group_reasons(records, [entries.get(name) for entries in by_round]),
        }
    return {
        "rounds": [record.round for record in records],
        "bytes_to_sites": sum(record.bytes_to_sites for record in records),
        "bytes_from_sites": sum(record.bytes_from_sites for record in records),
        "sites": sites,
    }


def _group_reasons(records: Sequence[RoundRecord], entries: Sequence[Participation | None]) -> list[LeftOut]:
    """Return why a site was left out or its part was cut, each cause with its rounds, the most frequent first."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for record, entry in zip(records, entries, strict=True):
        if entry is not None and entry.status != "accepted":
            cause = (entry.status, entry.reason or "no reason given")
            rounds.setdefault(cause, []).append(record.round)
        elif entry is not None and entry.limit is not None:
            rounds.setdefault((_LIMITED, entry.limit), []).append(record.round)
    causes = sorted(rounds, key=lambda cause: -len(rounds[cause]))
    return [{"status": status, "reason": reason, "rounds": rounds[status, reason]} for status, reason in causes]


def _describe_composition(content: ReportContent) -> dict[str, dict[str, dict[str, int]]] | None:
    if content.composition is None:
        return None
    return {
        site: {part: name_classes(content.classes, counts) for part, counts in content.composition[site].items()}
        for site in sorted(content.composition)
    }


def _describe_confusion(test: EvaluationTables, content: ReportContent) -> Confusion:
    """Return the answers by true class; with two classes a wrong one can only be the other class."""
    pooled, other = settle_other(test.counts.sum(axis=0), test.other_wrong.sum(axis=0))
    sites = {
        site: settle_other(own.site.counts.sum(axis=0), own.site.other_wrong.sum(axis=0))
        for site, own in sorted(content.test.items())
    }
    return {
        "pooled": pooled.tolist(),
        "sites": {site: counts.tolist() for site, (counts, _) in sites.items()},
        "other_pooled": other.tolist(),
        "other_sites": {site: untold.tolist() for site, (_, untold) in sites.items()},
    }


def _describe_roc(tables: EvaluationTables, index: int) -> RocCurve | None:
    """Return the curve of a class, or ``None`` where the class or the rest has no image, or scores are not told."""
    images = tables.row_images.sum(axis=0)
    if images[index] == 0 or images[index] == images.sum():
        return None
    fpr, tpr = roc_points(tables, index)
    if not len(fpr):  # hospitals tell no histograms of scores
        return None
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}

"""The report as data: ``report.json``. The page shows numbers of this document and no others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedmed.fairness.intervals import add_intervals
from fedmed.metrics.calibration import reliability
from fedmed.metrics.classification import Figure, compute_figures, roc_points
from fedmed.metrics.history import to_plain_json
from fedmed.metrics.tables import CALIBRATION_BINS, SCORE_BINS, EvaluationTables, combine_tables
from fedmed.report.content import ReportContent

HISTORY_FIGURES = ("loss", "learning_rate", "wall_s", "coverage_images")


def build_document(content: ReportContent) -> dict[str, Any]:
    """Compute all figures of a report.

    Parameters
    ----------
    content : ReportContent
        Settings, history and tables of a finished run.

    Returns
    -------
    dict
        Plain JSON types only, no NaN and no infinity. ``figures`` is the pooled test of the chosen model; a figure that
        is not defined has ``value: None`` and a ``reason``.
    """
    classes = content.classes
    records = _last_attempts(content.history)
    test = _pool_sites(content.test, len(classes))
    document = {
        "title": content.title,
        "synthetic": content.synthetic,
        "classes": classes,
        "chosen_round": content.chosen_round,
        "rounds": content.rounds_done,
        "choose_by": _choose_by(content),
        "seed": content.seed,
        "thresholds": content.thresholds,
        "figures": _describe_tables(test, content, with_intervals=True),
        "validation": _describe_tables(_pool_sites(content.validation, len(classes)), content, with_intervals=True),
        "test_images": {"total": test.num_images, "by_class": _by_class(classes, test.counts.sum(axis=(0, 2)))},
        "sites": _describe_sites(content, records),
        "history": [_describe_round(record, _choose_by(content)) for record in records],
        "participation": _describe_participation(records),
        "composition": _describe_composition(content),
        "confusion": {
            "pooled": test.counts.sum(axis=0),
            "sites": {site: content.test[site].counts.sum(axis=0) for site in sorted(content.test)},
        },
        "roc": {name: _describe_roc(test, index) for index, name in enumerate(classes)},
        "reliability": reliability(test),
        "config": content.config,
        "environment": content.environment,
        "notes": content.notes,
        "command": content.command,
    }
    plain: dict[str, Any] = to_plain_json(document)
    return plain


def _choose_by(content: ReportContent) -> str:
    return str(content.config.get("choose_by", "balanced_accuracy"))


def _last_attempts(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one record a round: of a round that was tried again, the last attempt."""
    by_round = {int(record["round"]): record for record in history}
    return [by_round[number] for number in sorted(by_round)]


def _pool_sites(tables: Mapping[str, EvaluationTables], num_classes: int) -> EvaluationTables:
    if tables:
        return combine_tables(tables[site] for site in sorted(tables)).pool()
    K = num_classes
    return EvaluationTables(
        groups=("all",),
        counts=np.zeros((1, K, K), dtype=np.int64),
        scores=np.zeros((1, K, K, SCORE_BINS), dtype=np.int64),
        calibration=np.zeros((1, K, CALIBRATION_BINS, 3)),
        brier=np.zeros((1, 3)),
    )


def _by_class(classes: tuple[str, ...], values: Any) -> dict[str, Any]:
    return dict(zip(classes, values, strict=True))


def _describe_tables(tables: EvaluationTables, content: ReportContent, with_intervals: bool) -> dict[str, Any]:
    figures = compute_figures(tables)
    if with_intervals:
        figures = add_intervals(figures, tables, content.seed)
    present = [bool(images) for images in tables.counts.sum(axis=(0, 2))]
    return {key: _describe_figure(figure, content.classes, present) for key, figure in figures.items()}


def _describe_figure(figure: Figure, classes: tuple[str, ...], present: list[bool]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "value": figure.value,
        "interval": figure.interval,
        "n": figure.n,
        "better": figure.better,
    }
    if figure.value is None:
        described["reason"] = figure.reason or "not defined for these images"
    if figure.by_class is not None:
        intervals = figure.by_class_interval or (None,) * len(classes)
        described["by_class"] = {
            name: {"value": value, "interval": interval}
            | ({"reason": _explain_absence(figure.key, has_images)} if value is None else {})
            for name, value, interval, has_images in zip(classes, figure.by_class, intervals, present, strict=True)
        }
    return described


def _explain_absence(key: str, has_images: bool) -> str:
    if not has_images:
        return "no image of this class"
    return "never predicted" if key == "macro_precision" else "not defined for this class"


def _describe_sites(content: ReportContent, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of every site that trained or answered; validation chooses only, so it has no intervals."""
    train_images = _count_train_images(content, records)
    names = sorted({*train_images, *content.validation, *content.test})
    sites: dict[str, Any] = {}
    for name in names:
        parts = {}
        for part, tables in (("test", content.test), ("validation", content.validation)):
            own = _pool_sites({name: tables[name]} if name in tables else {}, len(content.classes))
            parts[part] = _describe_tables(own, content, with_intervals=part == "test")
        sites[name] = {"train_images": train_images.get(name), **parts}
    return sites


def _count_train_images(content: ReportContent, records: list[dict[str, Any]]) -> dict[str, int | None]:
    """Return training images by site, as the sites reported them with their updates where no composition is given."""
    if content.composition is not None:
        return {site: sum(parts["train"]) for site, parts in content.composition.items()}
    images: dict[str, int | None] = {}
    for record in records:
        for entry in record.get("participation", ()):
            images[entry["site"]] = entry.get("images") or images.get(entry["site"])
    return images


def _describe_round(record: Mapping[str, Any], choose_by: str) -> dict[str, Any]:
    validation = record.get("validation") or {}
    sites = validation.get("sites") or {}
    statuses = [entry["status"] for entry in record.get("participation", ())]
    return {
        "round": record["round"],
        **{key: record.get(key) for key in HISTORY_FIGURES},
        "accepted_sites": statuses.count("accepted"),
        "validation": {
            "pooled": validation.get("pooled") or {},
            "sites": {site: {choose_by: sites[site].get(choose_by)} for site in sorted(sites)},
        },
    }


def _describe_participation(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for every site its status by round, its mean share of a model's weight and why it was left out."""
    by_round = [{entry["site"]: entry for entry in record.get("participation", ())} for record in records]
    sites = {}
    for name in sorted({site for entries in by_round for site in entries}):
        statuses = [entries[name]["status"] if name in entries else "absent" for entries in by_round]
        shares = [entries[name].get("share") or 0.0 if name in entries else 0.0 for entries in by_round]
        sites[name] = {
            "accepted_rounds": statuses.count("accepted"),
            "missed_rounds": len(statuses) - statuses.count("accepted"),
            "mean_share": sum(shares) / len(shares),
            "update_bytes": sum(entries[name].get("update_bytes") or 0 for entries in by_round if name in entries),
            "statuses": statuses,
            "reasons": _group_reasons(records, [entries.get(name) for entries in by_round]),
        }
    return {
        "rounds": [record["round"] for record in records],
        "bytes_to_sites": sum(record.get("bytes_to_sites") or 0 for record in records),
        "bytes_from_sites": sum(record.get("bytes_from_sites") or 0 for record in records),
        "sites": sites,
    }


def _group_reasons(records: list[dict[str, Any]], entries: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return why a site was left out, each cause with its rounds, the most frequent first."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for record, entry in zip(records, entries, strict=True):
        if entry is not None and entry["status"] != "accepted":
            cause = (entry["status"], entry.get("reason") or "no reason given")
            rounds.setdefault(cause, []).append(record["round"])
    causes = sorted(rounds, key=lambda cause: -len(rounds[cause]))
    return [{"status": status, "reason": reason, "rounds": rounds[status, reason]} for status, reason in causes]


def _describe_composition(content: ReportContent) -> dict[str, Any] | None:
    if content.composition is None:
        return None
    return {
        site: {part: _by_class(content.classes, counts) for part, counts in content.composition[site].items()}
        for site in sorted(content.composition)
    }


def _describe_roc(tables: EvaluationTables, index: int) -> dict[str, Any] | None:
    """Return the curve of a class, or ``None`` where the class or the rest has no image."""
    images = tables.counts.sum(axis=(0, 2))
    if images[index] == 0 or images[index] == images.sum():
        return None
    fpr, tpr = roc_points(tables, index)
    return {"fpr": fpr, "tpr": tpr}

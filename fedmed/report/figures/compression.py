"""The compression part of ``report.json``: phases, costs, the gate's decision, small against large network."""

from collections.abc import Mapping

import numpy as np

from fedmed.fairness.chance.paired import compare_paired
from fedmed.fairness.disclosure.pooled_groups import find_hidden_groups
from fedmed.metrics.site_tables import (
    FEDERATED,
    SITE_ATTRIBUTE,
    STUDENT,
    TEACHER,
    SiteTables,
)
from fedmed.metrics.tables import combine_tables
from fedmed.report.content import ReportContent
from fedmed.report.figures.benefit import describe_difference
from fedmed.report.figures.describe import describe_tables, drop_classes
from fedmed.report.schema.document import CompressionComparison, CompressionEntry, DistilledStep, SmallTraining
from fedmed.report.schema.figures import ComparedEntry
from fedmed.storage.records import CheckRecord, DistilledLine, DistilledPart

KEPT_FIGURES = ("balanced_accuracy", "accuracy")
PHASES = ("explore", "targets", "train", "distance", "recalibrate", "gate")
HIDDEN_REASON = "not shown, because a group rests on one site"


def describe_compression(content: ReportContent) -> CompressionEntry | None:
    """Describe the compression of the trained network into a small one.

    Parameters
    ----------
    content : ReportContent
        With what was decided and, where there was something to decide, the tables that it rests on.

    Returns
    -------
    CompressionEntry or None
        ``status``, ``kind``, ``reason``; ``phases`` and ``seconds``; ``sizes``; ``training``;
        ``earlier`` distillations; ``distance``; ``checks`` of the gate, with ``num_images``; and ``comparison`` of
        the small with the large network on the same images of ``part``, by site and group. None where
        the run compresses nothing.
    """
    found = content.compression
    if found is None:
        return None
    status, kind, reason = found["status"], found["kind"], found["reason"]
    if "decision" not in found:
        return {"status": status, "kind": kind, "reason": reason, "checks": [], "comparison": {}}
    agreed = set(content.gate) if content.single_sites else set(content.agreed)
    hidden = {attribute for attribute, groups in find_hidden_groups(content.gate, agreed).items() if groups}
    phases = found["phases"]
    return {
        "status": status,
        "kind": kind,
        "reason": _hide_reasons(reason, hidden),
        "phases": [{"phase": name, "seconds": phases[name]} for name in PHASES if name in phases],
        "seconds": sum(phases.values()),
        "sizes": found["sizes"],
        "training": _describe_training(found["distilled"]),
        "earlier": found.get("earlier") or [],
        "distance": found["distance"],
        "checks": [_describe_check(check, hidden) for check in found["decision"]["checks"]],
        "num_images": found["decision"]["num_images"],
        **_compare(content, accepted=status == "accepted"),
    }


def _hide_reasons(reason: str, hidden: set[str]) -> str:
    parts = reason.rstrip(".").split("; ")
    told = [
        next((f"The gap between groups of '{name}' grows too much ({HIDDEN_REASON})" for name in hidden
              if f"groups of '{name}'" in part), part)
        for part in parts
    ]  # fmt: skip
    return "; ".join(told) + "."


def _describe_check(check: CheckRecord, hidden: set[str]) -> CheckRecord:
    if check["name"] != "gap" or check["subject"] not in hidden:
        return check
    return {**check, "teacher": None, "student": None, "loss": None, "rests_on": None}


def _describe_training(distilled: DistilledPart) -> SmallTraining:
    explored = distilled.get("explored")
    losses: list[float] = [] if explored is None else explored["losses"]
    members, not_copied = distilled.get("members"), distilled.get("not_copied")
    return {
        "num_proxy_images": distilled.get("num_proxy_images"),
        "best_step": distilled.get("best_step"),
        "num_members": None if members is None else len(members),
        "history": [_describe_line(line) for line in distilled["history"]],
        "prompt": {
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "bands": [] if explored is None else explored["bands"],
        },
        "not_copied": None if not_copied is None else len(not_copied),
        "notes": distilled.get("notes") or [],
    }


def _describe_line(line: DistilledLine) -> DistilledStep:
    return {
        "step": line.get("step"),
        "round": line.get("round"),
        "train_loss": line.get("train_loss"),
        "held_out_loss": line.get("held_out_loss"),
        "agreement": line.get("agreement"),
    }


def _compare(content: ReportContent, *, accepted: bool) -> CompressionComparison:
    """Return both networks on the same images: on test where the small one was tested, else on validation."""
    sites, other = (content.test, TEACHER) if accepted else (content.gate, STUDENT)
    sites = {name: sites[name] for name in sorted(sites) if other in sites[name].paired}
    if not sites:
        return {"part": None, "comparison": {}}
    agreed = set(sites) if content.single_sites else set(content.agreed)
    hidden = find_hidden_groups(sites, agreed)
    comparison = {
        attribute: {
            group: _describe_group(content, sites, attribute, group, other)
            for group in _list_groups(sites, attribute, other)
            if group not in hidden.get(attribute, {})
        }
        for attribute in _list_attributes(sites, other)
    }
    return {"part": "test" if accepted else "validation", "comparison": comparison}


def _list_attributes(sites: Mapping[str, SiteTables], other: str) -> list[str]:
    names = {name for tables in sites.values() for name in tables.paired[other] if " x " not in name}
    return sorted(names, key=lambda name: (name != SITE_ATTRIBUTE, name))


def _list_groups(sites: Mapping[str, SiteTables], attribute: str, other: str) -> list[str]:
    return sorted({g for tables in sites.values() if attribute in tables.paired[other]
                   for g in tables.paired[other][attribute].groups})  # fmt: skip


def _describe_group(
    content: ReportContent, sites: Mapping[str, SiteTables], attribute: str, group: str, other: str
) -> ComparedEntry:
    chosen = [
        tables
        for tables in sites.values()
        if attribute in tables.paired[other] and group in tables.paired[other][attribute].groups
    ]
    paired = [tables.paired[other][attribute].select(group) for tables in chosen]
    cells_SK22 = np.concatenate([one.cells for one in paired])
    names = {FEDERATED: STUDENT, TEACHER: TEACHER} if other == TEACHER else {STUDENT: STUDENT, FEDERATED: TEACHER}
    if other == STUDENT:  # the first of a pair is the federated model: here the large one
        cells_SK22 = cells_SK22.swapaxes(-1, -2)
    first = STUDENT if other == STUDENT else FEDERATED
    models = {
        name: describe_tables(
            combine_tables([tables.models[model][attribute].select(group) for tables in chosen]), content
        )
        for model, name in names.items()
    }
    differences = compare_paired(
        cells_SK22,
        content.seed,
        spread=np.concatenate([one.spread for one in paired]),
        patients=np.concatenate([tables.models[first][attribute].select(group).patients for tables in chosen]),
    )
    return {
        "models": {name: {key: drop_classes(figures[key]) for key in KEPT_FIGURES} for name, figures in models.items()},
        "differences": {key: describe_difference(differences[key]) for key in KEPT_FIGURES if key in differences},
    }

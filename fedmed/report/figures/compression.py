"""The compression part of ``report.json``: phases, costs, the gate's decision, small against large network."""

from collections.abc import Mapping
from typing import Any

from fedmed.fairness.chance.paired import compare_paired
from fedmed.fairness.disclosure.pooled_groups import find_hidden_groups
from fedmed.metrics.site_tables import (
    FEDERATED,
    SITE_ATTRIBUTE,
    STUDENT,
    TEACHER,
    PairedTables,
    SiteTables,
    combine_paired,
)
from fedmed.metrics.tables import combine_tables
from fedmed.report.content import ReportContent
from fedmed.report.figures.describe import describe_tables

KEPT_FIGURES = ("balanced_accuracy", "accuracy")
PHASES = ("explore", "targets", "train", "distance", "recalibrate", "gate")
HIDDEN_REASON = "not shown, because a group rests on one site"


def describe_compression(content: ReportContent) -> dict[str, Any] | None:
    """Describe the compression of the trained network into a small one.

    Parameters
    ----------
    content : ReportContent
        With what was decided and, where there was something to decide, the tables that it rests on.

    Returns
    -------
    dict or None
        ``status``, ``kind``, ``reason``; ``phases`` and ``seconds``; ``sizes``; ``training``;
        ``earlier`` distillations; ``distance``; ``checks`` of the gate, with ``num_images``; and ``comparison`` of
        the small with the large network on the same images of ``part``, by site and group. None where
        the run compresses nothing.
    """
    found = content.compression
    if found is None:
        return None
    told: dict[str, Any] = {key: found[key] for key in ("status", "kind", "reason")}
    if "decision" not in found:
        return told | {"checks": [], "comparison": {}}
    agreed = set(content.gate) if content.single_sites else set(content.agreed)
    hidden = {attribute for attribute, groups in find_hidden_groups(content.gate, agreed).items() if groups}
    phases = found["phases"]
    return told | {
        "reason": _hide_reasons(str(found["reason"]), hidden),
        "phases": [{"phase": name, "seconds": phases[name]} for name in PHASES if name in phases],
        "seconds": sum(phases.values()),
        "sizes": found["sizes"],
        "training": _describe_training(found["distilled"]),
        "earlier": found.get("earlier") or [],
        "distance": found["distance"],
        "checks": [_describe_check(check, hidden) for check in found["decision"]["checks"]],
        "num_images": found["decision"]["num_images"],
        **_compare(content, accepted=found["status"] == "accepted"),
    }


def _hide_reasons(reason: str, hidden: set[str]) -> str:
    parts = reason.rstrip(".").split("; ")
    told = [
        next((f"The gap between groups of '{name}' grows too much ({HIDDEN_REASON})" for name in hidden
              if f"groups of '{name}'" in part), part)
        for part in parts
    ]  # fmt: skip
    return "; ".join(told) + "."


def _describe_check(check: Mapping[str, Any], hidden: set[str]) -> dict[str, Any]:
    if check["name"] != "gap" or check["subject"] not in hidden:
        return dict(check)
    return {**check, "teacher": None, "student": None, "loss": None, "rests_on": None}


def _describe_training(distilled: Mapping[str, Any]) -> dict[str, Any]:
    explored = distilled.get("explored") or {}
    losses = explored.get("losses") or [None]
    return {
        "num_proxy_images": distilled.get("num_proxy_images"),
        "best_step": distilled.get("best_step"),
        "num_members": None if distilled.get("members") is None else len(distilled["members"]),
        "history": [
            {key: line.get(key) for key in ("step", "round", "train_loss", "held_out_loss", "agreement")}
            for line in distilled["history"]
        ],
        "prompt": {"first_loss": losses[0], "last_loss": losses[-1], "bands": explored.get("bands") or []},
        "not_copied": None if distilled.get("not_copied") is None else len(distilled["not_copied"]),
        "notes": distilled.get("notes") or [],
    }


def _compare(content: ReportContent, *, accepted: bool) -> dict[str, Any]:
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
) -> dict[str, Any]:
    chosen = [
        tables
        for tables in sites.values()
        if attribute in tables.paired[other] and group in tables.paired[other][attribute].groups
    ]
    paired: PairedTables = combine_paired(tables.paired[other][attribute].select(group) for tables in chosen)
    cells_K22 = paired.cells.sum(axis=0)
    names = {FEDERATED: STUDENT, TEACHER: TEACHER} if other == TEACHER else {STUDENT: STUDENT, FEDERATED: TEACHER}
    if other == STUDENT:  # the first of a pair is the federated model: here the large one
        cells_K22 = cells_K22.swapaxes(-1, -2)
    models = {
        name: describe_tables(
            combine_tables([tables.models[model][attribute].select(group) for tables in chosen]), content
        )
        for model, name in names.items()
    }
    differences = compare_paired(cells_K22, content.seed)
    return {
        "models": {
            name: {key: _drop_classes(figures[key]) for key in KEPT_FIGURES} for name, figures in models.items()
        },
        "differences": {key: _describe_difference(differences[key]) for key in KEPT_FIGURES if key in differences},
    }


def _drop_classes(figure: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figure.items() if not key.startswith("by_class")}


def _describe_difference(difference: Any) -> dict[str, Any]:
    keys = ("value", "interval", "p_value", "n", "verdict", "reason")
    return {key: getattr(difference, key) for key in keys}

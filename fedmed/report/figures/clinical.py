"""The part of ``report.json`` about alerts: sensitivity, specificity, predictive values and net benefit."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedmed.clinical.values import (
    THRESHOLDS,
    DecisionCurve,
    KnownPoint,
    SiteScores,
    draw_curve,
    net_benefit,
    to_probability,
)
from fedmed.fairness.chance.net_benefit import AlertCounts, bound_net_benefit
from fedmed.fairness.chance.predictive_values import predict_at
from fedmed.fairness.chance.proportions import proportion_interval
from fedmed.fairness.figures.design_effects import find_pooled_effect
from fedmed.metrics.clusters import PATIENTS, SIZES
from fedmed.metrics.site_tables import SITE_ATTRIBUTE
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array
from fedmed.report.content import ReportContent
from fedmed.report.figures.fairness import Groups
from fedmed.report.schema.clinical import AlertEntry, AlertFigure, ClinicalHolder, ClinicalPart, CurveEntry, MissedEntry
from fedmed.storage.records import OperatingRecord

MOST_NAMES = 3
"""Classes that are named in a reason; of more, their number is."""
SAME = 1e-9
"""Thresholds that are no farther apart are one."""


def describe_clinical(content: ReportContent, groups: Groups) -> ClinicalHolder:
    """Return what alerts do on the test images under the key ``clinical``; nothing where no class has alerts.

    Parameters
    ----------
    content : ReportContent
        With the operating point.
    groups : Groups
        The groups of the part of the data that the report is about; before the test there are no alerts.
    """
    point = content.operating
    if point is None:
        return {}
    threshold = point["threshold"]
    described: ClinicalPart = {
        "alert_classes": point["alert_classes"],
        "stated_sensitivity": point["stated_sensitivity"],
        "cost_ratio": point["cost_ratio"],
        "prevalence": point["prevalence"],
        "threshold": threshold,
        "probability": None if threshold is None else to_probability(threshold),
        "note": point["note"],
        "validation": {
            "n_with": point["n_with"],
            "n_without": point["n_without"],
            "sensitivity": point["sensitivity"],
            "specificity": point["specificity"],
        },
        "part": groups.part,
        "sites": {},
        "groups": {},
        "curve_thresholds": THRESHOLDS.tolist(),
        "curves": {},
    }
    own = groups.tables.get(SITE_ATTRIBUTE)
    if threshold is None or own is None or not own.alerts.any():
        return {"clinical": described}
    described["whole"] = _describe_alerts(own.pool(), _Scope(content, point, "whole"))
    described["sites"] = {
        site: _describe_alerts(own.select(site), _Scope(content, point, "site")) for site in own.groups
    }
    described["groups"] = {
        attribute: {
            group: _describe_alerts(tables.select(group), _Scope(content, point, "group"))
            for group in groups.shown(attribute)
            if tables.select(group).alerts.any()
        }
        for attribute, tables in groups.tables.items()
        if attribute != SITE_ATTRIBUTE
    }
    _add_curves(described, own, content, threshold)
    return {"clinical": described}


def _add_curves(described: ClinicalPart, own: EvaluationTables, content: ReportContent, score: float) -> None:
    """Add the decision curves of all sites together, and of those sites that the table has a net benefit of.

    All sites together are the images of the table: also those of a site that tells images of one kind only.
    """
    is_merged = max(content.thresholds["k"], content.thresholds["k_row"]) > 1
    is_alert_K = np.array([name in described["alert_classes"] for name in content.classes], np.bool_)
    thresholds = _add_threshold(to_probability(score))
    sites: dict[str, SiteScores] = {}
    for site, decision, alerts in zip(own.groups, own.decision, own.alerts, strict=True):
        n, raised = (np.stack([alerts[rows].sum(axis=0) for rows in (is_alert_K, ~is_alert_K)])).T
        sites[site] = SiteScores(decision, KnownPoint(score, n, raised))
        if described["sites"][site]["net_benefit"] is not None:
            curve = draw_curve([sites[site]], is_merged=is_merged, thresholds_T=thresholds)
            if curve is not None:
                described["curves"][site] = _list_curve(curve)
    whole = draw_curve(list(sites.values()), is_merged=is_merged, thresholds_T=thresholds)
    if whole is None or described["whole"]["net_benefit"] is None:
        return
    with_alert, without = np.sum([site.decision.sum(axis=1) for site in sites.values()], axis=0).tolist()
    described["curve"] = _list_curve(whole)
    described["curve_thresholds"] = thresholds.tolist()
    described["curve_images"] = {"n_with": with_alert, "n_without": without}
    described["curve_sites"] = [site for site, scores in sites.items() if scores.decision.any()]


def _add_threshold(chosen: float) -> Array:
    """Return the thresholds of the curve with the chosen one among them, so that the curve goes through its point."""
    if np.abs(THRESHOLDS - chosen).min() < SAME or not THRESHOLDS[0] < chosen < THRESHOLDS[-1]:
        return THRESHOLDS
    return np.sort(np.append(THRESHOLDS, chosen))


def _list_curve(curve: DecisionCurve) -> CurveEntry:
    return {
        "value": curve.value.tolist(),
        "low": curve.low.tolist(),
        "high": curve.high.tolist(),
        "all": curve.all.tolist(),
    }


@dataclass(frozen=True)
class _Scope:
    """What the report is about, and whether the images are those of all sites, of one, or of a group at all of them."""

    content: ReportContent
    point: OperatingRecord
    kind: Literal["whole", "site", "group"]

    def explain(self, names: list[str], *, partly: bool = False) -> str:
        """Return why figures are n/a that need images of classes that are not told, or not told by every site."""
        listed = (
            ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} of {len(self.content.classes)} classes"
        )
        if self.kind == "site" and self.content.thresholds["k_row"] > 1:
            few = self.content.thresholds["k_row"]
            return f"images of {listed} are not told here: fewer than {few}, or beside so few, withheld"
        return f"images of {listed} are not told {'by some site' if partly and self.kind == 'group' else 'here'}"


def _describe_alerts(tables: EvaluationTables, scope: _Scope) -> AlertEntry:
    """Return how alerts do on the images of one group.

    How alerts vary between patients is not told: the design effects are those of right answers (first choices) in the
    same classes. Predictive values and net benefit need all images of a site or group, since those that are withheld
    are of some classes more than of others. Of all sites together they are those of the images that are told, and need
    images of every alert class.
    """
    content, point = scope.content, scope.point
    is_alert_K = np.array([name in point["alert_classes"] for name in content.classes], np.bool_)
    asked_K, raised_K = tables.alerts[0].T
    told_K = asked_K > 0
    partly_K = (tables.withheld[0] > 0) | (tables.row_images[0] > asked_K)
    lacking_K = partly_K & ~told_K
    n_with, n_without = int(asked_K[is_alert_K].sum()), int(asked_K[~is_alert_K].sum())
    right, false = int(raised_K[is_alert_K].sum()), int(raised_K[~is_alert_K].sum())
    wide, narrow = (find_pooled_effect(tables, told_K & rows) for rows in (is_alert_K, ~is_alert_K))
    stated = None
    if point["prevalence"] is not None and n_with and n_without and not (lacking_K & is_alert_K).any():
        stated = predict_at(
            (right / wide, n_with / wide), ((n_without - false) / narrow, n_without / narrow), point["prevalence"]
        )
    both, chance = max(wide, narrow), to_probability(point["threshold"] or 0.0)
    needed = _name(content, lacking_K & is_alert_K if scope.kind == "whole" else partly_K)
    kinds = [
        _explain_none(scope, number, _name(content, lacking_K & rows), noun)
        for number, rows, noun in ((n_with, is_alert_K, "with"), (n_without, ~is_alert_K, "without"))
    ]
    reason = scope.explain(needed, partly=bool((partly_K & told_K).any())) if needed else kinds[0] or kinds[1]
    is_whole = reason is None
    counts, n = AlertCounts(n_with, right, n_without, false), n_with + n_without
    bounds = bound_net_benefit(counts, chance, (wide, narrow, _find_mean_size(tables, told_K))) if is_whole else None
    described: AlertEntry = {
        "n_with": n_with,
        "n_without": n_without,
        "alerts": right + false,
        "classes": _name(content, told_K & is_alert_K),
        "left_out": _name(content, ~told_K),
        "not_told": _name(content, partly_K),
        "prevalence": n_with / n if n else None,
        "sensitivity": _describe_share(right, n_with, wide, kinds[0]),
        "specificity": _describe_share(n_without - false, n_without, narrow, kinds[1]),
        "ppv": _describe_share(right, right + false, both, reason or "no image raises an alert"),
        "npv": _describe_share(n_without - false, n - right - false, both, reason or "every image raises an alert"),
        "ppv_stated": None if stated is None else {"value": stated["ppv"][0], "interval": stated["ppv"][1]},
        "npv_stated": None if stated is None else {"value": stated["npv"][0], "interval": stated["npv"][1]},
        "net_benefit": float(net_benefit(right, false, n, chance)) if is_whole else None,
        "net_benefit_interval": bounds,
        "net_benefit_all": float(net_benefit(n_with, n_without, n, chance)) if is_whole else None,
        "by_class": {
            content.classes[label]: _describe_missed(tables, label)
            for label in np.flatnonzero(told_K & is_alert_K).tolist()
        },
    }
    if reason is not None:
        described |= {"ppv": _give_reason(reason), "npv": _give_reason(reason), "net_benefit_reason": reason}
    return described


def _explain_none(scope: _Scope, number: int, lacking: list[str], noun: str) -> str | None:
    """Return why there is no image with, or without, an alert class; None where there is."""
    if number:
        return None
    return scope.explain(lacking) if lacking else f"no image {noun} such a class"


def _give_reason(reason: str) -> AlertFigure:
    return {"value": None, "interval": None, "reason": reason}


def _name(content: ReportContent, chosen_K: Array) -> list[str]:
    return [name for name, is_chosen in zip(content.classes, chosen_K, strict=True) if is_chosen]


def _describe_missed(tables: EvaluationTables, label: int) -> MissedEntry:
    n, raised = map(int, tables.alerts[0, label])
    row_K = np.arange(tables.num_classes) == label
    effect = find_pooled_effect(tables, row_K)
    return {"n": n, "missed": n - raised, "share": _describe_share(n - raised, n, effect)}


def _describe_share(number: int, n: int, effect: float, reason: str | None = None) -> AlertFigure:
    """Return a share with its interval, as if there were fewer images by the design effect."""
    if not n:
        return _give_reason(reason or "no image")
    low, high = proportion_interval(np.array(number / effect), np.array(n / effect))
    return {"value": number / n, "interval": (float(low), float(high))}


def _find_mean_size(tables: EvaluationTables, told_K: Array) -> float:
    """Return how many images of a class an image's patient has on average, at least 1; 1 where nobody knows."""
    patients, images = tables.patients[:, told_K], tables.row_images[:, told_K]
    sizes = np.where(patients[..., PATIENTS] > 0, patients[..., SIZES], images)
    return max(1.0, float(sizes.sum()) / max(float(images.sum()), 1.0))

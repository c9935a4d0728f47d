"""The part of ``report.json`` about alerts: sensitivity, specificity, predictive values and net benefit."""

import numpy as np

from fedmed.clinical.values import THRESHOLDS, DecisionCurve, draw_curve, net_benefit, to_probability
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
from fedmed.report.schema.clinical import AlertEntry, ClinicalHolder, ClinicalPart, CurveEntry, MissedEntry
from fedmed.report.schema.figures import Drawn
from fedmed.storage.records import OperatingRecord

_NOTHING: Drawn = {"value": None, "interval": None}


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
    described["whole"] = _describe_alerts(own.pool(), content, point)
    described["sites"] = {site: _describe_alerts(own.select(site), content, point) for site in own.groups}
    described["groups"] = {
        attribute: {
            group: _describe_alerts(tables.select(group), content, point)
            for group in groups.shown(attribute)
            if tables.select(group).alerts.any()
        }
        for attribute, tables in groups.tables.items()
        if attribute != SITE_ATTRIBUTE
    }
    _add_curves(described, own, content)
    return {"clinical": described}


def _add_curves(described: ClinicalPart, own: EvaluationTables, content: ReportContent) -> None:
    is_merged = max(content.thresholds["k"], content.thresholds["k_row"]) > 1
    by_site = dict(zip(own.groups, own.decision, strict=True))
    for site, decision in by_site.items():
        curve = draw_curve([decision], is_merged=is_merged)
        if curve is not None:
            described["curves"][site] = _list_curve(curve)
    told = [by_site[site] for site in described["curves"]]
    whole = draw_curve(told, is_merged=is_merged)
    if whole is not None:
        described["curve"] = _list_curve(whole)


def _list_curve(curve: DecisionCurve) -> CurveEntry:
    return {
        "value": curve.value.tolist(),
        "low": curve.low.tolist(),
        "high": curve.high.tolist(),
        "all": curve.all.tolist(),
    }


def _describe_alerts(tables: EvaluationTables, content: ReportContent, point: OperatingRecord) -> AlertEntry:
    """Return how alerts do on the images of one group.

    How alerts vary between patients is not told: the design effects are those of right answers (first choices) in the
    same classes.
    """
    is_alert_K = np.array([name in point["alert_classes"] for name in content.classes], np.bool_)
    asked_K, raised_K = tables.alerts[0].T
    told_K = asked_K > 0
    n_with, n_without = int(asked_K[is_alert_K].sum()), int(asked_K[~is_alert_K].sum())
    right, false = int(raised_K[is_alert_K].sum()), int(raised_K[~is_alert_K].sum())
    wide, narrow = (find_pooled_effect(tables, told_K & rows) for rows in (is_alert_K, ~is_alert_K))
    stated = None
    if point["prevalence"] is not None and n_with and n_without:
        stated = predict_at(
            (right / wide, n_with / wide), ((n_without - false) / narrow, n_without / narrow), point["prevalence"]
        )
    both = max(wide, narrow)
    chance = to_probability(point["threshold"] or 0.0)
    is_whole = bool(n_with and n_without)
    counts = AlertCounts(n_with, right, n_without, false)
    bounds = bound_net_benefit(counts, chance, (wide, narrow, _find_mean_size(tables, told_K))) if is_whole else None
    return {
        "n_with": n_with,
        "n_without": n_without,
        "alerts": right + false,
        "classes": _name(content, told_K & is_alert_K),
        "left_out": _name(content, ~told_K),
        "prevalence": n_with / (n_with + n_without) if n_with + n_without else None,
        "sensitivity": _describe_share(right, n_with, wide),
        "specificity": _describe_share(n_without - false, n_without, narrow),
        "ppv": _describe_share(right, right + false, both) if is_whole else _NOTHING,
        "npv": _describe_share(n_without - false, n_with + n_without - right - false, both) if is_whole else _NOTHING,
        "ppv_stated": None if stated is None else {"value": stated["ppv"][0], "interval": stated["ppv"][1]},
        "npv_stated": None if stated is None else {"value": stated["npv"][0], "interval": stated["npv"][1]},
        "net_benefit": float(net_benefit(right, false, n_with + n_without, chance)) if is_whole else None,
        "net_benefit_interval": bounds,
        "by_class": {
            content.classes[label]: _describe_missed(tables, label)
            for label in np.flatnonzero(told_K & is_alert_K).tolist()
        },
    }


def _name(content: ReportContent, chosen_K: Array) -> list[str]:
    return [name for name, is_chosen in zip(content.classes, chosen_K, strict=True) if is_chosen]


def _describe_missed(tables: EvaluationTables, label: int) -> MissedEntry:
    n, raised = map(int, tables.alerts[0, label])
    row_K = np.arange(tables.num_classes) == label
    effect = find_pooled_effect(tables, row_K)
    return {"n": n, "missed": n - raised, "share": _describe_share(n - raised, n, effect)}


def _describe_share(number: int, n: int, effect: float) -> Drawn:
    """Return a share with its interval, as if there were fewer images by the design effect."""
    if not n:
        return _NOTHING
    low, high = proportion_interval(np.array(number / effect), np.array(n / effect))
    return {"value": number / n, "interval": (float(low), float(high))}


def _find_mean_size(tables: EvaluationTables, told_K: Array) -> float:
    """Return how many images of a class an image's patient has on average, at least 1; 1 where nobody knows."""
    patients, images = tables.patients[:, told_K], tables.row_images[:, told_K]
    sizes = np.where(patients[..., PATIENTS] > 0, patients[..., SIZES], images)
    return max(1.0, float(sizes.sum()) / max(float(images.sum()), 1.0))

"""Which images and patients went where: from what the sites have to what the figures rest on."""

from collections.abc import Mapping
from typing import Literal

from fedmed.data.found import NO_SITE, FoundImages
from fedmed.metrics.clusters import PATIENTS
from fedmed.metrics.site_tables import SITE_ATTRIBUTE
from fedmed.metrics.tables import EvaluationTables
from fedmed.report.content import ReportContent
from fedmed.report.figures.describe import name_classes
from fedmed.report.figures.fairness import Groups
from fedmed.report.schema.flow import DataFlow, FoundEntry, FoundPart, PatientCounts, SiteFlow

Count = Literal["train", "validation", "test", "scored", "patients"]
COUNTS: tuple[Count, ...] = ("train", "validation", "test", "scored", "patients")
PATIENT_UNIT = "patients"


def describe_flow(content: ReportContent, groups: Groups, train_images: Mapping[str, int | None]) -> DataFlow:
    """Return the images of every site by part, and how many of them, and of their patients, were scored.

    Parameters
    ----------
    content : ReportContent
        Images by site and part, as the sites told them, and their tables.
    groups : Groups
        From :func:`fedmed.report.figures.fairness.pool_groups`.
    train_images : mapping of str to int or None
        Training images by site, as far as they are known.
    """
    names = sorted({*train_images, *content.num_images, *content.validation, *content.test})
    sites = {name: _describe_site(content, name, train_images.get(name)) for name in names}
    return {
        "sites": sites,
        "total": {part: _add(sites, part) for part in COUNTS},
        "patients": _count_patients(content, groups),
        "found": _count_found(content),
    }


def _count_found(content: ReportContent) -> FoundEntry | None:
    """Return images found and left out, of all sites and of each where it is known."""
    if content.found is None:
        return None
    sites = {name: _describe_found(own) for name, own in content.found.items()}
    reasons = sorted({reason for own in sites.values() for reason in own["excluded"]})
    return {
        "found": sum(own["found"] for own in sites.values()),
        "left_out": sum(own["left_out"] for own in sites.values()),
        "excluded": {reason: sum(own["excluded"].get(reason, 0) for own in sites.values()) for reason in reasons},
        # Of rows without a known site, each site may have more than the others' numbers say.
        "sites": {} if NO_SITE in sites else sites,
    }


def _describe_found(own: FoundImages) -> FoundPart:
    left_out = sum(own["excluded"].values())
    return {"found": sum(own["kept"].values()) + left_out, "left_out": left_out, "excluded": own["excluded"]}


def _describe_site(content: ReportContent, name: str, train_images: int | None) -> SiteFlow:
    composition = (content.composition or {}).get(name, {})
    told = content.num_images.get(name) or {part: sum(counts) for part, counts in composition.items()}
    tables = content.test[name].site if name in content.test else None
    kept = content.found[name]["kept"] if content.found is not None and name in content.found else {}
    # What sites with thresholds tell is rounded down: beside the scored images it would be wrong.
    test = told.get("test") if content.thresholds["k"] <= 1 else None
    return {
        "train": train_images if train_images is not None else told.get("train"),
        "validation": kept.get("validation", told.get("validation")),
        "test": kept.get("test", test),
        "scored": 0 if tables is None else tables.num_images,
        "patients": (0 if _has_ids(content) else None) if tables is None else _count(tables, content),
    }


def _add(sites: Mapping[str, SiteFlow], part: Count) -> int | None:
    """Return the sum, None where a part of it is not known."""
    values = [site[part] for site in sites.values()]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _count_patients(content: ReportContent, groups: Groups) -> PatientCounts | None:
    """Return the patients behind the figures by class and by group, None where the sites' data has no ids."""
    pooled = groups.tables.get(SITE_ATTRIBUTE)
    if pooled is None or not _has_ids(content):
        return None
    by_class = pooled.patients[..., PATIENTS].sum(axis=0)
    return {
        "part": groups.part,
        "by_class": name_classes(content.classes, [round(number) for number in by_class.tolist()]),
        "groups": {
            attribute: {group: _count(tables.select(group), content) for group in groups.shown(attribute)}
            for attribute, tables in groups.tables.items()
        },
    }


def _has_ids(content: ReportContent) -> bool:
    """Return whether patients can be told from images: the sites say so, or some patient has several images."""
    if PATIENT_UNIT in content.thresholds.get("unit", ""):
        return True
    tables = (content.test or content.validation).values()
    return any(_sum_patients(own.site) < own.site.row_images.sum() for own in tables)


def _sum_patients(tables: EvaluationTables) -> int:
    return round(float(tables.patients[..., PATIENTS].sum()))


def _count(tables: EvaluationTables, content: ReportContent) -> int | None:
    """Return the patients of all classes together, one with images of two classes twice; None where nobody knows."""
    number = _sum_patients(tables)
    is_known = _has_ids(content) and (number > 0 or tables.num_images == 0)  # else all are in rows of rare classes
    return number if is_known else None

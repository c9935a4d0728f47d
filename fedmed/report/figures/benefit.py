"""The benefit part of ``report.json``: whether each hospital is better off with the federated model."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from fedmed.fairness.chance.paired import LEVEL, Difference, compare_paired
from fedmed.metrics.clusters import PATIENTS
from fedmed.metrics.site_tables import (
    BATCH_NORM,
    COMPARED_MODELS,
    FEDERATED,
    FINE_TUNED,
    LOCAL,
    SITE_ATTRIBUTE,
    SiteTables,
)
from fedmed.report.content import ReportContent
from fedmed.report.figures.describe import describe_tables, drop_classes, name_classes
from fedmed.report.schema.figures import (
    BenefitEntry,
    BenefitPart,
    DifferenceEntry,
    FigureEntries,
    SiteVerdict,
)

MODELS = (FEDERATED, BATCH_NORM, FINE_TUNED, LOCAL)
SHOWN_FIGURES = ("balanced_accuracy", "accuracy", "macro_f1", "auc", "ece", "brier")
DECIDING_FIGURES = ("balanced_accuracy", "accuracy")
UNKNOWN_VERDICT: Final = "unknown"
VERDICTS: tuple[SiteVerdict, ...] = ("worse", "better", "undecided", UNKNOWN_VERDICT)
_NOT_COMPARED = "the site answered without a model of its own"
_NOT_ASKED = "no answer of this site's test images"


def describe_benefit(content: ReportContent, site_figures: Mapping[str, FigureEntries]) -> BenefitPart:
    """Compare the federated model at every site with the site's own and with its personalised forms.

    Parameters
    ----------
    content : ReportContent
        With the test tables.
    site_figures : mapping of str to dict
        The federated model's test figures of every site, as they are described already.

    Returns
    -------
    BenefitPart
        ``benefit``: by site ``models``, ``differences``, ``verdict``, ``decided_by``, ``disagree`` and ``reason``,
        ``benefit_summary``: the sites by verdict, and ``benefit_pooled``: one comparison over the images of all sites.
        Empty where the run compared nothing.

    Notes
    -----
    A verdict rests on accuracy and balanced accuracy together: on the one whose p-value, adjusted for the other, is
    below 5 %, if the interval leaves out 0 too. Balanced accuracy alone would rest on a few images of rare classes, and
    accuracy alone would not see them. Where both are beyond chance in opposite directions there is no verdict.
    """
    compared = any(set(tables.paired) & set(COMPARED_MODELS) for tables in content.test.values())
    # Before the test nobody has an answer, and nothing can be said about anybody.
    if not compared and not (content.benefit_expected and content.test):
        return {"benefit": {}, "benefit_summary": {verdict: [] for verdict in VERDICTS}, "benefit_pooled": {}}
    names = sorted({*content.test, *content.benefit_notes})
    benefit = {name: _describe_site(content, name, site_figures.get(name)) for name in names}
    summary: dict[SiteVerdict, list[str]] = {
        verdict: [name for name in names if benefit[name]["verdict"] == verdict] for verdict in VERDICTS
    }
    return {"benefit": benefit, "benefit_summary": summary, "benefit_pooled": _describe_pooled(content)}


def _describe_site(content: ReportContent, name: str, federated: FigureEntries | None) -> BenefitEntry:
    tables = content.test.get(name)
    models: dict[str, FigureEntries] = {}
    differences: dict[str, dict[str, DifferenceEntry]] = {}
    if tables is not None and federated is not None:
        models[FEDERATED] = _keep_shown(federated)
        for model in COMPARED_MODELS:
            if model in tables.models:
                models[model] = _keep_shown(describe_tables(tables.models[model][SITE_ATTRIBUTE], content))
            if SITE_ATTRIBUTE in tables.paired.get(model, {}):
                differences[model] = _describe_differences(content, tables, model)
    verdict, decided_by = decide(differences.get(LOCAL, {}))
    entry: BenefitEntry = {
        "models": {model: models[model] for model in MODELS if model in models},
        "differences": differences,
        "verdict": verdict,
        "decided_by": decided_by,
    }
    if tables is not None and LOCAL in differences:
        paired = tables.paired[LOCAL][SITE_ATTRIBUTE].pool()
        entry["disagree"] = _disagree(differences[LOCAL])
        entry["images_by_class"] = name_classes(content.classes, paired.cells[0].sum(axis=(1, 2)).tolist())
        entry["patients"] = round(tables.site.patients[..., PATIENTS].sum())
    if verdict == UNKNOWN_VERDICT:
        entry["reason"] = content.benefit_notes.get(name) or _find_reason(differences, tables)
    return entry


def _keep_shown(figures: FigureEntries) -> FigureEntries:
    return {key: drop_classes(figures[key]) for key in SHOWN_FIGURES if key in figures}


def _describe_differences(content: ReportContent, tables: SiteTables, model: str) -> dict[str, DifferenceEntry]:
    compared = _compare([tables], model, content.seed)
    return {key: _describe_difference(compared[key]) for key in DECIDING_FIGURES if key in compared}


def _compare(sites: Sequence[SiteTables], model: str, seed: int) -> dict[str, Difference]:
    """Compare models over the images of some sites; a patient is taken to be at one of them only."""
    paired = [tables.paired[model][SITE_ATTRIBUTE].pool() for tables in sites]
    return compare_paired(
        np.stack([one.cells[0] for one in paired]),
        seed,
        spread=np.stack([one.spread[0] for one in paired]),
        patients=np.stack([tables.models[FEDERATED][SITE_ATTRIBUTE].pool().patients[0] for tables in sites]),
    )


def _describe_pooled(content: ReportContent) -> dict[str, DifferenceEntry]:
    """Compare the federated model with the sites' own ones over the images of all sites that compared them."""
    sites = [
        content.test[name]
        for name in sorted(content.test)
        if SITE_ATTRIBUTE in content.test[name].paired.get(LOCAL, {})
    ]
    if len(sites) < 2:
        return {}
    return {key: _describe_difference(one) for key, one in _compare(sites, LOCAL, content.seed).items()}


def _describe_difference(difference: Difference) -> DifferenceEntry:
    described = describe_difference(difference)
    if described["value"] is None:
        described["reason"] = described["reason"] or "not defined for these images"
    return described


def describe_difference(difference: Difference) -> DifferenceEntry:
    """Return a difference as it is in ``report.json``."""
    return {
        "value": difference.value,
        "interval": difference.interval,
        "p_value": difference.p_value,
        "n": difference.n,
        "verdict": difference.verdict,
        "reason": difference.reason,
        "family_p": difference.family_p,
    }


def decide(differences: Mapping[str, DifferenceEntry]) -> tuple[SiteVerdict, str | None]:
    """Return the joint verdict of a comparison on accuracy and balanced accuracy, and the figure that it rests on.

    Parameters
    ----------
    differences : mapping of str to dict
        By figure, of the federated model and one other at one site, with p-values adjusted for both figures.
    """
    known = [key for key in DECIDING_FIGURES if key in differences and differences[key]["value"] is not None]
    if not known:
        return UNKNOWN_VERDICT, None
    found = [key for key in known if _is_beyond_chance(differences[key])]
    verdicts = {differences[key]["verdict"] for key in found}
    if len(verdicts) != 1:
        return "undecided", known[0]
    first = min(found, key=lambda key: differences[key].get("family_p") or 0.0)
    return differences[first]["verdict"], first


def _is_beyond_chance(difference: DifferenceEntry) -> bool:
    family_p = difference.get("family_p")
    return difference["verdict"] != "undecided" and family_p is not None and family_p < LEVEL


def _disagree(differences: Mapping[str, DifferenceEntry]) -> bool:
    """Return whether one figure is beyond chance and the other is not, or points the other way."""
    known = [one for key in DECIDING_FIGURES if (one := differences.get(key)) and one["value"] is not None]
    return len({one["verdict"] if _is_beyond_chance(one) else "undecided" for one in known}) > 1


def _find_reason(differences: Mapping[str, Mapping[str, DifferenceEntry]], tables: SiteTables | None) -> str:
    if tables is None:
        return _NOT_ASKED
    reasons = [entry["reason"] for entry in differences.get(LOCAL, {}).values() if entry["reason"]]
    return reasons[0] if reasons else _NOT_COMPARED

"""The benefit part of ``report.json``: whether each hospital is better off with the federated model."""

from collections.abc import Mapping
from typing import Final

from fedmed.fairness.chance.paired import Difference, compare_paired
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
from fedmed.report.figures.describe import describe_tables, drop_classes
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
        ``benefit``: by site ``models``, ``differences``, ``verdict``, ``decided_by`` and ``reason``, and
        ``benefit_summary``: the sites by verdict. Empty where the run compared nothing.
    """
    compared = any(set(tables.paired) & set(COMPARED_MODELS) for tables in content.test.values())
    # Before the test nobody has an answer, and nothing can be said about anybody.
    if not compared and not (content.benefit_expected and content.test):
        return {"benefit": {}, "benefit_summary": {verdict: [] for verdict in VERDICTS}}
    names = sorted({*content.test, *content.benefit_notes})
    benefit = {name: _describe_site(content, name, site_figures.get(name)) for name in names}
    summary: dict[SiteVerdict, list[str]] = {
        verdict: [name for name in names if benefit[name]["verdict"] == verdict] for verdict in VERDICTS
    }
    return {"benefit": benefit, "benefit_summary": summary}


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
    verdict, decided_by = _decide(differences.get(LOCAL, {}))
    entry: BenefitEntry = {
        "models": {model: models[model] for model in MODELS if model in models},
        "differences": differences,
        "verdict": verdict,
        "decided_by": decided_by,
    }
    if verdict == UNKNOWN_VERDICT:
        entry["reason"] = content.benefit_notes.get(name) or _find_reason(differences, tables)
    return entry


def _keep_shown(figures: FigureEntries) -> FigureEntries:
    return {key: drop_classes(figures[key]) for key in SHOWN_FIGURES if key in figures}


def _describe_differences(content: ReportContent, tables: SiteTables, model: str) -> dict[str, DifferenceEntry]:
    cells_K22 = tables.paired[model][SITE_ATTRIBUTE].cells.sum(axis=0)
    compared = compare_paired(cells_K22, content.seed)
    return {key: _describe_difference(compared[key]) for key in DECIDING_FIGURES if key in compared}


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
    }


def _decide(differences: Mapping[str, DifferenceEntry]) -> tuple[SiteVerdict, str | None]:
    """Return the verdict over a site, and the figure that it rests on: balanced accuracy if that is defined."""
    for key in DECIDING_FIGURES:
        if key in differences and differences[key]["value"] is not None:
            return differences[key]["verdict"], key
    return UNKNOWN_VERDICT, None


def _find_reason(differences: Mapping[str, Mapping[str, DifferenceEntry]], tables: SiteTables | None) -> str:
    if tables is None:
        return _NOT_ASKED
    reasons = [entry["reason"] for entry in differences.get(LOCAL, {}).values() if entry["reason"]]
    return reasons[0] if reasons else _NOT_COMPARED

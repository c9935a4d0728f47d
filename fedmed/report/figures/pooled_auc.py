"""The exact macro AUC over all sites' images beside the one that sites' tables give."""

from collections.abc import Iterable, Mapping

from fedmed.report.content import ReportContent
from fedmed.report.schema.figures import ClassFigure, FigureEntry
from fedmed.report.schema.pooled_auc import AreaPair, PooledAucEntry


def describe_pooled_auc(content: ReportContent, auc: FigureEntry) -> PooledAucEntry | None:
    """Return both areas and their differences; None where nobody holds all images.

    Parameters
    ----------
    content : ReportContent
        With the exact areas of a simulation.
    auc : FigureEntry
        ``figures.auc``.

    Notes
    -----
    Of a class whose area the thresholds hold back the exact one is held back, too.

    ``exact`` of the whole is the mean of the classes' areas against the rest, over the classes of which both areas are
    known, so that the difference is of the same classes.
    """
    record = content.pooled_auc
    if record is None:
        return None
    told: Mapping[str, ClassFigure] = auc.get("by_class", {})
    areas = record["by_class"] or [None] * content.num_classes
    by_class = {
        name: _pair(exact, told[name]["value"] if name in told else None)
        for name, exact in zip(content.classes, areas, strict=True)
    }
    known = [name for name, pair in by_class.items() if pair["difference"] is not None]
    reason = None if known else "no class has an area in both"
    if record["by_class"] is None:
        reason = f"{record['n']:,} test images; above {record['limit']:,} they are not scored a second time"
    return {
        **_pair(_mean(by_class[name]["exact"] for name in known), _mean(by_class[name]["shown"] for name in known)),
        "n": record["n"],
        "over_classes": known,
        "by_class": by_class,
        "reason": reason,
    }


def _pair(exact: float | None, shown: float | None) -> AreaPair:
    if exact is None or shown is None:
        return {"exact": None, "shown": shown, "difference": None}
    return {"exact": exact, "shown": shown, "difference": exact - shown}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

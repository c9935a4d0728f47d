"""What a report holds about the distillation from a teacher at the sites."""

from collections.abc import Sequence
from typing import Any

from fedmed.report.content import ReportContent
from fedmed.storage.history import RoundDistillation, RoundRecord


def describe_distillation(content: ReportContent, records: Sequence[RoundRecord]) -> dict[str, Any] | None:
    """Return the entry ``distillation`` of a report, None where nothing was distilled.

    Returns
    -------
    dict or None
        ``teacher``, the settings; ``bands``, the edges of the bands of frequencies in shares of the Nyquist frequency;
        ``rounds``, each with ``round``, ``ekd``, ``gains`` of the averaged prompt by band (None unless it is static)
        and ``sites``, by name ``ekd`` and ``gains`` as far as they were told.
    """
    settings = content.config.get("fopro") or {}
    told = [(record.round, record.fopro) for record in records if record.fopro is not None]
    if not told:
        return None
    bands = next((fopro.bands for _, fopro in told if fopro.bands), None)
    return {
        "teacher": {key: value for key, value in (settings.get("teacher") or {}).items() if key != "path"},
        "weight": settings.get("weight"),
        "mode": (settings.get("prompt") or {}).get("mode"),
        "bands": None if bands is None else [{key: band[key] for key in ("low", "high")} for band in bands],
        "rounds": [_describe_round(number, fopro) for number, fopro in told],
    }


def _describe_round(number: int, fopro: RoundDistillation) -> dict[str, Any]:
    return {
        "round": number,
        "ekd": fopro.ekd,
        "gains": None if fopro.bands is None else [band["gain"] for band in fopro.bands],
        "sites": {site: {"ekd": of.ekd, "gains": of.bands} for site, of in sorted(fopro.sites.items())},
    }

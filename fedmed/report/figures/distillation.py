"""What a report holds about the distillation from a teacher at the sites."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from fedmed.report.content import ReportContent
from fedmed.report.schema.document import Band, DistillationEntry, DistillationRound
from fedmed.storage.history import RoundDistillation, RoundRecord


def describe_distillation(content: ReportContent, records: Sequence[RoundRecord]) -> DistillationEntry | None:
    """Return the entry ``distillation`` of a report, None where nothing was distilled.

    Returns
    -------
    DistillationEntry or None
        ``teacher``, the settings; ``bands``, the edges of the bands of frequencies in shares of the Nyquist frequency;
        ``rounds``, each with ``round``, ``ekd``, ``gains`` of the averaged prompt by band (None unless it is static)
        and ``sites``, by name ``ekd`` and ``gains`` as far as they were told.
    """
    settings = _section(content.config.get("fopro"))
    weight, mode = settings.get("weight"), _section(settings.get("prompt")).get("mode")
    told = [(record.round, record.fopro) for record in records if record.fopro is not None]
    if not told:
        return None
    bands = next((fopro.bands for _, fopro in told if fopro.bands), None)
    return {
        "teacher": {key: value for key, value in _section(settings.get("teacher")).items() if key != "path"},
        "weight": weight if isinstance(weight, int | float) else None,
        "mode": None if mode is None else str(mode),
        "bands": None if bands is None else [_describe_band(band) for band in bands],
        "rounds": [_describe_round(number, fopro) for number, fopro in told],
    }


def _section(settings: JsonValue) -> dict[str, JsonValue]:
    return settings if isinstance(settings, dict) else {}


def _describe_band(band: Mapping[str, float | None]) -> Band:
    low, high = band["low"], band["high"]
    assert low is not None and high is not None, "only the gain of a band may be unknown"  # noqa: PT018
    return {"low": low, "high": high}


def _describe_round(number: int, fopro: RoundDistillation) -> DistillationRound:
    return {
        "round": number,
        "ekd": fopro.ekd,
        "gains": None if fopro.bands is None else [band["gain"] for band in fopro.bands],
        "sites": {site: {"ekd": of.ekd, "gains": of.bands} for site, of in sorted(fopro.sites.items())},
    }

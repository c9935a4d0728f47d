"""What a run folder shows for itself: its report, from what lies on the disk alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from fedmed.aggregation.site_shift import read_shift
from fedmed.config import FederationConfig, SitesData
from fedmed.config.server import LOCAL_SETTINGS, ServerConfig
from fedmed.data.found import read_found
from fedmed.data.split_files import read_quartiles
from fedmed.metrics.site_tables import FEDERATED, STUDENT, SiteTables
from fedmed.processes.locks import wait_for_lock
from fedmed.protocol.faulty_sites import WithoutFaulty, without_faulty
from fedmed.protocol.reports import SiteDescription
from fedmed.report import ReportContent, write_report
from fedmed.report.document import build_document
from fedmed.report.page import save_report
from fedmed.report.schema.document import Thresholds
from fedmed.storage.history import RoundRecord, read_history
from fedmed.storage.operating_records import read_operating_point
from fedmed.storage.pooled_auc import read_pooled_auc
from fedmed.storage.run_folder import RunFolder
from server.finish.chance import read_doubts
from server.finish.own_models import explain_missing
from server.rounds.attendance import load_sites
from server.rounds.scoring import load_tables, round_folder

T = TypeVar("T")
R = TypeVar("R")
_REPORT_LOCK = "report.lock"
_NO_TABLES = (
    "Validation by class and by patient group, and alarms over the rounds: n/a. With choice: figure the sites tell no "
    "tables of validation images, but balanced accuracy and accuracy with 3 digits over the classes of which each has "
    "enough patients; the pooled figures are their means, weighted by images."
)
_DEPLOYMENT_COMMAND = "flower-server --config server.yaml"


def write_final_report(run: RunFolder, chosen_round: int, on_note: Callable[[str], None] = print) -> None:
    """Write the report of a run whose chosen model was tested.

    Of a real federation there are two: ``report/`` for the coordinating site, and ``shared/report/`` without the
    reasons why single hospitals were left out, which goes to all of them.

    Parameters
    ----------
    run : RunFolder
        The run.
    chosen_round : int
        Whose model was tested.
    on_note : callable
        Is told of sites with whose answers no report can be made.
    """
    content = build_content(run, chosen_round, tested=True)
    with wait_for_lock(run.path / _REPORT_LOCK):
        left_out = _write_without_faulty(run.path, content)
    if isinstance(run.read_settings(), ServerConfig):
        shared = build_content(run, chosen_round, tested=True, with_reasons=False)
        left_out |= _write_without_faulty(run.path / "shared", shared)
    for site, reason in left_out.items():
        on_note(f"{site} is left out of the report: {reason}.")


def write_interim_report(run: RunFolder) -> None:
    """Write the report of a run that is still going on, as far as it has come.

    Drawing takes seconds, in which the run may have ended: what is final is not written over.
    """
    history = read_history(run.history_file)
    if not history:
        return
    content = build_content(run, history[-1].round, tested=False)
    document = _without_faulty(content, build_document).result
    with wait_for_lock(run.path / _REPORT_LOCK):
        if not load_tables(run.tables / "test"):
            save_report(run.path, document)


def _write_without_faulty(folder: Path, content: ReportContent) -> dict[str, str]:
    """Write a report; return the sites with whose answers it cannot be made, which are not in it, and why."""
    return _without_faulty(content, lambda some: write_report(folder, some)).left_out


def _without_faulty(content: ReportContent, make: Callable[[ReportContent], R]) -> WithoutFaulty[R]:
    names = sorted({*content.test, *content.validation, *content.gate, *(content.composition or {})})

    def compute(sites: Mapping[str, str]) -> R:
        return make(content if len(sites) == len(names) else _restrict(content, set(sites), set(names) - set(sites)))

    return without_faulty({name: name for name in names}, compute, what="the report", is_sound=lambda _: True)


def _restrict(content: ReportContent, sites: set[str], others: set[str]) -> ReportContent:
    """Return the content without what some sites have sent."""

    def choose(of_sites: Mapping[str, T]) -> dict[str, T]:
        return {name: value for name, value in of_sites.items() if name in sites}

    return replace(
        content,
        test=choose(content.test),
        validation=choose(content.validation),
        gate=choose(content.gate),
        composition=None if content.composition is None else choose(content.composition) or None,
        notes=[*content.notes, f"Left out, because their answers cannot be used: {', '.join(sorted(others))}."],
    )


def build_content(run: RunFolder, chosen_round: int, *, tested: bool, with_reasons: bool = True) -> ReportContent:
    """Return what a report is made from.

    Parameters
    ----------
    run : RunFolder
        The run.
    chosen_round : int
        Whose model the figures are of.
    tested : bool
        Whether the test tables are there.
    with_reasons : bool
        Whether to say why sites were left out of rounds.
    """
    config = run.read_settings()
    sites = load_sites(run)
    history = read_history(run.history_file)
    if not with_reasons:
        history = [_drop_reasons(record) for record in history]
    test = load_tables(run.tables / "test") if tested else {}
    compression, gate = (run.read_compression(), load_tables(run.compression / "gate")) if tested else (None, {})
    validation = load_tables(round_folder(run.tables, chosen_round))
    if compression is not None and compression["status"] == "accepted":
        validation = {site: SiteTables({FEDERATED: tables.models[STUDENT]}) for site, tables in gate.items()}
    return ReportContent(
        title=f"Federated run '{config.name}'",
        config=_shown_settings(config),
        environment=_shown_environment(run, config),
        classes=tuple(config.classes or ()),
        chosen_round=chosen_round,
        rounds_done=len(history),
        history=history,
        validation=validation,
        test=test,
        composition=_find_composition(sites),
        synthetic=_is_synthetic(config, sites),
        notes=[
            *_make_notes(config, sites, set(test), len(history), tested=tested),
            *_say_quartiles(read_quartiles(run.splits)),
            *(f"Warning: {text}" for text in (read_doubts(run) if tested else [])),
        ],
        seed=config.seed,
        thresholds=_find_thresholds(sites),
        single_sites=not isinstance(config, ServerConfig),
        agreed=frozenset(site for site, told in sites.items() if told.show_alone),
        num_images={} if isinstance(config, ServerConfig) else _count_images(sites),
        temperature=run.read_temperature() if tested else None,
        operating=read_operating_point(run) if tested else None,
        benefit_expected=config.benefit and tested,
        benefit_notes=explain_missing(run, test) if tested else {},
        compression=compression,
        gate=gate,
        shift=read_shift(run.tables),
        found=None if isinstance(config, ServerConfig) else read_found(run.splits),
        pooled_auc=None if isinstance(config, ServerConfig) or not tested else read_pooled_auc(run.tables),
        **({"command": _DEPLOYMENT_COMMAND} if isinstance(config, ServerConfig) else {}),
    )


def _make_notes(
    config: FederationConfig,
    sites: Mapping[str, SiteDescription],
    answered: set[str],
    rounds_done: int,
    *,
    tested: bool,
) -> list[str]:
    notes = [_NO_TABLES] if config.choice == "figure" else []
    if not tested:
        done = f"{rounds_done} of {config.rounds} rounds are done"
        return [f"The run goes on: {done}. Test images are scored at the end.", *notes]
    untested = sorted(set(sites) - answered)
    return [*([f"No test answer from: {', '.join(untested)}."] if untested else []), *notes]


def _say_quartiles(quartiles: Mapping[str, list[float]]) -> list[str]:
    return [
        f"'{name}' is a number and no bands are set for it (data.bands), so it is cut at the quartiles of the training "
        f"images of all sites ({', '.join(f'{edge:g}' for edge in edges) or 'none: no number is known'}). Hospitals "
        "cannot do so, since each knows its own values alone: set data.bands there."
        for name, edges in sorted(quartiles.items())
    ]


def _drop_reasons(record: RoundRecord) -> RoundRecord:
    lines = [line.model_copy(update={"reason": None}) for line in record.participation]
    return record.model_copy(update={"participation": lines})


def _find_composition(sites: Mapping[str, SiteDescription]) -> dict[str, dict[str, list[int]]] | None:
    """Return site -> part -> images by class for the sites that share it, None if no site does."""
    shared = {
        site: {str(part): counts for part, counts in told.class_counts.items()}
        for site, told in sorted(sites.items())
        if told.class_counts is not None
    }
    return shared or None


def _count_images(sites: Mapping[str, SiteDescription]) -> dict[str, dict[str, int]]:
    """Return site -> part -> images.

    Not for a real federation: beside the images that are scored they would tell how many a hospital holds back.
    """
    return {name: {str(part): number for part, number in told.num_images.items()} for name, told in sites.items()}


def _find_thresholds(sites: Mapping[str, SiteDescription]) -> Thresholds:
    """Return the largest thresholds below which a site withholds its tables."""
    told = [site.thresholds for site in sites.values()]
    return {
        "k": max((one.k for one in told), default=1),
        "k_row": max((one.k_row for one in told), default=1),
        "k_bin": max((one.k_bin for one in told), default=1),
        "unit": " or ".join(sorted({site.unit for site in sites.values()}, reverse=True)) or "images",
    }


def _is_synthetic(config: FederationConfig, sites: Mapping[str, SiteDescription]) -> bool:
    declared = config.data.synthetic if isinstance(config.data, SitesData) else config.data.source == "phantom"
    return declared or any(told.synthetic for told in sites.values())


def _shown_settings(config: FederationConfig) -> dict[str, JsonValue]:
    """Return the settings as a report shows them: of a deployment without what concerns the server's machine only."""
    return config.model_dump(mode="json", exclude=set(LOCAL_SETTINGS) if isinstance(config, ServerConfig) else None)


def _shown_environment(run: RunFolder, config: FederationConfig) -> dict[str, JsonValue]:
    """Return versions and hardware; a command line holds paths, which a shared report does not need."""
    environment = run.read_environment()
    if isinstance(config, ServerConfig):
        environment.pop("command", None)
    return environment

"""From which alert score on the chosen model raises an alert, from counts that the sites send of validation images.

Chosen once, before the test: test images have no part in it. See :mod:`fedmed.clinical.threshold`.
"""

from collections.abc import Mapping
from dataclasses import asdict

from flwr.app import Message

from fedmed.clinical.scores import NUMBER, find_score_problem
from fedmed.clinical.threshold import OperatingPoint, ScoreCounts, choose_threshold
from fedmed.config import OperatingPlan
from fedmed.errors import WireError
from fedmed.formats import OPERATING_POINT
from fedmed.protocol.faulty_sites import has_finite_numbers, without_faulty
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import read_report, read_sums
from fedmed.protocol.reports import AlertReport
from fedmed.storage.operating_records import read_operating_point, write_operating_point
from fedmed.storage.records import OperatingRecord
from server.finish.chosen import ChosenModel, ask_sums
from server.finish.operating_doubts import find_swayed
from server.rounds.session import Session


def choose_operating_point(
    session: Session, model: ChosenModel, best_round: int | None, temperature: float | None
) -> float | None:
    """Return the threshold of the chosen model; chosen once, then read from the run's folder.

    Parameters
    ----------
    session : Session
        The federation.
    model : ChosenModel
        Whose alerts they are.
    best_round : int, optional
        As the sites are told, which then keep what belongs to it.
    temperature : float, optional
        By what its outputs are divided first.

    Returns
    -------
    float or None
        None where no alert is wanted, or where no threshold could be chosen, which is noted.
    """
    wanted = session.plan.operating
    if wanted is None:
        return None
    record = read_operating_point(session.run)
    if record is None or record["model_sha256"] != model.model_sha256:
        record = _choose(session, model, best_round, temperature, wanted)
    return record["threshold"]


def _choose(
    session: Session, model: ChosenModel, best_round: int | None, temperature: float | None, wanted: OperatingPlan
) -> OperatingRecord:
    declared = session.attendance.most_images("validation")

    def read(message: Message, site: str) -> ScoreCounts | None:
        limits = session.attendance.descriptions[site].thresholds
        is_merged = max(limits.k, limits.k_row) > 1
        return _read(message, model.model_sha256, declared[site], is_merged=is_merged)

    answers = ask_sums(session, KINDS["alert"], model, best_round, read, temperature=temperature)
    told = {site: counts for site, counts in answers.items() if counts is not None}

    def choose(sites: Mapping[str, ScoreCounts]) -> OperatingPoint:
        return choose_threshold(sites.values(), wanted)

    done = without_faulty(
        told, choose, what="the operating point", is_sound=lambda one: has_finite_numbers(asdict(one))
    )
    for site, reason in done.left_out.items():
        session.listener.on_note(f"{site} is left out: {reason}.")
    point, sites = done.result, sorted(set(told) - set(done.left_out))
    record: OperatingRecord = {
        "format": OPERATING_POINT.number,
        "model_sha256": model.model_sha256,
        "alert_classes": wanted.alert_classes,
        "stated_sensitivity": wanted.sensitivity,
        "cost_ratio": wanted.cost_ratio,
        "prevalence": wanted.prevalence,
        "threshold": point.threshold,
        "n_with": point.n_with,
        "n_without": point.n_without,
        "sensitivity": point.sensitivity,
        "specificity": point.specificity,
        "note": point.note,
        "sites": sites,
        "doubts": find_swayed({site: told[site] for site in sites}, wanted, point),
    }
    write_operating_point(session.run, record)
    session.audit.append("operating_point", **{key: value for key, value in record.items() if key != "format"})
    (session.listener.on_info if point.threshold is not None else session.listener.on_note)(_describe(point, wanted))
    return record


def _describe(point: OperatingPoint, wanted: OperatingPlan) -> str:
    names = ", ".join(wanted.alert_classes)
    if point.threshold is None or point.sensitivity is None or point.specificity is None:
        return f"No operating point for alerts ({names}): {point.note}."
    return (
        f"Operating point for alerts ({names}): log-odds {point.threshold:g} or more, chosen on {point.n_with} "
        f"validation images of these classes and {point.n_without} others; sensitivity there at least "
        f"{point.sensitivity:.3f}, specificity at least {point.specificity:.3f}."
    )


def _read(message: Message, sha256: str, most_images: int, *, is_merged: bool) -> ScoreCounts | None:
    """Return a site's counts, None where it tells none; what cannot be true is refused."""
    told = read_report(message, AlertReport)
    if told.model_sha256 != sha256:
        raise WireError("The counts of alert scores are of another model than the one that was sent.")
    if told.n == 0:
        return None
    sums = read_sums(message).get("alerts")
    if sums is None or not sums.is_floating_point():
        raise WireError("The answer holds no counts of alert scores.")
    counts = sums.double().numpy()
    problem = find_score_problem(counts, most_images)
    if problem is not None:
        raise WireError(problem)
    if counts[..., NUMBER].sum() < told.n:
        raise WireError("The counts of alert scores are of fewer images than the report says.")
    return ScoreCounts(counts, is_merged)

"""One round's training at the sites: asked for, received, checked, and accounted for site by site."""

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedmed.config import Compression
from fedmed.errors import FederationError
from fedmed.processes import Backoff
from fedmed.protocol.kinds import Kind
from fedmed.protocol.requests import Request
from fedmed.storage.tensor_files import TensorFile
from fedmed.training.batch_norm_policy import NormBuffers
from server.rounds.courier import SecondModel
from server.rounds.exchange import Answer
from server.rounds.session import Session
from server.rounds.updates import UpdateCollector

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 600.0


def collect_until(session: Session, what: str, ask: Callable[[int], UpdateCollector]) -> tuple[UpdateCollector, int]:
    """Ask for a round's updates until there are ``min_sites`` of them.

    Parameters
    ----------
    session : Session
        Gives up after the attempts of its plan, which every site has approved. A patient one (a real federation)
        makes growing pauses between them: every hospital may train at night only.
    what : str
        The round, for people: ``"Round 3"``.
    ask : callable
        Gets the number of the attempt, from 1, and returns the updates.

    Returns
    -------
    UpdateCollector
        With at least ``min_sites`` accepted updates.
    int
        Number of attempts.

    Raises
    ------
    FederationError
        If it gives up.
    """
    min_sites, attempts = session.config.min_sites, session.plan.attempts
    pauses = Backoff(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
    for attempt in itertools.count(1):
        collector = ask(attempt)
        num_accepted = len(collector.accepted())
        if num_accepted >= min_sites:
            return collector, attempt
        session.listener.on_note(
            f"{what}, attempt {attempt}: {num_accepted} usable updates, at least min_sites = {min_sites} are needed. "
            f"{_list_reasons(collector)}"
        )
        if attempt >= attempts:
            raise FederationError(
                f"{what} had fewer than min_sites = {min_sites} usable updates in {attempts} attempts. "
                f"{_list_reasons(collector)} All rounds before it are saved: mend the sites or lower min_sites, then "
                "resume the run."
            )
        if session.patient:
            time.sleep(pauses.next())
    raise AssertionError("not reached")


def train_at_sites(
    session: Session,
    kind: Kind,
    request: Request,
    model_file: Path,
    model_sha256: str,
    *,
    parameters: frozenset[str],
    compression: Compression,
    dormant_note: str,
    recent_norms: Sequence[float],
    norms: Sequence[NormBuffers],
    other: SecondModel | None = None,
) -> UpdateCollector:
    """Have the sites that are waited for train a model, and return their updates and who has none.

    Parameters
    ----------
    session : Session
        The federation; its folder of updates is emptied.
    kind : Kind
        A kind of message with which a site returns an update.
    request : Request
        What is asked for; has the ``round``.
    model_file, model_sha256 : Path, str
        The model to train.
    parameters : frozenset of str
        Names of its parameters.
    compression : {"none", "fp16", "int8"}
        Form of the updates.
    dormant_note : str
        Why dormant sites are not waited for.
    recent_norms : sequence of float
        Lengths of earlier updates, with which these are compared.
    norms : sequence of NormBuffers
        Its BatchNorms.
    other : SecondModel, optional
        Sent beside the model.
    """
    config, attendance = session.config, session.attendance
    shutil.rmtree(session.run.updates, ignore_errors=True)
    session.run.updates.mkdir()
    sites, dormant = attendance.split(config.max_missed_rounds)
    collector = UpdateCollector(
        session.run.updates,
        TensorFile(model_file),
        attendance.num_images("train"),
        parameters,
        compression,
        norms,
        attendance.list_grown("train"),
    )
    collector.mark(dormant, "dormant", dormant_note)
    few = [site for site in sites if collector.declared[site] == 0]
    collector.mark(few, "few images", "it has fewer training images than its threshold k, so its update has no weight")
    sites = [site for site in sites if site not in few]
    session.listener.on_phase(kind.phase_name(), request.round or 0, len(sites))

    def take(answer: Answer) -> None:
        update = collector.take(answer)
        session.listener.on_answer(update.site, update.reason)
        is_known = update.status == "declined" and update.site in attendance.scores_only
        if update.reason and not is_known:
            session.listener.on_note(f"{update.site} is left out: {update.reason}")
        if update.status == "declined":
            attendance.scores_only.add(update.site)

    missing = session.courier.ask(
        kind.flower,
        request,
        model_file,
        model_sha256,
        sites,
        deadline_s=config.round_deadline_s,
        on_answer=take,
        other=other,
    )
    collector.mark(missing.late, "late", f"no answer within round_deadline_s = {config.round_deadline_s:g}")
    collector.mark(missing.absent, "absent", "not connected when the round began")
    revoked = set(collector.updates) - session.exchange.known_sites()
    collector.mark(sorted(revoked), "revoked", "no longer on the list of sites")
    collector.compare(list(recent_norms), config.aggregation.max_norm_ratio)
    return collector


def _list_reasons(collector: UpdateCollector) -> str:
    reasons = [f"{update.site}: {update.reason}" for update in collector.updates.values() if update.reason]
    if not reasons:
        return "No site has joined."
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return "Left out: " + "; ".join(reasons[:5]) + more + "."

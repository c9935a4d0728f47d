"""Is each hospital better off? The sites' models of their own, trained beside the federation's and never sent.

Round by round every site trains on with its own images alone, from the same initial model and with the same budget as
the federation. The server hears how far each is, see ``tables/local.json``, and the sites compare at the test.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from flwr.app import Message

from fedmed.config import LOCAL_MODEL_OPTIONS
from fedmed.distillation.network import build_network
from fedmed.errors import WireError
from fedmed.metrics.site_tables import COMPARED_MODELS, LOCAL, ComparedModel, SiteTables
from fedmed.processes import Backoff
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, read_report, read_values
from fedmed.protocol.reports import Declined, LocalReport
from fedmed.storage.atomic_files import hash_file, write_atomically
from fedmed.storage.run_folder import RunFolder
from server.rounds.exchange import Answer, open_answer
from server.rounds.local_record import LOCAL_FILE, LocalRecord, read_local
from server.rounds.session import Session

_STEPS = 4
"""Messages to each site in a simulation: with every message its state is read and saved."""
_TRIES = 2
"""Calls of a real federation to sites that are behind at the end, if nothing came of the last one."""
_NOT_NOW = "policy.hours"
_LONGEST_WAIT_S = 24 * 3600.0
"""Any hours at which a site trains come once a day."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 600.0


def write_initial(session: Session) -> Path:
    """Return the file of the initial model, as it travels; the first call makes it."""
    path = session.run.initial_model
    if not path.is_file():
        options = session.config.model.options
        local = {name: options[name] for name in LOCAL_MODEL_OPTIONS if name in options}
        write_atomically(path, build_network(session.plan, **local).pack())
    return path


def train_local(session: Session) -> LocalRecord:
    """Have every site train its own model to the end; what is done already is not done again.

    A site that is late or away gets its chance with the next call. Called again, only sites that are still behind are
    asked.

    Parameters
    ----------
    session : Session
        The federation; nothing happens where its plan has no ``benefit``.

    Returns
    -------
    LocalRecord
    """
    if not session.plan.benefit:
        return LocalRecord()
    record, rounds = read_local(session.run), session.plan.rounds
    calls = _Calls(session, record)
    step = 1 if session.patient else math.ceil(rounds / _STEPS)
    for number in [*range(step, rounds, step), rounds]:
        if number > record.rounds:
            calls.ask(number)
            record.rounds = number
            calls.save()
    calls.catch_up()
    session.courier.take_count()  # these bytes belong to no round
    return record


def explain_missing(run: RunFolder, test: Mapping[str, SiteTables]) -> dict[str, str]:
    """Return why sites with test tables have no comparison with a model of their own.

    Parameters
    ----------
    run : RunFolder
        A run whose chosen model was tested.
    test : mapping of str to SiteTables
        The sites' test tables.

    Returns
    -------
    dict of str to str
        Site to reason.
    """
    config, record = run.read_settings(), read_local(run)
    if not config.benefit:
        return {}
    reasons = {}
    for site in test:
        done = record.sites.get(site, 0)
        if LOCAL in test[site].models:
            continue
        if site in record.declined:
            reasons[site] = "The site's policy has benefit: false, so it trains no model of its own."
        elif done < config.rounds:
            why = f" Last problem: {record.problems[site]}" if site in record.problems else ""
            reasons[site] = f"Its own model has had {done} of {config.rounds} rounds.{why}"
        else:
            reasons[site] = "The site gave no comparison with its own model; its own log says why."
    return reasons


def compared_models(session: Session) -> tuple[ComparedModel, ...]:
    """Return the models with which the sites compare the federation's in the test."""
    return COMPARED_MODELS if session.plan.benefit else ()


class _Calls:
    """Calls to the sites to train on."""

    def __init__(self, session: Session, record: LocalRecord) -> None:
        self._session, self._record = session, record
        self._initial = write_initial(session)
        self._sha256 = hash_file(self._initial)

    def ask(self, last_round: int, *, everybody: bool = False) -> bool:
        """Ask the sites that are behind a round to train up to it; return whether any of them has moved on."""
        session, record = self._session, self._record
        session.welcome(last_round)
        sites = self._find_behind(last_round, everybody=everybody)
        if not sites:
            return False
        before = dict(record.sites)
        kind = KINDS["local"]
        session.listener.on_phase(kind.phase_name(), last_round, len(sites))
        missing = session.courier.ask(
            kind.flower,
            session.make_request(last_round, best_round=None),
            self._initial,
            self._sha256,
            sites,
            deadline_s=session.config.round_deadline_s,
            on_answer=self._take,
            on_demand=True,
        )
        for site in missing.late:
            self._note(site, f"no answer within round_deadline_s = {session.config.round_deadline_s:g}")
        for site in missing.absent:
            self._note(site, "not connected")
        told = {site: record.sites.get(site, 0) for site in sites}
        session.audit.append("local_training", round=last_round, rounds_done=told)
        self.save()
        return record.sites != before

    def catch_up(self) -> None:
        """Call the sites that are behind at the end, as long as that helps."""
        rounds, patient = self._session.plan.rounds, self._session.patient
        pauses = Backoff(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        end, left = time.monotonic() + _LONGEST_WAIT_S, _TRIES if patient else 1
        while sites := self._find_behind(rounds, everybody=True):
            if self.ask(rounds, everybody=True):
                continue
            problems = (self._record.problems.get(site, "") for site in sites)
            left -= 1
            if not patient or time.monotonic() > end or (left <= 0 and not any(_NOT_NOW in text for text in problems)):
                return
            time.sleep(pauses.next())

    def save(self) -> None:
        """Write down how far the sites are."""
        write_atomically(self._session.run.tables / LOCAL_FILE, json.dumps(asdict(self._record)).encode())

    def _find_behind(self, last_round: int, *, everybody: bool) -> list[str]:
        """Return joined sites that have trained fewer rounds; without those nobody waits for, unless all are meant."""
        session, record = self._session, self._record
        awake, dormant = session.attendance.split(session.config.max_missed_rounds)
        sites = [*awake, *dormant] if everybody else awake
        return sorted(site for site in sites if site not in record.declined and record.sites.get(site, 0) < last_round)

    def _take(self, answer: Answer) -> None:
        told, problem = open_answer(answer, self._read)
        self._session.listener.on_answer(answer.site, problem)
        if told is None:
            self._note(answer.site, problem or "")
            return
        self._record.problems.pop(answer.site, None)
        if isinstance(told, Declined):
            self._record.declined = sorted({*self._record.declined, answer.site})
            self._session.listener.on_info(f"{answer.site} trains no model of its own, as its policy says.")
            return
        self._record.sites[answer.site] = told.rounds_done
        if told.loss is not None:
            self._record.losses[answer.site] = told.loss

    def _read(self, message: Message) -> LocalReport | Declined:
        if Declined.fits(read_values(message, REPORT)):
            return read_report(message, Declined)
        told = read_report(message, LocalReport)
        if told.rounds_done > self._session.plan.rounds:
            raise WireError(
                f"It says that {told.rounds_done} rounds of its own model are trained, and the plan has "
                f"{self._session.plan.rounds}."
            )
        return told

    def _note(self, site: str, problem: str) -> None:
        """Keep a problem, and tell it unless it is the same as the last time."""
        if self._record.problems.get(site) != problem:
            self._session.listener.on_note(f"{site} did not train its own model on: {problem}")
        self._record.problems[site] = problem

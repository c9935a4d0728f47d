"""The round loop: train, check, average, evaluate, save; again.

Three numbers rule a round: ``min_sites``, ``round_deadline_s`` and ``max_missed_rounds``. A round always ends, and its
record says who was left out and why. Nothing here knows whether the sites are simulated.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fedmed.aggregation import (
    GlobalModel,
    RuleState,
    Weights,
    average_updates,
    make_rule,
    make_step,
    replace_counters,
)
from fedmed.aggregation.extension import explained_failure
from fedmed.aggregation.site_shift import read_layers, save_shift
from fedmed.errors import FederationError
from fedmed.fairness.chance.alarms import find_alarms
from fedmed.metrics.site_tables import SiteTables
from fedmed.protocol.faulty_sites import without_faulty
from fedmed.protocol.kinds import KINDS
from fedmed.storage.atomic_files import hash_file
from fedmed.storage.checkpoints import Checkpoint
from fedmed.storage.history import Alarm, RoundRecord, Validation, append_record, read_history, write_metrics_csv
from fedmed.storage.tensor_files import TensorFile, write_tensors
from server.rounds.attendance import save_sites
from server.rounds.fopro_record import describe_round
from server.rounds.local_record import read_local
from server.rounds.loop_state import LoopState, save_checkpoint
from server.rounds.scoring import Scores, load_before, prune_tables, round_folder, save_tables
from server.rounds.session import Session
from server.rounds.site_models import ROUNDS_KEPT, keeps_site_models, prune_site_models, put_away
from server.rounds.training import collect_until, train_at_sites
from server.rounds.updates import Update, UpdateCollector
from server.rounds.validation import average_figures, choice_value, is_better, summarise
from server.rounds.weights import bound_round, to_weighted, weigh_updates

_NORMS_REMEMBERED = 20
_PRESENT = frozenset({"accepted", "quarantined", "few images", "declined"})
"""What became of the update of a site that can score a model."""
_COVERAGE_DROP = 0.1
_SPARE_BYTES = 64 * 2**20


class RoundLoop:
    """Runs the rounds that are left.

    Parameters
    ----------
    session : Session
        The federation.
    start : Checkpoint
        Round 0 with the initial model, or the newest round.
    state : LoopState
        What it remembers.
    on_closed : callable, optional
        Called with the number of every closed round, its model's file and hash.
    """

    def __init__(
        self,
        session: Session,
        start: Checkpoint,
        state: LoopState,
        on_closed: Callable[[int, Path, str], None] | None = None,
    ) -> None:
        self.session, self.state, self._on_closed = session, state, on_closed
        self._next_round = start.round + 1
        self._model, self._model_sha256 = GlobalModel(start.model_path, start.moments_path), start.model_sha256
        self._step = make_step(session.config.server_step)
        self._changed: set[str] = set()
        self._history = read_history(session.run.history_file)
        session.attendance.missed = dict(self.state.missed)

    def run(self) -> LoopState:
        """Run all rounds that are left and return the final state.

        Raises
        ------
        FederationError
            If a round has too few updates in every attempt; the run can be resumed.
        """
        for round_number in range(self._next_round, self.session.config.rounds + 1):
            self._run_round(round_number)
            if self._on_closed is not None:
                self._on_closed(round_number, self._model.model, self._model_sha256)
        return self.state

    def _run_round(self, round_number: int) -> None:
        self._gather_sites(round_number)
        self._check_disk(round_number)
        began = time.monotonic()
        collector, attempt = collect_until(self.session, f"Round {round_number}", partial(self._ask, round_number))
        averaged, weights = self._average(collector, round_number)
        with explained_failure("server step", self.session.config.server_step.kind):
            following = self._step.take(self._model, averaged, self.session.parameters, self.session.run.updates)
        sha256 = hash_file(following.model)
        answered = [u.site for u in collector.updates.values() if u.status in _PRESENT]
        scores = self.session.score_round(
            round_number, following.model, sha256, sorted(answered), best_round=self.state.best_round
        )
        record = RoundRecord(
            round=round_number,
            attempt=attempt,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=time.monotonic() - began,
            loss=collector.mean_loss(),
            learning_rate=next((u.learning_rate for u in collector.accepted()), None),
            model_sha256=sha256,
            bytes_to_sites=self.session.courier.take_count(),
            bytes_from_sites=sum(update.update_bytes or 0 for update in collector.updates.values()),
            coverage_images=self._coverage(collector),
            weights=weights,
            participation=collector.to_records(),
        )
        scores = self._summarise(record, scores)
        if self.session.plan.fopro is not None:
            updates = {update.site: update for update in collector.accepted()}
            record.fopro = without_faulty(
                updates,
                lambda some: describe_round(self.session.plan, list(some.values()), following.model),
                what="the record of the distillation",
            ).result
        self._warn_of_coverage(record)
        self._close(record, collector, scores, following)

    def _gather_sites(self, round_number: int) -> None:
        for site in self._changed:  # it has other images than it declared, so it is asked again
            self.session.attendance.descriptions.pop(site, None)
        self._changed.clear()
        self.session.gather_sites(round_number)

    def _check_disk(self, round_number: int) -> None:
        """Refuse to begin a round whose updates and checkpoint would not fit on the disk."""
        num_sites = len(self.session.attendance.descriptions)
        copies = (
            num_sites
            + 2
            + self._step.num_files
            + (ROUNDS_KEPT * num_sites if keeps_site_models(self.session.config) else 0)
        )
        if self.session.patient:  # the SuperLink keeps what it is sent until it is fetched
            copies = 2 * copies
        needed = self._model.model.stat().st_size * copies + _SPARE_BYTES
        free = shutil.disk_usage(self.session.run.path).free
        if free < needed:
            raise FederationError(
                f"Round {round_number} needs about {needed / 2**20:.0f} MiB on the disk of {self.session.run.path}, "
                f"{free / 2**20:.0f} MiB are free. Everything so far is saved. Free some space, then start again: the "
                "run continues."
            )

    def _ask(self, round_number: int, attempt: int) -> UpdateCollector:
        if attempt > 1:
            self._gather_sites(round_number)
        return self._train(round_number)

    def _train(self, round_number: int) -> UpdateCollector:
        session, attendance = self.session, self.session.attendance
        attendance.welcome_back(session.exchange, session.listener)
        _, dormant = attendance.split(session.config.max_missed_rounds)
        attendance.probe(session.exchange, dormant, session.config.round_deadline_s)
        rule = make_rule(session.config.aggregation.fair)
        collector = train_at_sites(
            session,
            KINDS["train"],
            session.make_request(
                round_number,
                best_round=self.state.best_round,
                group_weights=rule.to_request(self.state.fair).get("group_weights"),
            ),
            self._model.model,
            self._model_sha256,
            parameters=session.parameters,
            compression=session.plan.compression,
            dormant_note="not waited for after too many missed rounds; it is asked in passing",
            recent_norms=self.state.recent_norms,
            norms=session.norms,
        )
        self._changed |= collector.changed
        for line in collector.to_records():
            session.audit.append("update", round=round_number, **line.to_json())
        return collector

    def _average(self, collector: UpdateCollector, round_number: int) -> tuple[Path, dict[str, float]]:
        """Write the updates' average beside them, remove them, and return its file and the sites' weights."""
        run = self.session.run

        def weigh(updates: Mapping[str, Update]) -> tuple[Weights, RuleState]:
            return weigh_updates(
                self.session.config,
                collector.only(updates),
                self.state.fair,
                round_number=round_number,
                before=lambda: load_before(self.session.config, run, round_number),
                local_losses=lambda: read_local(run).losses,
            )

        done = without_faulty({update.site: update for update in collector.accepted()}, weigh, what="the weights")
        for site, reason in done.left_out.items():
            collector.quarantine(site, reason)
            self.session.listener.on_note(f"{site} is left out: {reason}.")
        weights, self.state.fair = done.result
        weights = bound_round(self.session, collector, weights, self.state.recent_norms)
        path = run.updates / "average.safetensors"
        before, most = TensorFile(self._model.model), collector.most_batches(self.session.config.training)
        averaged = average_updates(to_weighted(collector, weights, self._model.model))
        averaged = replace_counters(averaged, before, self.session.norms, most)
        write_tensors(path, averaged, {"format": "pt"}, layout=before.layout)
        files = {site: TensorFile(collector.file_of(site)) for site in weights}
        save_shift(run.tables, round_number, "updates", read_layers(files, self.session.norms))
        put_away(self.session, round_number, {site: collector.file_of(site) for site in weights})
        return path, weights

    def _coverage(self, collector: UpdateCollector) -> float:
        """Return the share of all joined sites' training images behind the accepted updates."""
        return sum(collector.declared[update.site] for update in collector.accepted()) / sum(
            collector.declared.values()
        )

    def _summarise(self, record: RoundRecord, scores: Scores) -> Scores:
        """Add the validation figures and the alarms to a record; return the tables that they rest on."""
        if self.session.plan.choice == "figure":
            record.validation = average_figures(scores.figures, self.session.config.aggregation.max_share)
            return scores

        def compute(tables: Mapping[str, SiteTables]) -> tuple[Validation, list[Alarm]]:
            validation = summarise(tables, self.session.attendance.agreed)
            return validation, self._find_alarms(record.model_copy(update={"validation": validation}))

        done = without_faulty(scores.tables, compute, what="the validation figures")
        record.validation, record.alarms = done.result
        self._tell_alarms(record.alarms)
        for site, reason in done.left_out.items():
            self.session.listener.on_note(f"{site} gave no evaluation: {reason}.")
        kept = {site: tables for site, tables in scores.tables.items() if site not in done.left_out}
        return replace(scores, tables=kept, refused={**scores.refused, **done.left_out})

    def _find_alarms(self, record: RoundRecord) -> list[Alarm]:
        """Compare the groups of a round with those of the best round before."""
        best = next((before for before in self._history if before.round == self.state.best_round), None)
        return find_alarms(self._history, record, best, num_rounds=self.session.config.rounds)

    def _tell_alarms(self, alarms: Sequence[Alarm]) -> None:
        """Say what a person should know."""
        known = {_name_alarm(alarm) for alarm in (self._history[-1].alarms if self._history else [])}
        for alarm in alarms:
            if _name_alarm(alarm) not in known:  # what goes on is told once
                self.session.listener.on_note(f"Alarm: {alarm.text}")

    def _warn_of_coverage(self, record: RoundRecord) -> None:
        """Say when clearly fewer training images stand behind a round than behind the one before."""
        before = 1.0 if self.state.record is None else self.state.record.coverage_images
        if record.coverage_images < before - _COVERAGE_DROP:
            self.session.listener.on_note(
                f"Round {record.round} rests on {record.coverage_images:.0%} of the sites' training images, the "
                f"round before on {before:.0%}. The participation table says who was left out and why."
            )

    def _close(
        self,
        record: RoundRecord,
        collector: UpdateCollector,
        scores: Scores,
        following: GlobalModel,
    ) -> None:
        """Save the round: from here on it is never trained again."""
        session, state, round_number = self.session, self.state, record.round
        value = choice_value(session.config, record.validation)
        if is_better(session.config, value, state.best_value):
            state.best_round, state.best_value = round_number, value
        norms = [update.update_norm for update in collector.accepted() if update.update_norm is not None]
        state.recent_norms = [*state.recent_norms, *norms][-_NORMS_REMEMBERED:]
        statuses = {site: update.status for site, update in collector.updates.items()}
        session.attendance.count_round(statuses, scores.missing)
        state.missed = dict(session.attendance.missed)
        state.record = record
        session.audit.append("round", round=round_number, model_sha256=record.model_sha256)
        state.audit_head = session.audit.head
        save_sites(session.run, session.attendance.describe_sites())
        if session.plan.choice == "tables":
            save_tables(round_folder(session.run.tables, round_number), scores.tables)
        self._model = save_checkpoint(session.checkpoints, round_number, following, state)
        prune_site_models(session, {round_number, state.best_round or round_number})
        self._model_sha256 = record.model_sha256
        append_record(session.run.history_file, record)
        self._history.append(RoundRecord.model_validate(record.to_json()))
        write_metrics_csv(self._history, session.run.metrics_file)
        prune_tables(session.run.tables, {round_number, state.best_round or round_number})
        session.listener.on_round(record)


def _name_alarm(alarm: Alarm) -> tuple[str, str, str]:
    return alarm.kind, alarm.attribute, alarm.group

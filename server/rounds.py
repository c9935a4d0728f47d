"""The round loop: train, check, average, evaluate, save; again.

Three numbers rule a round: ``min_sites``, ``round_deadline_s`` and ``max_missed_rounds``. A round always ends, and its
record says who was left out and why. Nothing here knows whether the sites are simulated.
"""

import shutil
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmed.aggregation import TensorFile, average_updates, write_tensors
from fedmed.atomic_files import hash_file
from fedmed.audit import AuditLog
from fedmed.checkpoint import MODEL_FILE, Checkpoint, RunCheckpoints
from fedmed.config import FederationConfig, Plan
from fedmed.errors import FederationError
from fedmed.metrics.history import append_record, read_history, write_metrics_csv
from fedmed.metrics.tables import EvaluationTables
from fedmed.run_folder import RunFolder
from server.attendance import Attendance
from server.courier import Courier
from server.exchange import Answer, Exchange
from server.progress import Listener
from server.scoring import collect_tables, prune_tables, round_folder, save_tables, summarise
from server.updates import UpdateCollector

MAX_ATTEMPTS = 3
_NORMS_REMEMBERED = 20
_WAITING_STEP_S = 0.5
_SPARE_BYTES = 64 * 2**20


@dataclass
class LoopState:
    """What the loop must remember from round to round; part of every checkpoint."""

    best_round: int | None = None
    best_value: float | None = None
    recent_norms: list[float] = field(default_factory=list)
    missed: dict[str, int] = field(default_factory=dict)
    record: dict[str, Any] | None = None
    audit_head: str | None = None


@dataclass
class Session:
    """What one federation has at hand."""

    config: FederationConfig
    plan: Plan
    run: RunFolder
    exchange: Exchange
    courier: Courier
    checkpoints: RunCheckpoints
    audit: AuditLog
    attendance: Attendance
    listener: Listener
    parameters: frozenset[str]
    """Names of the model's parameters."""

    patient: bool = False
    """Whether to wait for sites as long as it takes, as in a hospital's network, or to fail."""

    def make_request(self, round_number: int, *, part: str | None = None, best_round: int | None) -> dict[str, Any]:
        """Return what a request says beside the model."""
        return {
            "plan": self.plan.model_dump(mode="json"),
            "round": round_number,
            "part": part,
            "best_round": best_round,
        }

    def score(
        self,
        round_number: int,
        model_file: Path,
        model_sha256: str,
        sites: list[str],
        *,
        part: str,
        best_round: int | None,
    ) -> dict[str, EvaluationTables]:
        """Return the sites' tables of a model on one part of their images."""
        self.listener.on_phase("test" if part == "test" else "evaluate", round_number, len(sites))
        return collect_tables(
            self.courier,
            self.make_request(round_number, part=part, best_round=best_round),
            model_file,
            model_sha256,
            sites,
            num_classes=len(self.plan.classes),
            deadline_s=self.config.round_deadline_s,
            listener=self.listener,
        )

    def gather_sites(self, round_number: int) -> None:
        """Welcome connected sites, and make sure that there are enough of them.

        Raises
        ------
        FederationError
            If there are too few and the session is not patient.
        """
        told = -1
        while True:
            self.attendance.join(
                self.exchange, self.listener, deadline_s=self.config.round_deadline_s, round_number=round_number
            )
            present = sorted(set(self.exchange.online_sites()) & set(self.attendance.descriptions))
            if len(present) >= self.config.min_sites:
                return
            if not self.patient:
                raise FederationError(
                    f"{len(present)} sites could join, min_sites = {self.config.min_sites} are needed. "
                    "The lines above say what is wrong at the others. Mend it, or lower min_sites, and start again."
                )
            if len(present) != told:
                names = f" ({', '.join(present)})" if present else ""
                self.listener.on_info(
                    f"Waiting for sites: {len(present)} of min_sites = {self.config.min_sites} are there{names}."
                )
                told = len(present)
            time.sleep(_WAITING_STEP_S)


class RoundLoop:
    """Runs the rounds that are left.

    Parameters
    ----------
    session : Session
        The federation.
    start : Checkpoint
        Round 0 with the initial model, or the newest round.
    """

    def __init__(self, session: Session, start: Checkpoint) -> None:
        self.session = session
        self.state = LoopState(**start.state)
        self._next_round = start.round + 1
        self._model_file, self._model_sha256 = start.model_path, start.model_sha256
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
        return self.state

    def _run_round(self, round_number: int) -> None:
        self._check_disk(round_number)
        self.session.gather_sites(round_number)
        began = time.monotonic()
        collector, attempt = self._collect_updates(round_number)
        averaged = self._average(collector)
        sha256 = hash_file(averaged)
        answered = [u.site for u in collector.updates.values() if u.status in {"accepted", "quarantined"}]
        tables = self.session.score(
            round_number, averaged, sha256, sorted(answered), part="validation", best_round=self.state.best_round
        )
        record = {
            "round": round_number,
            "attempt": attempt,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_s": time.monotonic() - began,
            "loss": collector.mean_loss(),
            "learning_rate": next((u.learning_rate for u in collector.accepted()), None),
            "model_sha256": sha256,
            "bytes_to_sites": self.session.courier.take_count(),
            "bytes_from_sites": sum(update.update_bytes or 0 for update in collector.updates.values()),
            "coverage_images": self._coverage(collector),
            "participation": collector.to_records(),
            "validation": summarise(tables),
        }
        self._close(record, collector, tables, averaged)

    def _check_disk(self, round_number: int) -> None:
        """Refuse to begin a round whose updates and checkpoint would not fit on the disk."""
        model_bytes = self._model_file.stat().st_size
        needed = model_bytes * (len(self.session.attendance.descriptions) + 2) + _SPARE_BYTES
        free = shutil.disk_usage(self.session.run.path).free
        if free < needed:
            raise FederationError(
                f"Round {round_number} needs about {needed / 2**20:.0f} MiB on the disk of {self.session.run.path}, "
                f"{free / 2**20:.0f} MiB are free. Everything so far is saved. Free some space, then start again: the "
                "run continues."
            )

    def _collect_updates(self, round_number: int) -> tuple[UpdateCollector, int]:
        config = self.session.config
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if attempt > 1:
                self.session.gather_sites(round_number)
            collector = self._train(round_number)
            accepted = collector.accepted()
            if len(accepted) >= config.min_sites:
                return collector, attempt
            self.session.listener.on_note(
                f"Round {round_number}, attempt {attempt} of {MAX_ATTEMPTS}: {len(accepted)} usable updates, at least "
                f"min_sites = {config.min_sites} are needed. {_list_reasons(collector)}"
            )
        raise FederationError(
            f"Round {round_number} had fewer than min_sites = {config.min_sites} usable updates in {MAX_ATTEMPTS} "
            f"attempts. {_list_reasons(collector)} All rounds before it are saved: mend the sites or lower min_sites, "
            "then resume the run."
        )

    def _train(self, round_number: int) -> UpdateCollector:
        session, config = self.session, self.session.config
        shutil.rmtree(session.run.updates, ignore_errors=True)
        session.run.updates.mkdir()
        attendance = session.attendance
        attendance.welcome_back(session.exchange, session.listener)
        sites, dormant = attendance.split(config.max_missed_rounds)
        attendance.probe(session.exchange, dormant, config.round_deadline_s)
        collector = UpdateCollector(
            session.run.updates,
            TensorFile(self._model_file),
            attendance.num_train_images(),
            session.parameters,
            session.plan.compression,
        )
        collector.mark(dormant, "dormant", "not waited for after too many missed rounds; it is asked in passing")
        session.listener.on_phase("train", round_number, len(sites))

        def take(answer: Answer) -> None:
            update = collector.take(answer)
            session.listener.on_answer(update.site, update.reason)

        late = session.courier.ask(
            "train",
            session.make_request(round_number, best_round=self.state.best_round),
            self._model_file,
            self._model_sha256,
            sites,
            deadline_s=config.round_deadline_s,
            on_answer=take,
        )
        collector.mark(late, "late", f"no answer within round_deadline_s = {config.round_deadline_s:g}")
        for site in collector.changed:  # it has other images than it declared: it joins again before the next round
            attendance.descriptions.pop(site, None)
        collector.compare(self.state.recent_norms, config.aggregation.max_norm_ratio)
        for line in collector.to_records():
            session.audit.append("update", round=round_number, **line)
        return collector

    def _average(self, collector: UpdateCollector) -> Path:
        """Write the next global model beside the updates, remove these, and return its file."""
        path = self.session.run.updates / "average.safetensors"
        updates = collector.weighted(self.session.config.aggregation.weighting)
        layout = TensorFile(self._model_file).layout
        write_tensors(path, average_updates(updates), {"format": "pt"}, layout=layout)
        for update in updates:
            update.path.unlink()
        return path

    def _coverage(self, collector: UpdateCollector) -> float:
        """Return the share of all joined sites' training images behind the accepted updates."""
        return sum(collector.declared[update.site] for update in collector.accepted()) / sum(
            collector.declared.values()
        )

    def _close(
        self,
        record: dict[str, Any],
        collector: UpdateCollector,
        tables: dict[str, EvaluationTables],
        averaged: Path,
    ) -> None:
        """Save the round: from here on it is never trained again."""
        session, state, round_number = self.session, self.state, int(record["round"])
        value = record["validation"]["pooled"].get(session.config.choose_by)
        if value is not None and (state.best_value is None or value > state.best_value):
            state.best_round, state.best_value = round_number, value
        norms = [update.update_norm for update in collector.accepted() if update.update_norm is not None]
        state.recent_norms = [*state.recent_norms, *norms][-_NORMS_REMEMBERED:]
        session.attendance.count_round({site: update.status for site, update in collector.updates.items()})
        state.missed = dict(session.attendance.missed)
        state.record = record
        session.audit.append("round", round=round_number, model_sha256=record["model_sha256"])
        state.audit_head = session.audit.head
        save_tables(round_folder(session.run.tables, round_number), tables)
        self._model_file = save_checkpoint(session.checkpoints, round_number, averaged, state)
        self._model_sha256 = str(record["model_sha256"])
        append_record(session.run.history_file, record)
        write_metrics_csv(read_history(session.run.history_file), session.run.metrics_file)
        prune_tables(session.run.tables, {round_number, state.best_round or round_number})
        session.listener.on_round(record)


def save_checkpoint(checkpoints: RunCheckpoints, round_number: int, model_file: Path, state: LoopState) -> Path:
    """Save a round whose model is a tensor file already, and return the model's file in the checkpoint."""
    return checkpoints.save(round_number, model_file, asdict(state), best_round=state.best_round) / MODEL_FILE


def _list_reasons(collector: UpdateCollector) -> str:
    reasons = [f"{update.site}: {update.reason}" for update in collector.updates.values() if update.reason]
    if not reasons:
        return "No site has joined."
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return "Left out: " + "; ".join(reasons[:5]) + more + "."

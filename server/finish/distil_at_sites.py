"""Distillation of the aggregated network into a small one at the sites: where there are no proxy images.

Some rounds of their own after the others: every site trains the small network on its own images against the frozen
large one, and the updates are averaged like any others. ::

    compression/distilled/round_00002/    the small network after the last closed round
    compression/distilled/                after all of them
"""

import json
import shutil
import time
from pathlib import Path

from fedmed.aggregation import average_updates
from fedmed.config import StudentConfig, make_distil_plan
from fedmed.errors import FederationError
from fedmed.metrics.site_tables import TEACHER
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.reading import explained
from fedmed.protocol.requests import DistilSettings, Request
from fedmed.storage.atomic_files import find_rounds, hash_file, write_atomically
from fedmed.storage.checkpoints import MODEL_FILE
from fedmed.storage.phase_records import RECORD_FILE, read_record
from fedmed.storage.records import DistilledLine, DistilledRecord, DistilRoundRecord
from fedmed.storage.tensor_files import TensorFile, write_tensors
from server.finish.chosen import ChosenModel
from server.finish.distil_at_server import build_student
from server.rounds.courier import SecondModel
from server.rounds.session import Session
from server.rounds.training import collect_until, train_at_sites
from server.rounds.updates import UpdateCollector
from server.rounds.weights import to_weighted


def distil_at_sites(session: Session, model: ChosenModel, settings: StudentConfig, folder: Path) -> DistilledRecord:
    """Have the sites train the student against the frozen large network; rounds that are done are not done again.

    Parameters, results and files are those of :func:`server.finish.distil_at_server.distil_at_server`.

    Raises
    ------
    FederationError
        If a round has too few updates; the run can be resumed.
    """
    done = read_record(folder, model.model_sha256, DistilledRecord)
    if done is not None:
        return done
    rounds = _Rounds(session, model, settings, folder)
    for number in range(rounds.num_done + 1, settings.rounds + 1):
        rounds.run(number)
    return rounds.conclude()


class _Rounds:
    """The rounds of one distillation.

    Parameters are those of :func:`distil_at_sites`.
    """

    def __init__(self, session: Session, model: ChosenModel, settings: StudentConfig, folder: Path) -> None:
        self._session, self._settings, self._folder = session, settings, folder
        self._large = SecondModel(TEACHER, session.plan, model.model_path, model.model_sha256)
        self._plan = make_distil_plan(session.plan)
        folder.mkdir(parents=True, exist_ok=True)
        self._student, self._not_copied = build_student(session, settings)
        self._history: list[DistilledLine] = []
        self._path = self._find_last() or self._write_first()

    @property
    def num_done(self) -> int:
        """Rounds that are closed."""
        return len(self._history)

    def run(self, number: int) -> None:
        """Train, average and save."""
        session, began = self._session, time.monotonic()
        what = f"Distillation at the sites: round {number}"
        collector, _ = collect_until(session, what, lambda _: self._ask(number))
        weights = collector.site_weights(session.config.aggregation.weighting)
        target = self._folder / f"round_{number:05d}"
        target.mkdir(exist_ok=True)
        averaged = average_updates(to_weighted(collector, weights, self._path))
        write_tensors(target / MODEL_FILE, averaged, {"format": "pt"}, layout=TensorFile(self._path).layout)
        self._history.append(
            {
                "round": number,
                "train_loss": collector.mean_loss(),
                "sites": sorted(weights),
                "seconds": time.monotonic() - began,
            }
        )
        self._save(target)
        for line in collector.to_records():
            session.audit.append("distil_update", round=number, **line.to_json())
        self._path = target / MODEL_FILE
        session.listener.on_info(
            f"Distillation at the sites, round {number} of {self._settings.rounds}: loss {collector.mean_loss():.3f}, "
            f"{len(weights)} sites."
        )

    def conclude(self) -> DistilledRecord:
        """Write the last round's student as the result."""
        write_atomically(self._folder / MODEL_FILE, self._path.read_bytes())
        record: DistilledRecord = {
            "num_proxy_images": None,
            "not_copied": self._not_copied,
            "phases": {"train": sum(line["seconds"] for line in self._history)},
            "history": self._history,
            "best_step": None,
            "explored": None,
            "mismatch": None,
            "notes": [],
            "from_sha256": self._large.sha256,
            "model_sha256": hash_file(self._folder / MODEL_FILE),
        }
        write_atomically(self._folder / RECORD_FILE, json.dumps(record).encode())
        for folder in find_rounds(self._folder).values():
            shutil.rmtree(folder)
        return record

    def _write_first(self) -> Path:
        path = self._folder / "initial.safetensors"
        write_atomically(path, self._student.pack())
        return path

    def _find_last(self) -> Path | None:
        """Return the model of the newest closed round of this distillation, and take its history over."""
        found = find_rounds(self._folder)
        for number in sorted(found, reverse=True):
            record = read_record(found[number], self._large.sha256, DistilRoundRecord)
            if record is not None:
                self._history = record["history"]
                return found[number] / MODEL_FILE
        return None

    def _save(self, target: Path) -> None:
        record: DistilRoundRecord = {
            "history": self._history,
            "from_sha256": self._large.sha256,
            "model_sha256": hash_file(target / MODEL_FILE),
        }
        write_atomically(target / RECORD_FILE, json.dumps(record).encode())

    def _ask(self, number: int) -> UpdateCollector:
        self._session.gather_sites(self._session.config.rounds)
        with explained(DistilSettings, FederationError):
            settings = DistilSettings(
                temperature=self._settings.temperature, feature_weight=self._settings.feature_weight
            )
        return train_at_sites(
            self._session,
            KINDS["distil"],
            Request(plan=self._plan, round=number, distil=settings),
            self._path,
            hash_file(self._path),
            parameters=self._student.parameter_names,
            compression="none",
            dormant_note="not waited for after too many missed rounds",
            recent_norms=[],
            other=self._large,
        )

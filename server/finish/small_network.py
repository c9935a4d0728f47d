"""From the chosen network to the one that is released: compressed into a small one, if the gate lets that pass.

Phases, each of whose results lies on the disk before the next begins, so that a restart goes on after the last one::

    compression/round_00010/     what was distilled after that round, from which the next distillation starts
    compression/site_models/     single models of sites, where the small network learns from them together
    compression/distilled/       the small network: trained at the server on proxy images, or at the sites
    compression/recalibrated/    the same with BatchNorm statistics of all sites' training images
    compression/gate/            the sites' tables of both networks on the same validation images
    tables/compression.json      what was decided, with all numbers and what each phase took

Merging the branches comes last of all, when the released network is exported.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

from fedmed.config import StudentConfig, make_student_plan
from fedmed.distillation import GateDecision, GateLimits, decide_gate, describe_distance
from fedmed.distillation.network import build_network
from fedmed.errors import ConfigError, FederationError
from fedmed.metrics.site_tables import STUDENT, TEACHER, PairedTables, SiteTables, combine_paired
from fedmed.reparameterization.statistics import tracked_norms
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.checkpoints import MODEL_FILE
from fedmed.storage.phase_records import find_recalibrated
from fedmed.storage.records import CompressionPart, CompressionRecord, Distance, DistilledPart, DistilledRecord
from server.finish.chosen import ChosenModel
from server.finish.distil_at_server import (
    build_student,
    describe_size,
    distil_at_server,
    find_earlier,
    list_earlier,
    round_name,
)
from server.finish.distil_at_sites import distil_at_sites
from server.finish.proxy_images import check_proxy
from server.finish.recalibrate import recalibrate
from server.rounds.courier import SecondModel
from server.rounds.scoring import Scores, load_tables, save_tables
from server.rounds.session import Session
from server.rounds.site_models import drop_site_models

GATE_FOLDER = "gate"
SKIPPED: Final = "skipped"
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"


@dataclass(frozen=True)
class Product:
    """The network that is tested and released, and the federation as it works with it.

    Attributes
    ----------
    session : Session
        With the plan of that network.
    model : ChosenModel
        In train form.
    teacher : SecondModel, optional
        The network that was trained in the rounds, where a small one took its place.
    """

    session: Session
    model: ChosenModel
    teacher: SecondModel | None = None


def check_compression(session: Session) -> None:
    """Refuse to begin what could not be ended: called before the first round.

    Raises
    ------
    ConfigError
        If BatchNorm stays at the sites, so that the server has no complete network to distil.
    ProxyDataUnavailableError
        If there are no unlabelled images, and the settings say that they are to be used.
    DataError
        If some of them are images on which a model is judged, as far as that is known here.
    TeacherUnavailableError
        If the file that the small network is to start from is not here.
    """
    settings = session.config.student
    if settings is None or settings.kind == "skip":
        return
    if session.plan.batch_norm == "local":
        found = "no complete network that it could compress"
        if settings.target == "ensemble":
            found = "no site's complete network, whose answers 'fopro.compression.target: ensemble' asks for"
        raise ConfigError(
            f"'batch_norm' is 'local', so the server has {found}. Set batch_norm: recalibrate or average, or "
            "fopro.compression: {kind: skip}."
        )
    if settings.kind == "proxy":
        check_proxy(session)
    build_student(session, settings)


def compress_between(session: Session, round_number: int, model_path: Path, model_sha256: str) -> None:
    """After every few rounds, distil the network so far at the server: the next distillation starts from the result.

    It is not judged, as it is not released. What is done already is not done again.

    Parameters
    ----------
    session : Session
        The federation.
    round_number : int
        The round that was closed.
    model_path, model_sha256 : Path, str
        Its network.
    """
    settings = session.config.student
    if settings is None or settings.kind != "proxy":
        return
    if round_number == 0 or round_number % settings.every or round_number >= session.config.rounds:
        return
    root = session.run.compression
    model = ChosenModel(round_number, model_path, model_sha256)
    distil_at_server(session, model, settings, root / round_name(round_number), find_earlier(root, round_number))


def choose_product(session: Session, model: ChosenModel, best_round: int | None) -> Product:
    """Compress the chosen network, and return what is released: the small one if the gate accepts it, else the large.

    What is done already is not done again.

    Parameters
    ----------
    session : Session
        The federation after its rounds.
    model : ChosenModel
        The chosen network, with the BatchNorm statistics that it is tested with.
    best_round : int, optional
        As the sites are told.

    Raises
    ------
    FederationError
        If no site has compared the two; the run can be resumed.
    """
    settings = session.config.student
    if settings is None:
        return Product(session, model)
    record = session.run.read_compression()
    if record is None or record["from_sha256"] != model.model_sha256:
        record = _skip(session, model) if settings.kind == "skip" else _compress(session, model, settings, best_round)
    drop_site_models(session.run)
    return _take_product(session, model, settings, record)


def _take_product(session: Session, model: ChosenModel, settings: StudentConfig, record: CompressionRecord) -> Product:
    if record["status"] != ACCEPTED:
        return Product(session, model)
    path = session.run.path / record["model_file"]
    small = ChosenModel(model.round, path, str(record["model_sha256"]))
    teacher = SecondModel(TEACHER, session.plan, model.model_path, model.model_sha256)
    return Product(_with_student(session), small, teacher)


def _with_student(session: Session) -> Session:
    return replace(session, plan=make_student_plan(session.plan))


def _skip(session: Session, model: ChosenModel) -> CompressionRecord:
    reason = "fopro.compression.kind is 'skip': the network that was trained is released."
    return _conclude(session, model, {"kind": "skip", "status": SKIPPED, "reason": reason, "phases": {}})


def _compress(
    session: Session, model: ChosenModel, settings: StudentConfig, best_round: int | None
) -> CompressionRecord:
    folder = session.run.compression
    folder.mkdir(exist_ok=True)
    if settings.kind == "proxy":
        earlier = find_earlier(folder, session.config.rounds)
        distilled = distil_at_server(session, model, settings, folder / "distilled", earlier)
    else:
        distilled = distil_at_sites(session, model, settings, folder / "distilled")
    with_student = _with_student(session)
    raw = ChosenModel(model.round, folder / "distilled" / MODEL_FILE, distilled["model_sha256"])
    small, seconds = _recalibrate(with_student, raw, best_round)
    scores, gate_s = _ask_gate(session, model, with_student, small, best_round)
    decision = decide_gate(_combine(scores.tables), tuple(session.plan.classes), _make_limits(settings))
    told: CompressionPart = {
        "kind": settings.kind,
        "status": ACCEPTED if decision.accepted else REJECTED,
        "reason": decision.reason,
        "phases": {**distilled["phases"], "recalibrate": seconds, "gate": gate_s},
        "distilled": _drop_phases(distilled),
        "earlier": list_earlier(folder),
        "distance": _describe_distance(distilled.get("mismatch"), scores.mismatches),
        "decision": decision.to_json(),
        "limits": _make_limits(settings).to_json(),
        "gate_sites": sorted(scores.tables),
        "sizes": {
            TEACHER: describe_size(session.plan, model.model_path),
            STUDENT: describe_size(with_student.plan, small.model_path),
        },
        "model": with_student.plan.model.model_dump(mode="json"),
        "model_file": str(small.model_path.relative_to(session.run.path)),
        "model_sha256": small.model_sha256,
    }
    _tell(session, decision, told)
    return _conclude(session, model, told)


def _recalibrate(session: Session, model: ChosenModel, best_round: int | None) -> tuple[ChosenModel, float]:
    """Return the student with the sites' BatchNorm statistics, and the seconds that it took now or before."""
    folder = session.run.compression / "recalibrated"
    if not tracked_norms(build_network(session.plan).model):
        return model, 0.0
    done = find_recalibrated(folder, model.model_sha256)
    small = ChosenModel(model.round, *done) if done else recalibrate(session, model, best_round, folder)
    if small == model:  # no site has sent sums
        return model, 0.0
    return small, float(json.loads((folder / "record.json").read_bytes())["seconds"])


def _ask_gate(
    session: Session, model: ChosenModel, with_student: Session, small: ChosenModel, best_round: int | None
) -> tuple[Scores, float]:
    """Return the sites' tables of both networks on the same validation images, and the seconds that it took."""
    folder = session.run.compression / GATE_FOLDER
    mark, began = folder / "models.json", time.monotonic()
    about = {TEACHER: model.model_sha256, STUDENT: small.model_sha256}
    try:
        told = json.loads(mark.read_bytes())
        if told["models"] == about:
            return Scores(load_tables(folder), {}, [], told["mismatches"]), float(told["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    other = SecondModel(STUDENT, with_student.plan, small.model_path, small.model_sha256)
    session.gather_everybody(model.round)
    scores = session.score(
        model.round,
        model.model_path,
        model.model_sha256,
        sorted(session.attendance.descriptions),
        part="validation",
        best_round=best_round,
        other=other,
    )
    if not scores.tables:
        raise FederationError(
            "No site has compared the small network with the large one on its validation images. Everything so far is "
            "saved. Start again to ask again."
        )
    seconds = time.monotonic() - began
    save_tables(folder, scores.tables)
    write_atomically(mark, json.dumps({"models": about, "mismatches": scores.mismatches, "seconds": seconds}).encode())
    for site in scores.tables:
        session.audit.append("compression_gate", site=site, **about)
    return scores, seconds


def _combine(tables: Mapping[str, SiteTables]) -> dict[str, PairedTables]:
    """Return the paired tables of all sites together, by attribute."""
    attributes = dict.fromkeys(name for site in tables.values() for name in site.paired[STUDENT])
    return {
        name: combine_paired(site.paired[STUDENT][name] for site in tables.values() if name in site.paired[STUDENT])
        for name in attributes
    }


def _make_limits(settings: StudentConfig) -> GateLimits:
    gate = settings.gate
    return GateLimits(balanced_accuracy=gate.balanced_accuracy, worst_class=gate.worst_class_recall, gap=gate.gap)


def _drop_phases(distilled: DistilledRecord) -> DistilledPart:
    """Return how the student came about; the decision has its own list of phases, and names the model before it."""
    kept = {key: value for key, value in distilled.items() if key not in {"phases", "from_sha256"}}
    return cast(DistilledPart, kept)


def _describe_distance(proxy: float | None, sites: Mapping[str, float]) -> Distance | None:
    """Return how far proxy images and the sites' own are from the large network's statistics."""
    if proxy is None or not sites:
        return None
    own = list(sites.values())
    return {"proxy": proxy, "sites": sum(own) / len(own), "warning": describe_distance(proxy, own)}


def _tell(session: Session, decision: GateDecision, told: CompressionPart) -> None:
    distance = told["distance"]
    if distance is not None and distance["warning"] is not None:
        session.listener.on_note(distance["warning"])
    if decision.accepted:
        session.listener.on_info("The small network is accepted: it takes the place of the one that was trained.")
    else:
        session.listener.on_note(f"The small network is rejected, the trained one is released. {decision.reason}")


def _conclude(session: Session, model: ChosenModel, told: CompressionPart) -> CompressionRecord:
    """Write down what was decided."""
    record: CompressionRecord = {**told, "round": model.round, "from_sha256": model.model_sha256}
    write_atomically(session.run.compression_file, json.dumps(record, indent=1).encode())
    session.audit.append(
        "compression",
        kind=record["kind"],
        status=record["status"],
        reason=record["reason"],
        round=record["round"],
        from_sha256=record["from_sha256"],
        model_sha256=record.get("model_sha256"),
    )
    session.courier.take_count()  # these bytes belong to no round
    return record

"""One round's training at the sites: asked for, received, checked, and accounted for site by site."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fedmed.config import Compression
from fedmed.protocol.kinds import Kind
from fedmed.protocol.requests import Request
from fedmed.storage.tensor_files import TensorFile
from server.rounds.courier import SecondModel
from server.rounds.exchange import Answer
from server.rounds.session import Session
from server.rounds.updates import UpdateCollector


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
    other : SecondModel, optional
        Sent beside the model.
    """
    config, attendance = session.config, session.attendance
    shutil.rmtree(session.run.updates, ignore_errors=True)
    session.run.updates.mkdir()
    sites, dormant = attendance.split(config.max_missed_rounds)
    collector = UpdateCollector(
        session.run.updates, TensorFile(model_file), attendance.num_images("train"), parameters, compression
    )
    collector.mark(dormant, "dormant", dormant_note)
    session.listener.on_phase(kind.phase_name(), request.round or 0, len(sites))

    def take(answer: Answer) -> None:
        update = collector.take(answer)
        session.listener.on_answer(update.site, update.reason)

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

"""The model that was chosen, and sums over the sites' images that are asked about it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flwr.app import Message

from fedmed.protocol.kinds import Kind
from server.rounds.exchange import Answer, open_answer
from server.rounds.session import Session

T = TypeVar("T")


@dataclass(frozen=True)
class ChosenModel:
    """The model that is tested and released."""

    round: int
    model_path: Path
    model_sha256: str


def ask_sums(
    session: Session,
    kind: Kind,
    model: ChosenModel,
    best_round: int | None,
    read: Callable[[Message, str], T],
    *,
    temperature: float | None = None,
) -> dict[str, T]:
    """Ask all joined sites for sums over their images.

    Parameters
    ----------
    session : Session
        The federation.
    kind : Kind
        What is asked for.
    model : ChosenModel
        What the sums are of.
    best_round : int, optional
        As the sites are told.
    read : callable
        Gives the sums in a message of a site, or raises an error if they cannot be true.
    temperature : float, optional
        By what the model's outputs are divided first.

    Returns
    -------
    dict
        By site, in the order of their names, of those that have answered with some that can be used.
    """
    found: dict[str, T] = {}
    what = kind.phases[0].leaves
    part = kind.phases[0].part
    session.listener.on_phase(kind.phase_name(part), model.round, len(session.attendance.descriptions))

    def take(answer: Answer) -> None:
        sums, problem = open_answer(answer, lambda message: read(message, answer.site))
        session.listener.on_answer(answer.site, problem)
        if sums is None:
            held_back = f"{answer.site} tells no {what}: its thresholds hold them back"
            session.listener.on_note(held_back if problem is None else f"{answer.site} sent no {what}: {problem}")
        else:
            found[answer.site] = sums

    missing = session.courier.ask(
        kind.flower,
        session.make_request(model.round, best_round=best_round, part=part, temperature=temperature),
        model.model_path,
        model.model_sha256,
        sorted(session.attendance.descriptions),
        deadline_s=session.config.round_deadline_s,
        on_answer=take,
    )
    for site in missing.all:
        session.listener.on_note(f"{site} sent no {what} in time.")
    return dict(sorted(found.items()))

"""Sends models to sites, and only to those that do not hold them already.

After the evaluation of a round every site holds the model from which the next round starts, so a round needs one model
down and one update up for each site. A site that was restarted says that it lacks the model and is sent it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from flwr.app import RecordDict

from fedmed.config import Plan
from fedmed.protocol.messages import REQUEST, lacks_model, make_content
from fedmed.protocol.requests import OtherModel, Request
from server.rounds.exchange import Answer, Exchange, Unanswered


@dataclass(frozen=True)
class SecondModel:
    """A model that goes with a request beside the one that the request is about."""

    name: Literal["student", "teacher"]
    """``student`` or ``teacher``, as the sites call it in their tables."""
    plan: Plan
    path: Path
    sha256: str

    def describe(self) -> OtherModel:
        """Return what a request says of it."""
        return OtherModel(name=self.name, plan=self.plan, sha256=self.sha256)


@dataclass
class Courier:
    """Asks sites to do something with a model.

    Parameters
    ----------
    exchange : Exchange
        Way to the sites.
    remember : bool
        Whether sites keep the last model in memory. Not in a simulation, where one process serves many sites and
        bytes travel for nothing.
    """

    exchange: Exchange
    remember: bool
    _held: dict[str, str] = field(default_factory=dict)
    _num_bytes: int = 0

    def ask(
        self,
        kind: str,
        request: Request,
        model_file: Path,
        model_sha256: str,
        sites: Sequence[str],
        *,
        deadline_s: float,
        on_answer: Callable[[Answer], None],
        artefact: bytes | None = None,
        on_demand: bool = False,
        other: SecondModel | None = None,
    ) -> Unanswered:
        """Send a request with a model and hand over each answer as it arrives.

        Parameters
        ----------
        kind : str
            Flower's message type of a kind of message.
        request : Request
            All but what is said of the models.
        model_file : Path
            The model as it travels.
        model_sha256 : str
            Hash of that file.
        sites, deadline_s, on_answer
            As for :meth:`Exchange.ask`.
        artefact : bytes, optional
            Goes with every request, also where the model need not be sent.
        on_demand : bool
            Whether the model is sent only to sites that say that they lack it.
        other : SecondModel, optional
            Goes with every request, like ``artefact``.

        Returns
        -------
        Unanswered
            Sites that have not answered.
        """
        about = {
            "model_sha256": model_sha256,
            "remember": self.remember,
            "other": None if other is None else other.describe(),
        }
        told = request.model_copy(update=about).to_values()
        other_bytes = None if other is None else other.path.read_bytes()

        @cache
        def with_model() -> RecordDict:
            packed = model_file.read_bytes()
            return make_content(REQUEST, told, model=packed, artefact=artefact, other_model=other_bytes)

        without_model = make_content(REQUEST, told, artefact=artefact, other_model=other_bytes)
        resent: set[str] = set()
        model_bytes = model_file.stat().st_size

        def send_model() -> RecordDict:
            self._num_bytes += model_bytes
            return with_model()

        def take(answer: Answer) -> RecordDict | None:
            if answer.message is not None and answer.site not in resent and lacks_model(answer.message):
                resent.add(answer.site)
                return send_model()
            if answer.message is not None and self.remember and (answer.site in resent or not on_demand):
                self._held[answer.site] = model_sha256
            on_answer(answer)
            return None

        def choose(site: str) -> RecordDict:
            self._num_bytes += len(other_bytes or b"")
            return without_model if on_demand or self._held.get(site) == model_sha256 else send_model()

        unanswered = self.exchange.ask(kind, choose, sites, deadline_s=deadline_s, on_answer=take)
        for site in unanswered.all:
            self._held.pop(site, None)
        return unanswered

    def take_count(self) -> int:
        """Return how many bytes of models were sent since the last call."""
        count, self._num_bytes = self._num_bytes, 0
        return count

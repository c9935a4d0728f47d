"""Ask sites and collect their answers, through any Grid of Flower.

An exchange always ends: when everyone has answered, or at the deadline. Nothing here knows which engine carries the
messages.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from safetensors import SafetensorError

from fedmed.errors import FedmedError, tame
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import add_heads
from fedmed.storage.run_folder import RunFolder
from server.provisioning.countersigning import Countersigner

T = TypeVar("T")
_SHORTEST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.25
_SPARE_BYTES = 64 * 2**20
_TTL_MARGIN_S = 5.0  # a site gives up a little after the server does, not before

MALFORMATIONS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    Warning,
    SafetensorError,
)
"""What reading an answer may raise that its site has made up; one site must not end the run of all."""


def explain_malformation(error: Exception) -> str:
    """Return why an answer that could not be read does not count."""
    return f"its answer is malformed ({type(error).__name__}); the site and the server must have the same versions"


@dataclass(frozen=True)
class Answer:
    """What came back from one site: a message, or the reason why there is none."""

    site: str
    message: Message | None
    reason: str | None
    seconds: float


def open_answer(answer: Answer, read: Callable[[Message], T]) -> tuple[T | None, str | None]:
    """Return what an answer holds, or why it does not count; one of the two is None.

    Parameters
    ----------
    answer : Answer
        From a site, which may send anything.
    read : callable
        Reads and checks the message; raises FedmedError, or stumbles over what the site has made up.
    """
    if answer.message is None:
        return None, answer.reason or "no reason given"
    try:
        return read(answer.message), None
    except FedmedError as error:
        return None, str(error)
    except MALFORMATIONS as error:
        return None, explain_malformation(error)


@dataclass(frozen=True)
class Unanswered:
    """Sites without an answer; names are sorted."""

    absent: list[str]
    """They were not connected, so they were not asked."""
    late: list[str]
    """They did not answer before the deadline."""

    @property
    def all(self) -> list[str]:
        """Both."""
        return sorted([*self.absent, *self.late])


@runtime_checkable
class CanAbandon(Protocol):
    """A Grid that can drop messages nobody waits for any more."""

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Drop messages; a process that hangs on one of them is restarted."""


@runtime_checkable
class BoundsReplies(Protocol):
    """A Grid that refuses replies above a size before they fill the memory."""

    max_array_bytes: int


class Exchange:
    """Sends requests to sites by name.

    Parameters
    ----------
    grid : Grid
        Flower's way to the nodes.
    run : RunFolder
        Holds the roster, which says what node is which site and may change while the run goes on.
    countersigner : Countersigner, optional
        Signs how far the audit logs go, and keeps what sites sign.
    """

    def __init__(self, grid: Grid, run: RunFolder, countersigner: Countersigner | None = None) -> None:
        self._grid = grid
        self._run = run
        self._countersigner = countersigner
        self._probes: dict[str, str] = {}

    def bound_replies(self, model_bytes: int) -> None:
        """Let the Grid refuse replies that are far larger than a model."""
        if isinstance(self._grid, BoundsReplies):
            self._grid.max_array_bytes = 2 * model_bytes + _SPARE_BYTES

    def online_sites(self) -> list[str]:
        """Return the names of the sites that are on the roster and connected, sorted."""
        return sorted(self._nodes())

    def ask(
        self,
        kind: str,
        content: Callable[[str], RecordDict],
        sites: Sequence[str],
        *,
        deadline_s: float,
        on_answer: Callable[[Answer], RecordDict | None],
    ) -> Unanswered:
        """Send a request to many sites and hand over each answer as it arrives.

        Parameters
        ----------
        kind : str
            Flower's message type of a kind of message.
        content : callable
            Gives a site's request; requests that are the same object are stored once by the engine.
        sites : sequence of str
            Whom to ask; a site that is not connected counts as late.
        deadline_s : float
            Seconds after which waiting ends.
        on_answer : callable
            Called for each site that answered, in order of arrival. It may return a further request to that site,
            whose answer is waited for as well.

        Returns
        -------
        Unanswered
            Sites that have not answered.
        """
        start = time.monotonic()
        content = self._countersigned(kind, content)
        waiting = self._push(kind, content, sites, ttl=deadline_s)
        missing = set(sites) - set(waiting.values())
        pause = _SHORTEST_PAUSE_S
        while waiting and time.monotonic() - start < deadline_s:
            num_waiting, pulled = len(waiting), time.monotonic()
            further: dict[str, RecordDict] = {}
            for site, reply in self._pull(waiting):
                if self._countersigner is not None:
                    self._countersigner.take(site, reply)
                request = on_answer(_to_answer(site, reply, time.monotonic() - start))
                if request is not None:
                    further[site] = request
            if len(waiting) < num_waiting:
                pause = _SHORTEST_PAUSE_S
                again = self._countersigned(kind, further.__getitem__)
                waiting |= self._push(kind, again, list(further), ttl=deadline_s)
                missing |= set(further) - set(waiting.values())
            else:  # a Grid that waits for the first reply itself has waited already
                time.sleep(max(0.0, pause - (time.monotonic() - pulled)))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        if waiting and isinstance(self._grid, CanAbandon):
            self._grid.abandon(list(waiting))
        return Unanswered(absent=sorted(missing), late=sorted(set(waiting.values())))

    def _countersigned(self, kind: str, content: Callable[[str], RecordDict]) -> Callable[[str], RecordDict]:
        """Return the same contents with the heads of the audit logs; not for a site that may run another version."""
        signer = self._countersigner
        if signer is None or kind == KINDS["query"].flower:
            return content

        def add(site: str) -> RecordDict:
            heads = signer.sign_for(site)
            return content(site) if heads is None else add_heads(content(site), heads)

        return add

    def probe(self, content: RecordDict, sites: Sequence[str], ttl: float) -> None:
        """Send a request without waiting for its answer; see :meth:`collect_probes`."""
        free = [site for site in sites if site not in self._probes.values()]
        self._probes.update(self._push(KINDS["query"].flower, lambda site: content, free, ttl=ttl))

    def collect_probes(self) -> list[Answer]:
        """Return the answers to probes that have come in so far, without waiting."""
        return [_to_answer(site, reply, 0.0) for site, reply in self._pull(self._probes)] if self._probes else []

    def _nodes(self) -> dict[str, int]:
        roster = self._run.read_roster()
        return {roster[node]: node for node in self._grid.get_node_ids() if node in roster}

    def known_sites(self) -> set[str]:
        """Return the names on the roster; a revoked site is no longer on it."""
        return set(self._run.read_roster().values())

    def _push(
        self, kind: str, content: Callable[[str], RecordDict], sites: Sequence[str], ttl: float
    ) -> dict[str, str]:
        """Return message id -> site for every message that the engine took."""
        nodes = self._nodes()
        reachable = [site for site in sorted(sites) if site in nodes]
        messages = [
            Message(content(site), dst_node_id=nodes[site], message_type=kind, ttl=ttl + _TTL_MARGIN_S)
            for site in reachable
        ]
        ids = list(self._grid.push_messages(messages)) if messages else []
        return {message_id: site for message_id, site in zip(ids, reachable, strict=True) if message_id}

    def _pull(self, waiting: dict[str, str]) -> Iterator[tuple[str, Message]]:
        """Yield the replies that are there, one at a time, and take their ids from ``waiting``."""
        for reply in self._grid.pull_messages(list(waiting)):
            site = waiting.pop(reply.metadata.reply_to_message_id, None)
            if site is not None:
                yield site, reply


def _to_answer(site: str, reply: Message, seconds: float) -> Answer:
    if reply.has_error():
        return Answer(site, None, tame(reply.error.reason or "the site's app failed without a reason"), seconds)
    return Answer(site, reply, None, seconds)

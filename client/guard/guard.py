"""Stands at a hospital's door: nothing comes in or goes out without being checked and written down.

What may leave is listed in :mod:`fedmed.protocol.kinds`. A reply with anything else in it is not sent. Every message
leaves a trace in ``audit.jsonl`` of the state folder: ``received`` with the request, perhaps ``refused`` or
``failed``, and ``sent`` with name, bytes and SHA-256 of every part, written before the part leaves; the same refusal
again is counted (:mod:`client.guard.message_log`). ``audit.head`` beside it notes how far the log goes.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from flwr.app import Context, Message

from client.guard.approvals import Approvals
from client.guard.audit import open_site_audit
from client.guard.binding import Bound, explain, find_approval
from client.guard.bounds import check_bounds
from client.guard.heads import SignsAs, SiteHeads
from client.guard.leaving import find_reply_breach, find_stranger
from client.guard.ledger import Ledger
from client.guard.message_log import MessageLog
from client.guard.message_parts import Part, list_parts, shorten_part
from client.guard.outside_code import check_extensions
from client.guard.policy import (
    Refusal,
    check_disk,
    check_hours,
    check_plan,
    check_size,
    check_test,
    check_validation,
    refuse,
)
from client.guard.received import RequestWriter, WrittenRequest
from client.guard.requests import Request, read_request, try_plan
from client.hospital.exclusions import ExclusionCounts, describe_exclusions, record_exclusions
from client.hospital.said import say
from client.hospital.site_data import Hospital, find_hospital
from client.hospital.told_groups import note_groups
from fedmed.config.client import PolicyConfig
from fedmed.errors import DataError, PolicyError, RunFolderError, TrainingError, WireError, describe_error, tame
from fedmed.extensions import allow_only
from fedmed.protocol.kinds import HEADS, KINDS, MODEL, REPORT, REQUEST, Kind, list_flower_types, name_kind
from fedmed.protocol.messages import read_values
from fedmed.storage.audit import AuditLog

_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
_logger = logging.getLogger("fedmed.client")


class NotRecordedError(RunFolderError):
    """What happens cannot be written down, so that nothing may leave, not even what is wrong."""


Clock = Callable[[], datetime]


class Guard:
    """Checks and records what a site receives and sends.

    Parameters
    ----------
    policy : PolicyConfig
        What the site allows.
    audit : AuditLog
        Where everything is written down.
    state_dir : Path
        Folder whose size is limited.
    clock : callable
        Gives the local time.
    heads : SiteHeads, optional
        Countersigns the server's log and has this one countersigned.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        audit: AuditLog,
        state_dir: Path,
        clock: Clock = datetime.now,
        heads: SiteHeads | None = None,
    ) -> None:
        self._policy, self._state_dir, self._clock = policy, state_dir, clock
        self._audit, self._writer = MessageLog(lambda: audit, state_dir), RequestWriter()
        self._written: WrittenRequest = {}
        self._heads = heads
        self._approvals = Approvals(state_dir, policy.approved_plan)
        self._ledger = Ledger(state_dir / "runs", policy)
        self._bound: Bound | None = None
        self._is_noted = False
        self._exclusions: ExclusionCounts | None = None
        audit.append("policy", **policy.model_dump(mode="json"))

    def receive(self, message: Message) -> Request:
        """Record a message and read what it asks for.

        Raises
        ------
        WireError
            If it is not what was agreed.
        """
        self._audit.open_message()
        self._written = self._writer.write(message)
        parts = list_parts(message.content) if message.has_content() else []
        request: Request | None = None
        problem: WireError | None = None
        try:
            request = read_request(message)
        except WireError as error:
            problem = error
        kind = KINDS.get(name_kind(message.metadata.message_type))
        agreed = (REQUEST, MODEL, *(() if kind is None else (HEADS, *kind.brings)))
        if kind is None:
            found, allowed = tame(message.metadata.message_type, 60), ", ".join(list_flower_types())
            problem = WireError(f"Requests '{found}' are not answered here. Allowed: {allowed}.")
        elif any(part["name"] not in agreed or part["sha256"] is None for part in parts):
            problem = WireError(f"The message holds parts that were not agreed. Allowed: {', '.join(agreed)}.")
        told = [shorten_part(part) for part in parts]
        self._audit.append("received", **_describe(message, request), parts=told, **self._written)
        if problem is not None or request is None:
            raise problem or WireError("The message cannot be read.")
        return request

    def check(self, message: Message, request: Request) -> None:
        """Check a request against the approved plan, the policy, and what is installed here.

        Raises
        ------
        PolicyError
            If it does not follow from the approved plan, or goes beyond the policy.
        WireError
            If its plan cannot be carried out.
        """
        bound = find_approval(self._approvals, request)
        if isinstance(bound, Refusal):
            self._audit.append("refused", **_describe(message, request), refusals=[asdict(bound)])
            raise explain(bound, request)
        self._bound = bound
        refusals = self._find_refusals(request, bound, list_parts(message.content))
        if refusals:
            told = [asdict(refusal) for refusal in refusals]
            self._audit.append("refused", **_describe(message, request), refusals=told)
            refuse(refusals)
        self._audit.accept()
        for plan in request.plans:
            try_plan(plan)

    def note_exclusions(self, hospital: Hospital) -> None:
        """Take how many images are left out because patients withdrew, and say at this site what has changed.

        Every entry ``sent`` tells it. An entry of its own would tell the server, which gets the length of the log,
        when somebody has withdrawn.
        """
        counts = hospital.data.exclusion_counts if hospital.data is not None else None
        if counts is not None and counts is not self._exclusions:
            for line in describe_exclusions(counts, self._exclusions):
                say(line)
            self._exclusions = counts

    def let_out(self, message: Message, request: Request, reply: Message, site: str) -> None:
        """Check a reply against the list of what may leave, and record it. It may leave after this returns.

        Raises
        ------
        PolicyError
            If there is anything in it that is not on the list.
        """
        if self._heads is not None:
            self._heads.answer(message, request.plan.run_id, reply)
        parts = list_parts(reply.content) if reply.has_content() else []
        problem = find_stranger(request.kind, parts) or find_reply_breach(self._policy, request, reply, site)
        if problem is not None:
            self._audit.append("withheld", **_describe(message, request), reason=problem)
            raise PolicyError(f"The reply was not sent: {problem}. This is a fault of the software; please report it.")
        if KINDS[request.kind].is_answered(reply.content, read_values(reply, REPORT)):
            self._note_answer(request, list_parts(message.content))
        self._audit.append(
            "sent", **_describe(message, request), parts=parts, exclusions=record_exclusions(self._exclusions)
        )

    @contextmanager
    def counting_errors(
        self, message: Message, request: Request, *, but: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Count an error like an answer, before it leaves.

        That a model fails can be made to hang on a single image, so that uncounted errors would answer any number of
        questions. What is wrong with a request or with the site's own files (``but``) hangs on no image.
        """
        self._is_noted = False
        try:
            yield
        except but:
            raise
        except (Exception, SystemExit):
            if not self._is_noted:
                self._note_answer(request, list_parts(message.content))
            raise

    def record_failure(self, message: Message, request: Request | None, error: BaseException) -> None:
        """Record an error and the text about it that leaves."""
        text = describe_error(error)
        data = text.encode()
        part = {"name": "error", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if not isinstance(error, PolicyError):  # recorded already
            self._audit.append("failed", **_describe(message, request), error=type(error).__name__)
        left_out = record_exclusions(self._exclusions)
        self._audit.append("sent", **_describe(message, request), parts=[part], text=text, exclusions=left_out)
        if not self._audit.close(text):  # the same as before, which is only counted
            self._writer.forget(self._written)

    def _note_answer(self, request: Request, arrived: list[Part]) -> None:
        """Count an answer before it leaves."""
        assert self._bound is not None, "the request was checked"
        approval, network = self._bound.approval, self._bound.network
        self._is_noted = True
        if request.kind == "evaluate" or (request.kind == "train" and request.plan.losses == "groups"):
            what = "tables" if request.kind == "evaluate" else "losses"
            note_groups(self._state_dir, self._policy, request.plan, what)
        if self._ledger.note(request, approval, network, _find_model(request, arrived)):
            self._approvals.note_answer(approval)

    def _find_refusals(self, request: Request, bound: Bound, parts: list[Part]) -> list[Refusal]:
        policy = self._policy
        return [
            *dict.fromkeys(refusal for plan in request.plans for refusal in check_plan(policy, plan)),
            *dict.fromkeys(refusal for plan in request.plans for refusal in check_bounds(policy, plan)),
            *dict.fromkeys(refusal for plan in request.plans for refusal in check_extensions(policy, plan)),
            *check_test(policy, request.part),
            *check_validation(policy, request.kind, request.part),
            *(check_hours(policy, self._clock()) if _trains(policy, KINDS[request.kind]) else []),
            *check_disk(policy, self._state_dir),
            *check_size(policy, sum(part["bytes"] for part in parts)),
            *self._ledger.check(request, bound.approval, bound.network, _find_model(request, parts)),
        ]


def guard_messages(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Let a message through to the app and its reply out; in a simulation, as they are.

    A modifier as Flower's ``ClientApp`` takes it.
    """
    with _recorded():
        hospital = find_hospital(context.node_config)
        guard = _find_guard(hospital) if hospital is not None else None
    if hospital is None or guard is None:
        return call_next(message, context)
    request: Request | None = None
    try:
        with allow_only(hospital.config.policy.extensions, hospital.config.own_code):
            request = guard.receive(message)
            guard.check(message, request)
            hospital.open_site()
            guard.note_exclusions(hospital)
            with guard.counting_errors(message, request, but=(DataError, WireError)):
                reply = call_next(message, context)
            with guard.counting_errors(message, request):
                guard.note_exclusions(hospital)
                guard.let_out(message, request, reply, hospital.config.name)
    except (Exception, SystemExit) as error:
        explained = _explain(error)
        _logger.warning("A request was not answered: %s", tame(describe_error(explained), 2000))
        with _recorded():
            guard.record_failure(message, request, explained)
        if explained is error:
            raise
        raise explained from error
    return reply


@contextmanager
def _recorded() -> Iterator[None]:
    """Turn every failure to open or write the audit log into one that says nothing."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise NotRecordedError(
            f"This site cannot write down what it receives and sends ({type(error).__name__}), so nothing leaves it. "
            "Look into worker.log in the folder logs of state_dir; flower-client --check finds the usual causes."
        ) from error


@functools.lru_cache(maxsize=4)
def _make_guard(state_dir: Path, policy_json: str, signs_as: SignsAs) -> Guard:
    policy, audit = PolicyConfig.model_validate_json(policy_json), open_site_audit(state_dir)
    return Guard(policy, audit, state_dir, heads=SiteHeads(state_dir, audit, signs_as))


def _find_guard(hospital: Hospital) -> Guard:
    config = hospital.config
    return _make_guard(hospital.state_dir, config.policy.model_dump_json(), SignsAs.of(config))


def _describe(message: Message, request: Request | None) -> dict[str, str | int | None]:
    """Return what an entry says of the message that it is about."""
    about: dict[str, str | int | None] = {"kind": tame(name_kind(message.metadata.message_type), 60)}
    if request is not None:
        about |= {"run": request.plan.run_id, "round": request.round, "of": request.part}
    return about


def _find_model(request: Request, parts: list[Part]) -> str | None:
    """Return the hash of the model that a request is about: of the one that it brings, or that it names."""
    arrived = [part["sha256"] for part in parts if part["name"] == MODEL]
    return arrived[0] if arrived else request.model_sha256


def _trains(policy: PolicyConfig, kind: Kind) -> bool:
    """Return whether an answer takes training: not where the site's policy declines it."""
    return kind.trains and (kind.setting is None or bool(getattr(policy, kind.setting)))


def _explain(error: BaseException) -> BaseException:
    """Return an error that a person can act on where one is known."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    if told or isinstance(error, MemoryError):  # torch.OutOfMemoryError is a RuntimeError
        return TrainingError(
            "This site has too little memory for the task. Lower training.batch_size or data.image_size in "
            "server.yaml, choose a smaller model, or raise policy.gpu_share in the site's client.yaml."
        )
    return error

"""What the server asks of a site: read, checked, and with the model that it is about.

Nothing that arrives is trusted: :mod:`fedmed.protocol.requests` checks each value for its type and range, and here it
is checked that they fit the plan and each other, and that what a plan names is something that is installed here. All
errors here may be told to the server, since they speak only of what it sent.
"""

import functools
import logging
import re

from flwr.app import Message

from client.guard.outside_code import check_code
from client.guard.second_model import check_other
from fedmed.config import LOCAL_MODEL_OPTIONS, Plan
from fedmed.data import make_eval_transform, make_train_transform
from fedmed.distillation.network import get_network
from fedmed.errors import ConfigError, ExtensionFailedError, FedmedError, TeacherUnavailableError, WireError, tame
from fedmed.losses import build_loss
from fedmed.protocol.kinds import KINDS, ScoredPart, name_kind
from fedmed.protocol.messages import MODEL, REQUEST, read_model, read_values
from fedmed.protocol.requests import NEEDS_DISTIL
from fedmed.protocol.requests import Request as SentRequest
from fedmed.training.network import hash_model
from fedmed.training.outside_code import try_loss, try_network

_logger = logging.getLogger("fedmed.client")

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_IMAGE_SIZES = range(16, 1025)
_CANNOT = "The server's plan cannot be carried out here"
_MOST_OF_ERROR = 1000  # it lists what is allowed


class Request(SentRequest):
    """One request of the server, checked."""

    kind: str
    """Name of one of :data:`fedmed.protocol.kinds.KINDS`."""
    round: int
    """From 1 in training; 0 is the model at the start, and the round of a query."""

    @property
    def plans(self) -> list[Plan]:
        """The plans of all models that it is about."""
        return [self.plan] if self.other is None else [self.plan, self.other.plan]


def read_request(message: Message) -> Request:
    """Read and check what a message asks for.

    Raises
    ------
    WireError
        With the value found and what is allowed.
    """
    kind = name_kind(message.metadata.message_type)
    sent = SentRequest.read(read_values(message, REQUEST))
    _check_plan(sent.plan)
    checked = {"kind": kind, "round": _find_round(sent, kind), "part": _find_part(sent, kind)}
    request = Request.model_construct(**{**dict(sent), **checked})
    if kind in KINDS and KINDS[kind].needs_round and request.round == 0:
        raise WireError("The request to train is for round 0. Allowed: 1 to the last round of the plan.")
    if kind == "local" and not request.plan.benefit:
        raise WireError("The request is to train a model of this site alone, which the plan does not foresee.")
    _check_test(request)
    _check_choice(request)
    if request.group_weights and (kind != "train" or request.plan.losses != "groups"):
        raise WireError("The request has 'group_weights'. Allowed: in a training whose plan has losses by group.")
    if kind == "distil" and request.distil is None:
        raise WireError(NEEDS_DISTIL)
    if request.other is not None:
        _check_plan(request.other.plan)
    check_other(kind, request.part, request.plan, request.other)
    return request


def check_classes(request: Request, own: tuple[str, ...]) -> None:
    """Check that the server's classes are this site's.

    Raises
    ------
    WireError
        Without the site's own classes, which come from its table and may hold anything.
    """
    if tuple(request.plan.classes) != own:
        raise WireError(
            f"The server's classes are {tame(str(request.plan.classes))}, this site's {len(own)} are others or in "
            "another order. They must be the same, in the same order: list them as data.classes in the site's "
            "client.yaml; flower-client --check shows both."
        )


def try_plan(plan: Plan) -> None:
    """Build what a plan names.

    Raises
    ------
    WireError
        If it cannot be carried out with what is installed here.
    """
    check_code(plan)
    _try_plan(plan.model_dump_json())


@functools.lru_cache(maxsize=2)
def _try_plan(plan_json: str) -> None:
    plan = Plan.model_validate_json(plan_json)
    try:
        make_train_transform(plan.augmentation, plan.image_size)
        make_eval_transform(plan.augmentation, plan.image_size)
        try_loss(plan.loss, build_loss(plan.loss, [1] * len(plan.classes)), len(plan.classes))
        try_network(plan.model.name, get_network(plan).model, len(plan.classes), plan.image_size)
    except ExtensionFailedError as error:  # what others' code says may hold anything
        _logger.warning("Code that the plan names has failed: %s", error)
        raise WireError(f"{_CANNOT}: its code from outside fedmed has failed; the site's log says more.") from error
    except ConfigError as error:  # of these four: a name or an option in the plan that is not known here
        raise WireError(f"{_CANNOT}: {tame(str(error), _MOST_OF_ERROR)}") from None
    except TeacherUnavailableError as error:
        raise _explain_teacher(plan, error) from None
    except Exception as error:  # options come from the network and may be anything
        if isinstance(error, FedmedError) and error.shareable:
            raise WireError(f"{_CANNOT}: {tame(str(error), _MOST_OF_ERROR)}") from None
        raise WireError(
            f"{_CANNOT}: building its model and loss ended with a {type(error).__name__}. Check model and loss in "
            "server.yaml."
        ) from error


def _explain_teacher(plan: Plan, error: TeacherUnavailableError) -> WireError:
    """Return what the server is told when this site lacks the teacher: of an own file, not where it is looked for."""
    if plan.fopro is None or plan.fopro.teacher.source != "file":
        return WireError(f"{_CANNOT}: {tame(str(error), _MOST_OF_ERROR)}")
    _logger.warning("The teacher's file cannot be used: %s", error)
    return WireError(
        f"{_CANNOT}: this site has no usable file of the teacher '{tame(plan.fopro.teacher.name)}'. Set teacher_file "
        "in its client.yaml; its log says what was found. Or switch the teacher off with fopro.teacher: none in "
        "server.yaml."
    )


class ModelMemory:
    """The last model that this process received, for requests that come without it."""

    def __init__(self) -> None:
        self._kept: tuple[str, bytes] | None = None

    def take(self, message: Message, request: Request) -> bytes | None:
        """Return the packed model that a request is about, or None if it must be sent first.

        Raises
        ------
        WireError
            If the message neither holds nor names a model, or holds another than it names.
        """
        if request.model_sha256 is not None and MODEL not in message.content:
            kept = self._kept
            return kept[1] if kept is not None and kept[0] == request.model_sha256 else None
        packed = read_model(message)
        self._kept = None
        if request.remember:
            digest = hash_model(packed)
            if digest != request.model_sha256:
                raise WireError("The model that arrived is not the one that the request names; its hash differs.")
            self._kept = (digest, packed)
        return packed


def _check_plan(plan: Plan) -> None:
    for option in LOCAL_MODEL_OPTIONS:
        if option in plan.model.options:
            raise WireError(
                f"The server's plan sets the model option '{option}', which names a file of the coordinating site and "
                "never travels. This site opens no file that the server names."
            )
    if plan.image_size not in _IMAGE_SIZES:
        allowed = f"{_IMAGE_SIZES.start} to {_IMAGE_SIZES.stop - 1}"
        raise WireError(
            f"The server's plan has image_size {tame(str(plan.image_size), 30)}. Allowed: {allowed} pixels."
        )
    if plan.rounds < 1 or plan.seed < 0 or len(plan.classes) < 2:
        raise WireError(
            f"The server's plan has {tame(str(plan.rounds), 30)} rounds, the seed {tame(str(plan.seed), 30)} and "
            f"{len(plan.classes)} classes. Allowed: from 1, from 0 and from 2."
        )
    if plan.run_id and not _RUN_ID.fullmatch(plan.run_id):
        raise WireError(
            f"The server's plan has the run_id {_show(plan.run_id)}. Allowed: up to 100 letters, digits, '_', '-' and "
            "'.', beginning with a letter or digit; it names a folder here."
        )


def _check_test(request: "Request") -> None:
    """Check that what belongs to a test is in none but a test, and that alerts are asked for where the plan has any."""
    is_test = (request.kind, request.part) == ("evaluate", "test")
    has_temperature = request.temperature is not None and request.kind != "alert"
    if (has_temperature or request.compare) and not is_test:
        raise WireError("The request names a temperature or models to compare with. Allowed: in a test only.")
    if request.alert_threshold is not None and (not is_test or request.plan.operating is None):
        raise WireError("The request names a threshold of alerts. Allowed: in a test whose plan has alert classes.")
    if request.kind == "alert" and request.plan.operating is None:
        raise WireError("The request is for counts of alert scores, and the plan has no alert classes.")


def _check_choice(request: "Request") -> None:
    """Check that of the validation images no more is asked for than the plan says."""
    if request.kind == "figure" and request.plan.choice != "figure":
        raise WireError("The request is for figures of validation images, and the plan has choice: tables.")
    if (request.kind, request.part) == ("evaluate", "validation") and request.plan.choice != "tables":
        raise WireError("The request is for tables of validation images, and the plan has choice: figure.")


def _find_round(request: SentRequest, kind: str) -> int:
    number, last = request.round, request.plan.rounds
    if kind == "query":
        return 0
    if number is None or number > last:
        raise WireError(
            f"The request is for round {tame(str(number), 30)}. Allowed: up to the plan's last round, "
            f"{tame(str(last), 30)}."
        )
    return number


def _find_part(request: SentRequest, kind: str) -> ScoredPart | None:
    """Return which images to score; None where a kind scores none."""
    allowed = [phase.part for phase in KINDS[kind].phases if phase.part is not None] if kind in KINDS else []
    if allowed and request.part not in allowed:
        raise WireError(f"The request's 'part' is {request.part!r}. Allowed: {', '.join(allowed)}.")
    return request.part if allowed else None


def _show(value: object) -> str:
    """Return a value from the network, short enough for a log."""
    return tame(repr(value), 100)

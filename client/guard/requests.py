"""What the server asks of a site: read, checked, and with the model that it is about.

Nothing that arrives is trusted: each value is checked for its type and range, and what a plan names must be something
that is installed here. All errors here may be told to the server, since they speak only of what it sent.
"""

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from pydantic import ValidationError

from client.guard.outside_code import check_code
from client.guard.second_model import DistilSettings, OtherModel, check_other, read_distil, read_other
from fedmed.config import LOCAL_MODEL_OPTIONS, Plan
from fedmed.data import make_eval_transform, make_train_transform
from fedmed.errors import ConfigError, ExtensionFailedError, FedmedError, TeacherUnavailableError, WireError, tame
from fedmed.losses import build_loss
from fedmed.metrics.packing import MOST_GROUPS
from fedmed.metrics.site_tables import COMPARED_MODELS
from fedmed.metrics.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE
from fedmed.protocol.messages import MODEL, REQUEST, read_model, read_values
from fedmed.training.network import get_network, hash_model

_logger = logging.getLogger("fedmed.client")

PARTS = ("validation", "test")
_ACTIONS = {"train": ("local", "distil"), "evaluate": ("recalibrate", "release", "calibrate")}
"""What for Flower is a kind of training or of evaluation."""
_NEED_ROUND = ("train", "local", "distil")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_IMAGE_SIZES = range(16, 1025)
_CANNOT = "The server's plan cannot be carried out here"
_LARGEST_WEIGHT = 1e6
_MOST_OF_ERROR = 1000  # it lists what is allowed


@dataclass(frozen=True)
class Request:
    """One request of the server."""

    kind: str
    """``query``, ``train``, ``local``, ``distil``, ``evaluate``, ``recalibrate``, ``calibrate`` or ``release``."""
    plan: Plan
    round: int = 0
    """From 1 in training; 0 is the model at the start."""
    part: str | None = None
    """Which images to score: ``validation`` or ``test``."""
    best_round: int | None = None
    model_sha256: str | None = None
    """Hash of the model, also where the message does not bring it."""
    remember: bool = False
    """Whether the model should be kept in memory for the next request."""
    artefact_sha256: str | None = None
    """Hash of the files that are compared with the model before a release."""
    temperature: float | None = None
    """By what the model's outputs are divided in a test."""
    compare: tuple[str, ...] = ()
    """Models with which the federation's is compared in a test, see :mod:`client.answers.compared_models`."""
    group_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of an image of each patient group in the training; 1 for groups that are not named."""
    other: OtherModel | None = None
    """The second model."""
    distil: DistilSettings | None = None
    """How the first model learns from the second."""

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
    kind = message_kind(message)
    try:
        values = read_values(message, REQUEST)
    except RecursionError:
        raise WireError("The request is nested too deeply to be read.") from None
    plan = _read_plan(values)
    request = Request(
        kind=kind,
        plan=plan,
        round=_read_round(values, plan) if kind != "query" else 0,
        part=_read_part(values, kind),
        best_round=_read_optional_count(values, "best_round"),
        model_sha256=_read_hash(values, "model_sha256"),
        remember=values.get("remember", False) is True,
        artefact_sha256=_read_hash(values, "artefact_sha256") if kind == "release" else None,
        temperature=_read_temperature(values),
        compare=_read_compare(values),
        group_weights=_read_group_weights(values),
        other=read_other(values, plan, _read_plan),
        distil=read_distil(values, kind),
    )
    if kind in _NEED_ROUND and request.round == 0:
        raise WireError("The request to train is for round 0. Allowed: 1 to the last round of the plan.")
    if kind == "local" and not plan.benefit:
        raise WireError("The request is to train a model of this site alone, which the plan does not foresee.")
    if (request.temperature is not None or request.compare) and (kind, request.part) != ("evaluate", "test"):
        raise WireError("The request names a temperature or models to compare with. Allowed: in a test only.")
    if request.group_weights and (kind != "train" or plan.losses != "groups"):
        raise WireError("The request has 'group_weights'. Allowed: in a training whose plan has losses by group.")
    check_other(kind, request.part, request.other)
    return request


def message_kind(message: Message) -> str:
    """Return ``query``, ``train``, ``evaluate``, or what for Flower is a kind of the latter two."""
    kind, _, action = message.metadata.message_type.partition(".")
    return action if action in _ACTIONS.get(kind, ()) else kind


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
        build_loss(plan.loss, [1] * len(plan.classes))
        get_network(plan)
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


def _read_plan(values: Mapping[str, Any]) -> Plan:
    try:
        plan = Plan.model_validate(values["plan"])
    except (KeyError, ValidationError, RecursionError):
        raise WireError(
            "The server's plan cannot be read here. Server and site must run the same version of fedmed."
        ) from None
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
    return plan


def _read_round(values: Mapping[str, Any], plan: Plan) -> int:
    number = _read_optional_count(values, "round")
    if number is None or number > plan.rounds:
        raise WireError(
            f"The request is for round {tame(str(number), 30)}. Allowed: up to the plan's last round, "
            f"{tame(str(plan.rounds), 30)}."
        )
    return number


def _read_optional_count(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WireError(f"The request's '{key}' is {_show(value)}. Allowed: a whole number from 0.")
    return value


def _read_part(values: Mapping[str, Any], kind: str) -> str | None:
    """Return which images to score; the forms of a model are compared on test images only."""
    allowed = {"evaluate": PARTS, "release": ("test",)}.get(kind)
    return None if allowed is None else _read_choice(values, "part", allowed)


def _read_choice(values: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = values.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise WireError(f"The request's '{key}' is {_show(value)}. Allowed: {', '.join(allowed)}.")
    return value


def _read_temperature(values: Mapping[str, Any]) -> float | None:
    value = values.get("temperature")
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        allowed = f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise WireError(f"The request's 'temperature' is {_show(value)}. Allowed: {allowed}.")
    return float(value)


def _read_compare(values: Mapping[str, Any]) -> tuple[str, ...]:
    names = values.get("compare", [])
    if not isinstance(names, list) or any(name not in COMPARED_MODELS for name in names):
        raise WireError(f"The request's 'compare' is {_show(names)}. Allowed: a list of {', '.join(COMPARED_MODELS)}.")
    return tuple(dict.fromkeys(names))


def _read_group_weights(values: Mapping[str, Any]) -> dict[str, float]:
    weights = values.get("group_weights", {})
    if not isinstance(weights, dict) or len(weights) > MOST_GROUPS:
        raise WireError(f"The request's 'group_weights' is {_show(weights)}. Allowed: at most {MOST_GROUPS} groups.")
    for value in weights.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST_WEIGHT:
            raise WireError(f"A weight in the request is {_show(value)}. Allowed: 0 to {_LARGEST_WEIGHT:g}.")
    return {group: float(value) for group, value in weights.items()}


def _read_hash(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise WireError(f"The request's '{key}' is {_show(value)}. Allowed: 64 hexadecimal digits.")
    return value


def _show(value: object) -> str:
    """Return a value from the network, short enough for a log."""
    return tame(repr(value), 100)

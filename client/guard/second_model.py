"""A second model in a request: to be compared with the first image by image, or for the first to learn from."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flwr.app import Message
from pydantic import Field, ValidationError

from fedmed.config import Plan, Section
from fedmed.errors import WireError
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import read_other_model

_COMMON = ("seed", "classes", "image_size", "augmentation", "run_id", "study", "approval", "fairness")
"""Parts of a plan that are the same for two models that one request is about."""


class DistilSettings(Section):
    """How the first model learns from the second, see :func:`fedmed.distillation.compact_loss`."""

    temperature: Annotated[float, Field(gt=0, le=100)]
    feature_weight: Annotated[float, Field(ge=0, le=1000)]


class _Told(Section):
    name: Literal["student", "teacher"]
    plan: Any
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class OtherModel:
    """The second model."""

    name: str
    """``student`` or ``teacher``: under which its tables are told."""
    plan: Plan
    sha256: str


def read_other(
    values: Mapping[str, Any], plan: Plan, read_plan: Callable[[Mapping[str, Any]], Plan]
) -> OtherModel | None:
    """Return the second model that a request names.

    Parameters
    ----------
    values : mapping
        The request.
    plan : Plan
        Of the first model.
    read_plan : callable
        Reads and checks the ``plan`` of a mapping.

    Raises
    ------
    WireError
        If it cannot be read, or is of another run or other images than the first.
    """
    if values.get("other") is None:
        return None
    try:
        told = _Told.model_validate(values["other"])
    except ValidationError:
        raise WireError("The request's 'other' is not what was agreed: name, plan and sha256 of a model.") from None
    other = read_plan({"plan": told.plan})
    if any(getattr(other, name) != getattr(plan, name) for name in _COMMON):
        raise WireError("The request's second model is of another run or other images than its first.")
    return OtherModel(told.name, other, told.sha256)


def read_distil(values: Mapping[str, Any], kind: str) -> DistilSettings | None:
    """Return how a model learns from another; None where it does not.

    Raises
    ------
    WireError
        If a distillation does not say it.
    """
    if kind != "distil":
        return None
    try:
        return DistilSettings.model_validate(values.get("distil"))
    except ValidationError:
        raise WireError("The request's 'distil' cannot be read. Needed: temperature and feature_weight.") from None


def check_other(kind: str, part: str | None, other: OtherModel | None) -> None:
    """Check that a second model comes where one is foreseen, and only there.

    Raises
    ------
    WireError
        If not.
    """
    phase = KINDS[kind].find_phase(part) if kind in KINDS else None
    if other is not None and (phase is None or other.name != phase.other):
        raise WireError(
            f"The request brings a second model, '{other.name}'. Allowed: a student with the validation of a model, a "
            "teacher with its test or its distillation."
        )
    if kind == "distil" and other is None:
        raise WireError("The request to distil a model brings none to learn from.")


def take_other(message: Message, other: OtherModel | None) -> bytes | None:
    """Return the packed second model of a message; None where the request names none.

    Raises
    ------
    WireError
        If it is missing or another than the request names.
    """
    if other is None:
        return None
    packed = read_other_model(message)
    if hashlib.sha256(packed).hexdigest() != other.sha256:
        raise WireError("The second model that arrived is not the one that the request names; its hash differs.")
    return packed

"""A second model in a request: to be compared with the first image by image, or for the first to learn from."""

import hashlib

from flwr.app import Message

from fedmed.config import Plan
from fedmed.errors import WireError
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import read_other_model
from fedmed.protocol.requests import OtherModel

_COMMON = ("seed", "classes", "image_size", "augmentation", "run_id", "study", "approval", "fairness")
"""Parts of a plan that are the same for two models that one request is about."""


def check_other(kind: str, part: str | None, plan: Plan, other: OtherModel | None) -> None:
    """Check that a second model comes where one is foreseen, and only there, and is about the same images.

    Parameters
    ----------
    kind, part : str
        Of the request.
    plan : Plan
        Of the first model.
    other : OtherModel, optional
        The second.

    Raises
    ------
    WireError
        If not.
    """
    if other is not None and any(getattr(other.plan, name) != getattr(plan, name) for name in _COMMON):
        raise WireError("The request's second model is of another run or other images than its first.")
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

"""The approved plan at a hospital's door: what does not follow from it is not answered."""

from dataclasses import dataclass

from client.guard.approvals import NOT_APPROVED, Approval, Approvals
from client.guard.policy import Refusal
from client.guard.requests import Request
from fedmed.config import Plan
from fedmed.errors import PolicyError
from fedmed.protocol.foreseen import Network

HOW_TO_APPROVE = "flower-client --approve"


class NotApprovedError(PolicyError):
    """A plan that nobody at this site has approved."""


@dataclass(frozen=True)
class Bound:
    """The approval that a request rests on, and which of its plan's networks it is about."""

    approval: Approval
    network: Network


def find_approval(approvals: Approvals, request: Request) -> Bound | Refusal:
    """Return what a request rests on, or why it rests on nothing.

    Raises
    ------
    RunFolderError
        If the list of approved plans cannot be read.
    """
    main = _choose_main(request)
    approval = approvals.find(main)
    network = None if approval is None else _find_network(approval, request)
    if approval is not None and network is not None:
        return Bound(approval, network)
    known = [one.sha256 for one in approvals.read() if one.plan.run_id == request.plan.run_id]
    return Refusal(
        "approved_plan",
        f"the plan {main.sha256}" if approval is None else "a network that does not follow from the approved plan",
        ", ".join(known) or "no plan of this run so far",
        f"A person at the site types {HOW_TO_APPROVE}, which shows the plan; or the coordinating site goes back to the "
        "plan that was approved.",
    )


def explain(refusal: Refusal, request: Request) -> NotApprovedError:
    """Return the line for both sides."""
    if refusal.found.startswith("the plan "):
        changed = "" if refusal.allowed.startswith("no plan") else f" The plan of this run was {refusal.allowed}."
        return NotApprovedError(
            f"{NOT_APPROVED} {_choose_main(request).sha256} yet; a person there types {HOW_TO_APPROVE}.{changed}"
        )
    return NotApprovedError(f"this site has not approved this request. {refusal}")


def _choose_main(request: Request) -> Plan:
    """Return the plan of the trained network, where the request names it."""
    return request.other.plan if request.other is not None and request.other.name == "teacher" else request.plan


def _find_network(approval: Approval, request: Request) -> Network | None:
    """Return which network a request is about; None if what it brings does not follow from the approved plan."""
    own = approval.find_network(request.plan)
    if request.distil is not None and (own != "distilled" or not _says_the_same(approval, request)):
        return None
    if request.other is None:
        return own if own in {"trained", "small"} else None
    beside = approval.find_network(request.other.plan)
    if request.other.name == "student":
        return "both" if (own, beside) == ("trained", "small") else None
    if beside != "trained":
        return None
    if request.kind == "distil":
        return "distilled" if own == "distilled" else None
    return "small" if own == "small" else None


def _says_the_same(approval: Approval, request: Request) -> bool:
    """Return whether a request to distil has the settings of the approved plan."""
    student, told = approval.plan.student, request.distil
    assert student is not None
    assert told is not None
    return (told.temperature, told.feature_weight) == (student.temperature, student.feature_weight)

"""The one way in which tests approve a plan at a hospital, as a person there does with ``flower-client --approve``."""

from pathlib import Path
from typing import Any

from flwr.app import Message
from pydantic import ValidationError

from client.guard.approvals import Approval, Approvals
from client.guard.ledger import Ledger
from fedmed.config import Plan
from fedmed.config.client import ClientConfig, PolicyConfig
from fedmed.errors import WireError
from fedmed.protocol.messages import REQUEST, read_values

_LONGEST_NAME = 100


def approve(
    where: Path | ClientConfig, plan: Plan | dict[str, Any], *, again: bool = False, after_rounds: bool = False
) -> Approval:
    """Approve a plan in a state folder, or in that of a site's settings.

    With ``after_rounds`` the site's ledger stands as after the rounds, so that what comes at the end is answered.
    """
    folder = where if isinstance(where, Path) else Path(where.state_dir)
    approval = Approvals(folder).add(plan if isinstance(plan, Plan) else Plan.model_validate(plan), again=again)
    if after_rounds:
        Ledger(folder / "runs", PolicyConfig()).begin(approval)
    return approval


def approve_request(state_dir: Path, message: Message) -> None:
    """Approve whatever plan a request is about, as if its run had come to the end of its rounds.

    For tests of what one request gives, which have no run before it. A plan that cannot be read stays as it is.
    """
    try:
        values = read_values(message, REQUEST)
        other: Any = values.get("other")
        is_of_teacher = isinstance(other, dict) and other.get("name") == "teacher"
        plan = Plan.model_validate(other["plan"] if is_of_teacher else values.get("plan"))
    except (WireError, ValidationError, KeyError, ValueError):
        return
    if len(plan.run_id) > _LONGEST_NAME or not plan.run_id.isprintable():  # the guard refuses it before anything else
        return
    if Approvals(state_dir).find(plan) is None:
        approve(state_dir, plan, after_rounds=True)

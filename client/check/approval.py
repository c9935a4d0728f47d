"""``flower-client --approve``: a person at this site reads the plan and approves it; and the check of that."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from client.check.context import CheckContext, CheckResult, Server
from client.check.plan_words import describe_plan, list_changes
from client.guard.approvals import Approval, Approvals
from client.guard.audit import open_site_audit
from client.guard.ledger import read_progress
from client.hospital.told_groups import find_other_groups
from fedmed.config import Plan
from fedmed.config.client import ClientConfig
from fedmed.errors import ConfigError, PolicyError
from fedmed.protocol.hello import Hello

TYPE_APPROVE = "Read the plan above with whoever is responsible for the study here, then type: flower-client --approve"
_AGAIN = "--again"
_LIST = "Name the attributes in policy.attributes and the crossings in policy.crossings of client.yaml"


@dataclass(frozen=True)
class Wish:
    """What a person has typed."""

    sha256: str | None = None
    """The hash that the plan must have; None: any, as shown."""
    yes: bool = False
    """Whether no question is asked."""
    again: bool = False
    """Whether what was asked so far is to be counted anew."""
    as_json: bool = False
    name: str | None = None
    """Who approves."""
    other_groups: bool = False
    """Whether other patient groups may be told apart than in earlier runs."""


def read_plan(hello: Hello) -> Plan | None:
    """Return the plan in a server's greeting; None if it has none yet.

    Raises
    ------
    ConfigError
        If it cannot be read here.
    """
    told = hello.get("plan")
    try:
        return None if told is None else Plan.model_validate(told)
    except ValidationError:
        raise ConfigError(
            "The server's plan cannot be read here. Server and site must run the same version of fedmed."
        ) from None


def approve(
    config: ClientConfig,
    wish: Wish,
    connect: Callable[[ClientConfig], Server],
    ask: Callable[[str], str] = input,
) -> int:
    """Show the server's plan, ask, and store the approval; return the exit code.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site.
    wish : Wish
        What was typed.
    connect : callable
        Makes the signed connection to the server.
    ask : callable
        Puts a question to a person and returns the answer.

    Raises
    ------
    FedmedError
        If the server cannot be reached, has no plan, or has another than was named.
    """
    with connect(config) as server:
        plan = read_plan(server.hello())
    if plan is None:
        raise ConfigError("The server has no plan yet; try again when the coordinating site has started.")
    state_dir = Path(config.state_dir)
    approvals = Approvals(state_dir, config.policy.approved_plan)
    before = approvals.find_of_run(plan.run_id)
    if not wish.as_json:
        print("\n".join([*describe_plan(plan), "", *_describe_state(plan, before, state_dir), ""]))
        if wish.again and before is not None:
            print(_warn_of_again(before, state_dir) + "\n")
    _check_hash(plan, wish, config.policy.approved_plan)
    is_new = before is None or before.sha256 != plan.sha256 or wish.again
    other_groups = find_other_groups(state_dir, config.policy, plan) if is_new else []
    accepts = _accepts_groups(other_groups, wish, ask)
    done = not is_new or (accepts and (wish.yes or (not wish.as_json and _agrees(ask))))
    if is_new and done:
        answered = None if before is None else read_progress(state_dir / "runs", before)
        approval = approvals.add(plan, again=wish.again, name=wish.name)
        _record(approval, answered, state_dir, again=wish.again)
    if wish.as_json:
        told = {"plan_sha256": plan.sha256, "approved": done, "words": describe_plan(plan)}
        changes = [] if before is None else list_changes(before.plan, plan)
        print(json.dumps({**told, "changes": changes, "plan": plan.model_dump(mode="json")}, indent=2))
    else:
        print(_conclude(plan, is_new=is_new, done=done))
    return 0 if done else 1


def check_approval(context: CheckContext, name: str) -> CheckResult:
    """Say whether the plan is approved, and what has changed since another one of this run was."""
    plan, config = context.get_plan(), context.config
    approvals = Approvals(Path(config.state_dir), config.policy.approved_plan)
    before = approvals.find_of_run(plan.run_id)
    named = config.policy.approved_plan
    other_groups = find_other_groups(Path(config.state_dir), config.policy, plan)
    if named == plan.sha256:
        found = f"the plan {plan.sha256} is approved by policy.approved_plan in client.yaml"
        return (
            CheckResult(name, "warning", f"{found}. {' '.join(other_groups)}", _LIST)
            if other_groups
            else (CheckResult(name, "ok", found))
        )
    if before is not None and before.sha256 == plan.sha256 and named is None:
        return CheckResult(name, "ok", f"the plan {plan.sha256} is approved since {before.approved} by {before.by}")
    found = "; ".join([*_describe_state(plan, before, Path(config.state_dir)), *other_groups])
    if named is not None:
        advice = f"policy.approved_plan in client.yaml allows {named} only. Change it there, if that is right."
        return CheckResult(name, "failed", f"the plan {plan.sha256} is not approved", advice)
    return CheckResult(name, "warning", found, TYPE_APPROVE)


def _describe_state(plan: Plan, before: Approval | None, state_dir: Path) -> list[str]:
    if before is None:
        return [f"The plan {plan.sha256} is not approved yet at this site"]
    answered = read_progress(state_dir / "runs", before)
    if before.sha256 == plan.sha256:
        number = "" if before.number == 1 else f", counted anew {before.number - 1} times"
        return [
            f"The plan {plan.sha256} is approved since {before.approved} by {before.by}{number}; answered so far in "
            f"this run: {answered}"
        ]
    changes = list_changes(before.plan, plan)
    return [
        f"The plan {plan.sha256} is not approved yet at this site",
        f"It differs from {before.sha256}, approved on {before.approved} by {before.by}: {'; '.join(changes)}",
        f"Answered so far in this run, which goes on counting under the new plan: {answered}",
    ]


def _warn_of_again(before: Approval, state_dir: Path) -> str:
    """Say what it means to count anew."""
    return (
        f"WARNING: {_AGAIN} counts anew. The server has had of this run: {read_progress(state_dir / 'runs', before)}. "
        "It may ask for all of that once more, also about other models, and learns more from two answers than from one."
    )


def _record(approval: Approval, answered: str | None, state_dir: Path, *, again: bool) -> None:
    """Write an approval into the audit log."""
    told = {"plan_sha256": approval.sha256, "run": approval.plan.run_id, "number": approval.number}
    who = {"user": approval.user, "name": approval.name}
    open_site_audit(state_dir).append("approved", **told, **who, again=again, answered_before=answered or "nothing")


def _check_hash(plan: Plan, wish: Wish, named: str | None) -> None:
    if wish.sha256 is not None and wish.sha256 != plan.sha256:
        raise PolicyError(
            f"The server's plan has the hash {plan.sha256}, not {wish.sha256}. It is not approved. Ask the "
            "coordinating site which plan it means."
        )
    if named is not None and named != plan.sha256:
        raise PolicyError(
            f"policy.approved_plan in client.yaml allows the plan {named} only, and this one is {plan.sha256}. Change "
            "it there, or set it to null."
        )


def _accepts_groups(other_groups: list[str], wish: Wish, ask: Callable[[str], str]) -> bool:
    """Return whether a person accepts that other patient groups are told apart than before."""
    if not other_groups or wish.other_groups:
        return True
    told = " ".join(other_groups)
    if wish.yes or wish.as_json:
        raise PolicyError(f"{told} It is not approved. {_LIST}, or add --other-groups to approve it all the same.")
    print(f"WARNING: {told} {_LIST}, if that is meant to be so for good.\n")
    return _agrees(ask, "Have these patient groups told apart beside those of before? [y/N] ")


def _agrees(ask: Callable[[str], str], question: str = "Approve this plan for this site? [y/N] ") -> bool:
    if not sys.stdin.isatty() and ask is input:
        raise ConfigError("There is no terminal to ask on. Read the plan above, then add --yes to approve it.")
    try:
        return ask(question).strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _conclude(plan: Plan, *, is_new: bool, done: bool) -> str:
    if not done:
        return "Not approved. Nothing but this greeting is answered to the server."
    if not is_new:
        return f"The plan {plan.sha256} is approved already. If the server has to repeat rounds, add {_AGAIN}."
    return f"The plan {plan.sha256} is approved. A running flower-client goes on by itself."

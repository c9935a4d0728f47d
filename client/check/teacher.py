"""Checks of the networks beside the one that is trained in the rounds: its teacher, and the small one."""

from dataclasses import dataclass

from client.check.context import CheckContext, CheckResult
from client.check.results import CheckFailedError
from client.guard.policy import check_plan
from fedmed.config import Plan, TeacherPlan, make_distil_plan, make_student_plan
from fedmed.distillation import Teacher, set_teacher_file, take_teacher

_ORIGINS = {
    "package": "of an installed package",
    "file": "from teacher_file",
    "torchvision": "downloaded by torchvision",
    "random": "untrained, the control of a study",
}


@dataclass(frozen=True)
class SmallNetwork:
    """The network into which the coordinating site means to compress the trained one.

    Attributes
    ----------
    plan : Plan
        As the sites are told of it when it is scored, or trained.
    is_trained_here : bool
        Whether the sites train it, in rounds of its own after the others.
    """

    plan: Plan
    is_trained_here: bool


def check_teacher(context: CheckContext, name: str) -> CheckResult:
    """Load the frozen network that the site's training learns from."""
    plan, config = context.get_plan(), context.config
    for refusal in check_plan(config.policy, plan):
        if refusal.key == "allow_download":
            raise CheckFailedError(f"{refusal.found}; policy.allow_download: {refusal.allowed}", refusal.advice)
    if plan.model.name == "frozen_teacher":
        return CheckResult(name, "ok", "the network itself is a frozen teacher with one trained layer")
    if plan.fopro is None:
        return CheckResult(name, "ok", "none, says the plan")
    if plan.fopro.teacher.is_self:
        return CheckResult(name, "ok", "the federation's own model of the round before; no file is needed")
    set_teacher_file(config.teacher_file)
    return CheckResult(name, "ok", _describe_teacher(plan.fopro.teacher, take_teacher(plan.fopro)))


def find_small(context: CheckContext) -> SmallNetwork | None:
    """Return the small network that the plan foresees; None if there is to be none."""
    plan = context.get_plan()
    if plan.student is None:
        return None
    if plan.student.kind == "co_distillation":
        return SmallNetwork(make_distil_plan(plan), is_trained_here=True)
    return SmallNetwork(make_student_plan(plan), is_trained_here=False)


def _describe_teacher(plan: TeacherPlan, teacher: Teacher) -> str:
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    agreed = "the plan's" if plan.sha256 is not None else "the server compares it with its own"
    return (
        f"{teacher.name}, {_ORIGINS[teacher.source]}, SHA-256 {teacher.sha256[:12]} ({agreed}); "
        f"{parameters / 1e6:.1f} million parameters, images of {teacher.image_size} pixels"
    )

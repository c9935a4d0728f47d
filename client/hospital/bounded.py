"""A plan as a hospital carries it out: with a batch of its own size, and the patient groups that it tells apart."""

from collections.abc import Iterable, Sequence
from itertools import combinations

from fedmed.config import FairnessConfig, Plan
from fedmed.config.client import PolicyConfig


def bound_batch(policy: PolicyConfig, plan: Plan, num_patients: int) -> Plan:
    """Return a plan with a batch of at most half as many images as there are patients, and of the site's own largest.

    Parameters
    ----------
    policy : PolicyConfig
        What the site allows.
    plan : Plan
        What is asked for.
    num_patients : int
        Patients of the training images; images where the data has no ids.
    """
    most = max(2, min(policy.max_batch, num_patients // 2))
    if plan.training.batch_size <= most:
        return plan
    return plan.model_copy(update={"training": plan.training.model_copy(update={"batch_size": most})})


def bound_groups(policy: PolicyConfig, plan: Plan, known: Sequence[str]) -> Plan:
    """Return a plan without the attributes and crossings that a policy does not list.

    Parameters
    ----------
    policy : PolicyConfig
        What the site allows.
    plan : Plan
        What is asked for.
    known : sequence of str
        Attributes of the site's data.
    """
    if policy.attributes is None and policy.crossings is None:
        return plan
    asked = plan.fairness
    allowed = known if policy.attributes is None else policy.attributes
    names = [name for name in known if name in allowed and (asked.attributes is None or name in asked.attributes)]
    crossings = _list_crossings(asked, names)
    if policy.crossings is not None:
        listed = {frozenset(one) for one in policy.crossings}
        crossings = [one for one in crossings if frozenset(one) in listed]
    limited = asked.model_copy(update={"attributes": names, "intersections": crossings or "none"})
    return plan.model_copy(update={"fairness": limited})


def _list_crossings(asked: FairnessConfig, names: Sequence[str]) -> list[list[str]]:
    wanted: Iterable[Sequence[str]] = asked.intersections if not isinstance(asked.intersections, str) else []
    if asked.intersections == "pairs":
        wanted = combinations(names, 2)
    return [list(one) for one in wanted if set(one) <= set(names)]

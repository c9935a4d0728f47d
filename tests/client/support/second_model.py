"""Asks a hospital with two models: the trained network and a small one."""

import hashlib
from typing import Any

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from fedmed.config import Plan, make_distil_plan, make_student_plan
from fedmed.metrics.site_tables import STUDENT, TEACHER
from fedmed.protocol.messages import REQUEST, make_content
from fedmed.training.network import Network
from tests.client.support.hospital import PLAN, HospitalSite

SMALL = make_student_plan(Plan.model_validate(PLAN)).model_dump(mode="json")
DISTILLED = make_distil_plan(Plan.model_validate(PLAN)).model_dump(mode="json")
DISTIL = {"temperature": 2.0, "feature_weight": 1.0}
SMALL_MODEL = Network(Plan.model_validate(SMALL)).pack()


def ask(
    site: HospitalSite,
    kind: str = "evaluate",
    name: str = STUDENT,
    *,
    other: dict[str, Any] | None = None,
    packed: bytes | None = SMALL_MODEL,
    plan: dict[str, Any] = PLAN,
    model: bytes | None = None,
    with_model: bool = True,
    **values: Any,
) -> Message:
    """Ask with the trained network and the small one beside it, or what ``values`` say."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    told = {"name": name, "plan": SMALL, "sha256": hashlib.sha256(packed or b"").hexdigest()} | (other or {})
    values = {"round": 1, "part": "validation", "plan": plan, "other": told} | values
    content = make_content(REQUEST, values, model=(model or site.model) if with_model else None, other_model=packed)
    return site.send(Message(content, dst_node_id=1, message_type=kind))


def distil(site: HospitalSite, **values: Any) -> Message:
    """Ask to train the small network against the trained one."""
    large: dict[str, Any] = values.pop("large", {"plan": PLAN})
    changes = {"plan": DISTILLED, "model": SMALL_MODEL, "part": None, "distil": DISTIL} | values
    return ask(site, "train.distil", TEACHER, other={"plan": large["plan"]}, packed=site.model, **changes)

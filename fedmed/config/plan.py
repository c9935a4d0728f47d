"""The part of the settings that the server sends to the sites."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedmed.config.aggregation import DivergenceReport, LossReport
from fedmed.config.distillation import FoproPlan, StudentPlan
from fedmed.config.fairness import Choice, FairnessConfig
from fedmed.config.model import ModelConfig, OperatingPlan
from fedmed.config.section import Section
from fedmed.config.training import TrainingConfig
from fedmed.extensions import Extension, find_extension, is_path

Compression = Literal["none", "fp16", "int8"]
"""How a site's update is shortened on its way to the server."""


class Plan(Section):
    """What the server tells the sites: everything that defines the common model and its training."""

    seed: int
    rounds: int
    classes: list[str]
    ordinal: bool = False
    """Whether they are ordered; a plan of others is written as if there were no such key."""
    image_size: int
    augmentation: str
    model: ModelConfig
    loss: dict[str, Any]
    training: TrainingConfig
    batch_norm: Literal["average", "local", "recalibrate"]
    compression: Compression = "none"
    study: str = "unnamed"
    """What the federation is for; a site can insist on it."""
    approval: str | None = None
    """Number of the ethics approval."""
    run_id: str = ""
    """Names one run for what its sites keep between rounds; the same after a restart."""
    fairness: FairnessConfig = FairnessConfig()
    """Patient groups that evaluations tell apart."""
    choice: Choice = "tables"
    """What sites tell of their validation images; a plan from before there was a choice means tables."""
    benefit: bool = False
    """Whether every site also trains a model on its own images alone, to compare with."""
    losses: LossReport = "none"
    """What a site tells about the loss on its training images before it trains."""
    loss_attribute: str | None = None
    """Attribute of ``losses: groups``."""
    divergence: DivergenceReport = "none"
    """What a site tells about the distance of its features from the teacher's."""
    fopro: FoproPlan | None = None
    """Distillation from a frozen teacher; null: none."""
    calibrate: bool = False
    """Whether the sites are asked for the sums from which a temperature is fitted."""
    operating: OperatingPlan | None = None
    """For which classes a model raises an alert, for which the sites are asked for counts of alert scores; null: none,
    and a plan without any is written as if there were no such key."""
    release: bool = False
    """Whether the sites compare the deployable forms of the model before it is released."""
    attempts: Annotated[int, Field(ge=1)] = 3
    """How often a round may be tried, until enough sites have sent an update."""
    student: StudentPlan | None = None
    """The small network into which the trained one is compressed at the end; null: none."""
    extensions: list[Extension] = Field(default=[])
    """Which code the import paths in it mean; a plan without any is written as if there were no such key."""

    @model_validator(mode="after")
    def _check_alert_classes(self) -> "Plan":
        if self.operating is not None and not set(self.operating.alert_classes) < set(self.classes):
            raise ValueError("'operating.alert_classes' are not some of the plan's classes, or all of them")
        return self

    @property
    def extension_paths(self) -> list[str]:
        """Import paths of what every site has to build."""
        small = [] if self.student is None else [self.student.model.name]
        return [name for name in dict.fromkeys((self.model.name, *map(str, self.loss), *small)) if is_path(name)]

    def describe_extensions(self) -> "Plan":
        """Return the plan with the code that its import paths mean here.

        Raises
        ------
        ExtensionError
            If one is not installed here, or may not be named.
        """
        return self.model_copy(update={"extensions": [find_extension(path) for path in self.extension_paths]})

    @property
    def is_personal(self) -> bool:
        """Whether each site has a model of its own, because BatchNorm or the last layer stays there."""
        return self.batch_norm == "local" or (self.fopro is not None and self.fopro.exchange == "aux")

    def plain(self) -> "Plan":
        """Return the plan of the network that is released: without what only its training needs."""
        return self.model_copy(update={"fopro": None})

    @property
    def sha256(self) -> str:
        """What a person at a site approves: the hash of all that the plan says, the name of the run included."""
        return plan_hash(self)

    @model_serializer(mode="wrap")
    def _leave_out_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        if not self.extensions:
            values.pop("extensions", None)
        if self.operating is None:
            values.pop("operating", None)
        if not self.ordinal:
            values.pop("ordinal", None)
        return values


def plan_hash(plan: Plan) -> str:
    """Return the SHA-256 of a plan in canonical JSON (keys sorted, no spaces), 64 hexadecimal digits.

    Notes
    -----
    The list of sites is no part of a plan, so that it may grow under the same approval.
    """
    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def make_student_plan(plan: Plan) -> Plan:
    """Return the plan of a run's compact student: another network, everything else the same."""
    assert plan.student is not None, "asked for where there is a small network only"
    small = plan.plain().model_copy(update={"model": plan.student.model, "student": None})
    described = [one for one in plan.extensions if one.path in small.extension_paths]
    return small.model_copy(update={"extensions": described})


def make_distil_plan(plan: Plan) -> Plan:
    """Return the plan of its rounds at the sites: with a schedule of its own and nothing that is kept or told."""
    settings, small = plan.student, make_student_plan(plan)
    assert settings is not None, "make_student_plan has looked"
    optimizer = small.training.optimizer.model_copy(update={"name": "adam", "lr": settings.lr})
    training = small.training.model_copy(update={"optimizer": optimizer, "proximal_mu": 0.0, "keep_momentum": False})
    changes = {"rounds": settings.rounds, "compression": "none", "losses": "none", "loss_attribute": None}
    return small.model_copy(update={"training": training, **changes})

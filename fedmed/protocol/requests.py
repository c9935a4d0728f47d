"""What the server asks of a site, as it travels.

One class for all kinds of message: which of its fields a kind may use depends on the plan and on what the site allows,
and is checked there (:mod:`client.guard.requests`).
"""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, JsonValue, PlainSerializer

from fedmed.clinical.scores import HIGHEST, LOWEST
from fedmed.config import Plan
from fedmed.metrics.limits import MOST_GROUPS
from fedmed.metrics.site_tables import COMPARED_MODELS, ComparedModel
from fedmed.metrics.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE
from fedmed.protocol.kinds import ScoredPart
from fedmed.protocol.reading import SAME_VERSION, MessageForm, Sha256

NEEDS_DISTIL = "The request's 'distil' cannot be read. Needed: temperature and feature_weight."
_LARGEST_WEIGHT = 1e6
_HASH = "64 hexadecimal digits"
_COUNT = "a whole number from 0"
_UNREADABLE_PLAN = f"The server's plan cannot be read here. {SAME_VERSION}"

# In full: what is left out of a request is not asked for, but a plan has to say everything.
SentPlan = Annotated[Plan, PlainSerializer(lambda plan: plan.model_dump(mode="json"), when_used="json")]
Weight = Annotated[float, Field(ge=0, le=_LARGEST_WEIGHT)]


class DistilSettings(MessageForm):
    """How the first model learns from the second, see :func:`fedmed.distillation.compact_loss`."""

    what: ClassVar[str] = "The request"
    temperature: float = Field(gt=0, le=100, description="above 0, up to 100")
    feature_weight: float = Field(ge=0, le=1000, description="0 to 1000")


class OtherModel(MessageForm):
    """A second model: to be compared with the first image by image, or for the first to learn from."""

    what: ClassVar[str] = "The request"
    name: Literal["student", "teacher"]
    """Under which its tables are told."""
    plan: SentPlan = Field(description=_UNREADABLE_PLAN)
    sha256: Sha256


class Request(MessageForm):
    """One request of the server; ``plan`` is all that the request for a site's description needs."""

    what: ClassVar[str] = "The request"
    plan: SentPlan = Field(description=_UNREADABLE_PLAN)
    round: int | None = Field(None, ge=0, description=_COUNT)
    """From 1 in training; 0 is the model at the start."""
    part: ScoredPart | None = Field(None, description=", ".join(get_args(ScoredPart)))
    """Which images to score."""
    best_round: int | None = Field(None, ge=0, description=_COUNT)
    model_sha256: Sha256 | None = Field(None, description=_HASH)
    """Hash of the model, also where the message does not bring it."""
    remember: bool = Field(False, description="true or false")
    """Whether the model should be kept in memory for the next request."""
    artefact_sha256: Sha256 | None = Field(None, description=_HASH)
    """Hash of the files that are compared with the model before a release."""
    temperature: float | None = Field(
        None, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description=f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
    )
    """By what the model's outputs are divided in a test, and before alert scores are counted."""
    alert_threshold: float | None = Field(None, ge=LOWEST, le=HIGHEST, description=f"{LOWEST:g} to {HIGHEST:g}")
    """Alert score from which on an image raises an alert in a test, see :mod:`fedmed.clinical.scores`."""
    compare: list[ComparedModel] = Field([], description=f"a list of {', '.join(COMPARED_MODELS)}")
    """Models with which the federation's is compared in a test, see :mod:`client.answers.compared_models`."""
    group_weights: dict[str, Weight] = Field(
        {},
        max_length=MOST_GROUPS,
        description=f"at most {MOST_GROUPS} groups with weights from 0 to {_LARGEST_WEIGHT:g}",
    )
    """Weight of an image of each patient group in the training; 1 for groups that are not named."""
    other: OtherModel | None = Field(
        None, description="The request's 'other' is not what was agreed: name, plan and sha256 of a model."
    )
    """The second model."""
    distil: DistilSettings | None = Field(None, description=NEEDS_DISTIL)
    """How the first model learns from the second."""

    def to_values(self) -> dict[str, JsonValue]:
        """Return the JSON values that travel: without what is not asked for."""
        return self.model_dump(mode="json", exclude_defaults=True)

"""Settings of the step from a round's average to the next global model; :mod:`fedmed.aggregation.server_step` takes it.

The numbers have the papers' values. Of the learning rates of FedAdam and FedYogi there is none for all data: their
paper searches powers of 10 around the one here.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from fedmed.config.section import BY_PATH, Section, name_kind
from fedmed.extensions import ImportPath

Share = Annotated[float, Field(ge=0, lt=1)]


class StepConfig(Section):
    """What the settings of every step say: its name."""

    kind: str

    def describe(self) -> str:
        """Return name and numbers on one line."""
        values = self.model_dump(exclude={"kind"})
        return (
            f"{self.kind} ({', '.join(f'{key} {value:g}' for key, value in values.items())})" if values else self.kind
        )


class AverageConfig(StepConfig):
    """The average is the next global model."""

    kind: Literal["average"] = "average"


class FedAvgMConfig(StepConfig):
    """FedAvgM: a step with momentum in the direction of the average."""

    kind: Literal["fedavgm"]
    lr: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the step; with 1 and no momentum it is the average."""
    momentum: Share = 0.9
    """Share of the last step's direction that is kept."""


class AdaptiveConfig(StepConfig):
    """What FedAdam and FedYogi have in common: every weight is moved by about ``lr``, however far the sites went."""

    lr: Annotated[float, Field(gt=0)] = 0.01
    """How far a weight moves in a round."""
    beta1: Share = 0.9
    """Share of the mean change that is kept."""
    beta2: Share = 0.99
    """Share of the mean squared change that is kept."""
    tau: Annotated[float, Field(gt=0)] = 0.001
    """Changes well below it are small: they move a weight by less than ``lr``."""


class FedAdamConfig(AdaptiveConfig):
    """FedAdam: steps by the mean change over the root of its mean square."""

    kind: Literal["fedadam"]


class FedYogiConfig(AdaptiveConfig):
    """FedYogi: as FedAdam, with a mean square that grows and falls by the newest change alone."""

    kind: Literal["fedyogi"]


class ExtensionStepConfig(StepConfig):
    """A step from outside fedmed."""

    kind: ImportPath
    """``package.module:Class``, a :class:`fedmed.aggregation.ServerStep`."""
    options: dict[str, Any] = Field(default={})
    """Options of the class."""

    def describe(self) -> str:
        """Return path and options on one line."""
        told = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{self.kind} ({told})" if told else self.kind


ServerStepConfig = Annotated[
    Annotated[AverageConfig, Tag("average")]
    | Annotated[FedAvgMConfig, Tag("fedavgm")]
    | Annotated[FedAdamConfig, Tag("fedadam")]
    | Annotated[FedYogiConfig, Tag("fedyogi")]
    | Annotated[ExtensionStepConfig, Tag(BY_PATH)],
    Discriminator(name_kind("kind")),
]

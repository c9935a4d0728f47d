"""Settings of aggregation rules that aim at fairness; :mod:`fedmed.aggregation.fair` has their formulas."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedmed.config.section import Section

LossReport = Literal["none", "site", "groups"]
"""What a site tells about the global model's loss on its training images before it trains: nothing, the mean over all
of them, or number and sum by group of one attribute."""

FairFigure = Literal[
    "gap_accuracy",
    "gap_balanced_accuracy",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "equalized_odds_difference",
]
"""Gaps between groups that can be had from counts alone."""


class QFedAvgConfig(Section):
    """q-FedAvg: sites with a larger loss count for more."""

    losses: ClassVar[LossReport] = "site"

    kind: Literal["q_fedavg"]
    q: Annotated[float, Field(ge=0, le=10)] = 0.2
    """How much more: 0 is FedAvg, large values come near the minimax over sites."""
    lipschitz: Annotated[float, Field(gt=0)] | None = None
    """Bound on the curvature of the sites' losses, by which the step is shortened; null: (1 - momentum) /
    (learning rate x steps) of a round's local training, which for one plain step is 1 / learning rate, as
    published."""


class AgnosticConfig(Section):
    """Agnostic federated learning: weights of the sites that make the weighted loss largest."""

    losses: ClassVar[LossReport] = "site"

    kind: Literal["agnostic"]
    step: Annotated[float, Field(gt=0)] = 0.1
    """How far the weights move in a round, by difference of the losses."""


class GroupMinimaxConfig(Section):
    """FedMinMax: weights of patient groups that make the weighted loss largest."""

    losses: ClassVar[LossReport] = "groups"

    kind: Literal["group_minimax"]
    attribute: str
    """Attribute whose groups are meant, for example ``sex``."""
    step: Annotated[float, Field(gt=0)] = 0.1
    """How far the weights move in a round, by difference of the losses."""


class FairFedConfig(Section):
    """FairFed: sites whose gap between groups is near that of all images count for more."""

    losses: ClassVar[LossReport] = "none"

    kind: Literal["fairfed"]
    attribute: str
    """Attribute whose groups are meant, for example ``sex``."""
    figure: FairFigure = "equal_opportunity_difference"
    """The gap, on validation images."""
    beta: Annotated[float, Field(gt=0)] = 0.5
    """How far the weights move in a round, by difference of the gaps; FedAvg towards 0."""


class GapToLocalConfig(Section):
    """Sites that lose most against a model of their own count for more; needs ``benefit: true``."""

    losses: ClassVar[LossReport] = "site"

    kind: Literal["gap_to_local"]
    strength: Annotated[float, Field(ge=0)] = 0.5
    """How much more: 0 is FedAvg."""


FairConfig = Annotated[
    QFedAvgConfig | AgnosticConfig | GroupMinimaxConfig | FairFedConfig | GapToLocalConfig, Field(discriminator="kind")
]

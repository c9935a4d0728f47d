"""Settings of aggregation rules that aim at fairness; :mod:`fedmed.aggregation` has the rules, with their formulas."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from fedmed.config.section import BY_PATH, Section, name_kind
from fedmed.extensions import ImportPath

LossReport = Literal["none", "site", "groups"]
"""What a site tells about the global model's loss on its training images before it trains: nothing, the mean over all
of them, or number and sum by group of one attribute."""

DivergenceReport = Literal["none", "plain", "inverse"]
"""What a site tells about the distance of its features from a shared teacher's: nothing, or one number, made as ``mas``
or ``mas_inv`` of Fed-MAS have it."""

FairFigure = Literal[
    "gap_accuracy",
    "gap_balanced_accuracy",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "equalized_odds_difference",
]
"""Gaps between groups that can be had from counts alone."""


MaxShare = Annotated[float, Field(gt=0, le=1)] | Literal["auto"] | None
"""Largest share of one site among the weights: ``auto`` is a half, from four sites on a third; None is no limit."""


class RuleConfig(Section):
    """What the settings of every rule say: its name, and what it needs of the sites, which a plan tells them.

    The rule itself is a class in :mod:`fedmed.aggregation`, found by the class of its settings; what it needs is said
    here, because settings import nothing of it.
    """

    losses: ClassVar[LossReport] = "none"
    """What a site tells about its losses."""
    needs_local_models: ClassVar[bool] = False
    """Whether the rounds need to know how good the sites' own models are."""
    needs_tables: ClassVar[bool] = False
    """Whether the rounds need tables of validation images."""

    kind: str

    @property
    def loss_report(self) -> LossReport:
        """What a site tells about its losses under these settings."""
        return self.losses

    @property
    def group_attribute(self) -> str | None:
        """Attribute whose groups the rule is about, None where it is about sites."""
        return None

    @property
    def divergence(self) -> DivergenceReport:
        """What a site tells about its distance from the teacher."""
        return "none"


class QFedAvgConfig(RuleConfig):
    """q-FedAvg: sites with a larger loss count for more."""

    losses: ClassVar[LossReport] = "site"

    kind: Literal["q_fedavg"]
    q: Annotated[float, Field(ge=0, le=10)] = 0.2
    """How much more: 0 is FedAvg, large values come near the minimax over sites."""
    lipschitz: Annotated[float, Field(gt=0)] | None = None
    """Bound on the curvature of the sites' losses, by which the step is shortened; null: (1 - momentum) /
    (learning rate x steps) of a round's local training, which for one plain step is 1 / learning rate, as
    published."""


class AgnosticConfig(RuleConfig):
    """Agnostic federated learning: weights of the sites that make the weighted loss largest."""

    losses: ClassVar[LossReport] = "site"

    kind: Literal["agnostic"]
    step: Annotated[float, Field(gt=0)] = 0.1
    """How far the weights move in a round, by difference of the losses."""


class GroupMinimaxConfig(RuleConfig):
    """FedMinMax: weights of patient groups that make the weighted loss largest."""

    losses: ClassVar[LossReport] = "groups"

    kind: Literal["group_minimax"]
    attribute: str
    """Attribute whose groups are meant, for example ``sex``."""
    step: Annotated[float, Field(gt=0)] = 0.1
    """How far the weights move in a round, by difference of the losses."""

    @property
    def group_attribute(self) -> str | None:
        """The attribute."""
        return self.attribute


class FairFedConfig(RuleConfig):
    """FairFed: sites whose gap between groups is near that of all images count for more."""

    needs_tables: ClassVar[bool] = True

    kind: Literal["fairfed"]
    attribute: str
    """Attribute whose groups are meant, for example ``sex``."""
    figure: FairFigure = "equal_opportunity_difference"
    """The gap, on validation images."""
    beta: Annotated[float, Field(gt=0)] = 0.5
    """How far the weights move in a round, by difference of the gaps; FedAvg towards 0."""

    @property
    def group_attribute(self) -> str | None:
        """The attribute."""
        return self.attribute


class GapToLocalConfig(RuleConfig):
    """Sites that lose most against a model of their own count for more; needs ``benefit: true``."""

    losses: ClassVar[LossReport] = "site"
    needs_local_models: ClassVar[bool] = True

    kind: Literal["gap_to_local"]
    strength: Annotated[float, Field(ge=0)] = 0.5
    """How much more: 0 is FedAvg."""


class DivergenceConfig(RuleConfig):
    """Fed-MAS: sites whose features are far from the teacher's where the model is; needs ``fopro`` with a teacher.

    A site's weight is proportional to ``n^size_power r^divergence_power``, n its training images and r the one number
    that it tells; see :mod:`fedmed.aggregation.divergence_rule`.
    """

    kind: Literal["divergence"]
    size_power: Annotated[float, Field(ge=0, le=2)] = 0.5
    """1 with ``divergence_power: 0`` is FedAvg; 0 with 1 is ``mas`` as published, which knows no numbers of images."""
    divergence_power: Annotated[float, Field(ge=0, le=4)] = 1.0
    """How much more sites with a large r count."""
    inverse: bool = False
    """Whether r is that of ``mas_inv``: classes count for which the distance falls while the site trains."""
    floor: Annotated[int, Field(ge=0)] = 20
    """Sites with fewer training images keep the share that FedAvg gives them; 0: none does."""

    @property
    def divergence(self) -> DivergenceReport:
        """One number, made in one of two ways."""
        return "inverse" if self.inverse else "plain"


class ExtensionRuleConfig(RuleConfig):
    """A rule from outside fedmed. It runs at the server alone, so that no hospital has to have it or to allow it."""

    kind: ImportPath
    """``package.module:Class``, a :class:`fedmed.aggregation.Rule`."""
    tell: LossReport = "none"
    """What a site tells about its losses; the same as the class says of itself as ``losses``."""
    attribute: str | None = None
    """Attribute whose groups the rule is about; null: it is about sites."""
    options: dict[str, Any] = Field(default={})
    """Options of the class."""

    @property
    def loss_report(self) -> LossReport:
        """What these settings say."""
        return self.tell

    @property
    def group_attribute(self) -> str | None:
        """The attribute."""
        return self.attribute


FairConfig = Annotated[
    Annotated[QFedAvgConfig, Tag("q_fedavg")]
    | Annotated[AgnosticConfig, Tag("agnostic")]
    | Annotated[GroupMinimaxConfig, Tag("group_minimax")]
    | Annotated[FairFedConfig, Tag("fairfed")]
    | Annotated[GapToLocalConfig, Tag("gap_to_local")]
    | Annotated[DivergenceConfig, Tag("divergence")]
    | Annotated[ExtensionRuleConfig, Tag(BY_PATH)],
    Discriminator(name_kind("kind")),
]


class AggregationConfig(Section):
    """How updates become the next global model."""

    weighting: Literal["images", "equal"] = "images"
    """Weight of a site: its number of training images, or the same for all."""
    max_norm_ratio: Annotated[float, Field(gt=1)] = 25.0
    """An update is quarantined when its norm is more than this many times the median of the others'."""
    max_share: MaxShare = None
    """Largest share of one site among the weights of a round; what is above it goes to the others in proportion.
    ``auto``: a half, from four sites on a third, the default of a real federation; null: no limit, that of a
    simulation, in which nobody claims images that are not there. A limit that not all sites could keep makes them count
    the same; so with ``auto`` two sites do."""
    clip_norm_ratio: Annotated[float, Field(ge=1)] | None = None
    """An update is shortened to this many times the median of the others' norms, and so far that from three sites on
    none moves the model further than all others together. 5 by default in a real federation; null, the default of a
    simulation: none is shortened."""
    fair: FairConfig | None = None
    """Rule that changes the weights for the sake of fairness; its ``kind`` is ``q_fedavg``, ``agnostic``,
    ``group_minimax``, ``fairfed``, ``gap_to_local`` or ``divergence``, or the import path of a class. Null: none."""

    @property
    def attribute(self) -> str | None:
        """Attribute whose groups the fair rule is about, None where it is about sites."""
        return self.fair.group_attribute if self.fair else None

    @property
    def losses(self) -> LossReport:
        """What the sites tell about their losses."""
        return self.fair.loss_report if self.fair else "none"

    @property
    def divergence(self) -> DivergenceReport:
        """What the sites tell about their distance from the teacher."""
        return self.fair.divergence if self.fair else "none"

    @property
    def needs_local_models(self) -> bool:
        """Whether the rounds need to know how good the sites' own models are."""
        return self.fair is not None and self.fair.needs_local_models


class DeployedAggregationConfig(AggregationConfig):
    """The same where sites belong to different parties: nobody's update can be the model by itself."""

    max_share: MaxShare = "auto"
    clip_norm_ratio: Annotated[float, Field(ge=1)] | None = 5.0

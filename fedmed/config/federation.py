"""Settings of a whole federation, and the part of them that the server sends to the sites."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedmed.config.aggregation import AggregationConfig, RuleConfig
from fedmed.config.data import DataConfig, SitesData
from fedmed.config.distillation import FoproConfig, FoproPlan, OffOrNone, StudentConfig
from fedmed.config.fairness import (
    GROUP_FIGURES,
    SITE_ATTRIBUTE,
    Choice,
    ChoiceFigure,
    FairnessConfig,
    find_choice_conflict,
)
from fedmed.config.model import LOCAL_MODEL_OPTIONS, ModelConfig, OperatingSettings
from fedmed.config.plan import Compression, Plan
from fedmed.config.server_step import AverageConfig, ServerStepConfig
from fedmed.config.training import TrainingConfig
from fedmed.extensions import is_path


class FederationConfig(OperatingSettings):
    """What a simulation and a real federation have in common."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)] = "run"
    """Name of the run, part of its folder's name."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    rounds: Annotated[int, Field(ge=1)] = 12
    """Rounds of training and averaging."""
    min_sites: Annotated[int, Field(ge=1)] = 1
    """Fewest accepted updates of a round."""
    round_deadline_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds after which a phase of a round ends without those who have not answered."""
    max_missed_rounds: Annotated[int, Field(ge=1)] = 3
    """Rounds missed in a row after which a site is no longer waited for, until it answers again."""
    attempts: Annotated[int, Field(ge=1, le=10_000)] = 3
    """How often a round is tried, until ``min_sites`` have sent an update that can be used."""
    classes: list[str] | None = None
    """Class names in order; a simulation takes them from its data."""
    ordinal: bool = False
    """Whether the classes are ordered, as grades are, in the order of their list: then the report also says how far
    answers are off."""
    model: ModelConfig = ModelConfig()
    data: DataConfig | SitesData
    loss: dict[str, Any] = Field(default={"ce": 1.0, "cws": 1.0})
    """Terms of the loss: a weight, or a mapping with ``weight`` and the term's options. A term is named as in
    ``fedmed.losses.list_losses()`` or by its import path, ``package.module:function``."""
    training: TrainingConfig = TrainingConfig()
    aggregation: AggregationConfig = AggregationConfig()
    server_step: ServerStepConfig = AverageConfig()
    """From a round's average to the next global model; its ``kind`` is ``average``, ``fedavgm``, ``fedadam`` or
    ``fedyogi``."""
    batch_norm: Literal["average", "local", "recalibrate"] = "average"
    """``average``: BatchNorm is averaged like the rest (its counters are not). ``local``: it stays at the site
    (FedBN)."""
    compression: Compression = "none"
    """What a site sends back: ``none`` is float32; ``fp16`` and ``int8`` send the change in 16 or 8 bits and carry
    the rounding error over to the next round."""
    choice: Choice = "tables"
    """What the sites tell after every round, so that the best round can be chosen: ``figure``, balanced accuracy and
    accuracy with 3 digits, and tables in the last step only; or ``tables`` of validation images by patient group."""
    choose_by: ChoiceFigure = "balanced_accuracy"
    """Validation figure that chooses the best round: of all images together, or by groups of ``choose_attribute``
    (``worst_group_…``, ``es_…``)."""
    choose_attribute: str = SITE_ATTRIBUTE
    """Attribute whose groups ``choose_by`` compares, where it compares groups."""
    fairness: FairnessConfig = FairnessConfig()
    """Patient groups that are told apart in every evaluation."""
    fopro: Annotated[FoproConfig | None, OffOrNone] = None
    """FoPro-KD: distillation from a frozen public teacher at the sites, and compression at the server; ``off``: none.
    Its Fourier prompt is a reconstruction."""
    benefit: bool = True
    """Whether every site trains a model on its own images alone, with the same budget, so that the report can say
    whether it is better off in the federation. That model stays at the site."""
    calibrate: bool = True
    """Whether one temperature is fitted on the validation images of all sites; the released model applies it."""
    release: Literal["automatic", "manual", "two_persons"] = "automatic"
    """``automatic``: the finished and proven model is released. ``manual``: it waits until a person has typed
    ``flower-server --config FILE --release --by NAME``. ``two_persons``: until two of the ``operators`` have signed.
    A simulation knows ``automatic`` only."""

    def make_plan(self) -> Plan:
        """Return the part of the settings that the sites need.

        Raises
        ------
        ExtensionError
            If a model or a loss is named by an import path that is not installed here.
        ValueError
            If alert classes are no classes of the study; settings that were read with their classes have none such.
        """
        assert self.classes is not None, "classes are set when the data is prepared"
        return Plan(
            seed=self.seed,
            rounds=self.rounds,
            classes=self.classes,
            ordinal=self.ordinal,
            image_size=self.data.image_size,
            augmentation=self.data.augmentation,
            model=self.model.without(LOCAL_MODEL_OPTIONS),
            loss=self.loss,
            training=self.training,
            batch_norm=self.batch_norm,
            compression=self.compression,
            fairness=self.fairness,
            choice=self.choice,
            benefit=self.benefit,
            losses=self.aggregation.losses,
            loss_attribute=self.aggregation.attribute,
            divergence=self.aggregation.divergence,
            fopro=self.distillation,
            calibrate=self.calibrate,
            operating=self.make_operating_plan(self.classes),
            attempts=self.attempts,
            student=None if self.student is None else self.student.make_plan(),
        ).describe_extensions()

    @property
    def code_at_server(self) -> list[str]:
        """Import paths of what the server alone runs: the rule and the step after a round."""
        kinds = [self.aggregation.fair.kind] if self.aggregation.fair else []
        return [kind for kind in (*kinds, self.server_step.kind) if is_path(kind)]

    @property
    def distillation(self) -> FoproPlan | None:
        """What the sites need of ``fopro``; None where it is off."""
        return None if self.fopro is None else self.fopro.make_plan()

    @property
    def student(self) -> StudentConfig | None:
        """How the trained network is compressed at the end; None where it is not."""
        return None if self.fopro is None else self.fopro.compression

    @model_validator(mode="after")
    def _check_combinations(self) -> "FederationConfig":
        self.make_operating_plan(self.classes or [*(self.alert_classes or []), str(self.positive_class), ""])
        fair = self.aggregation.fair
        if fair is not None and fair.needs_local_models and not self.benefit:
            raise ValueError(
                f"'aggregation.fair.kind' is '{fair.kind}', which compares with the sites' own models, and 'benefit' "
                "is false. Set benefit: true, or choose another kind"
            )
        if fair is not None and fair.divergence != "none":
            self._check_divergence(fair)
        if self.model.name == "frozen_teacher":
            self._check_frozen_teacher()
        if self.ordinal and getattr(self.data, "classes", ...) is None:  # then they would be sorted by name
            raise ValueError(
                "'ordinal' is true, and 'data.classes' does not say in which order the classes are. List them from the "
                "lowest to the highest"
            )
        if self.choice == "figure":
            compresses = self.student is not None and self.student.kind != "skip"
            conflict = find_choice_conflict(self.choose_by, fair, compresses=compresses)
            if conflict is not None:
                raise ValueError(conflict)
        known, attribute = self.fairness.attributes, self.aggregation.attribute
        if known is not None and attribute is not None and not set(attribute.split(" x ")) <= set(known):
            raise ValueError(
                f"'aggregation.fair.attribute' is {attribute!r}. Allowed are the attributes in 'fairness.attributes' "
                f"and their crossings: {', '.join(known) or 'none'}"
            )
        return self

    def _check_divergence(self, fair: RuleConfig) -> None:
        """Check that every round has distances from a teacher."""
        rule = f"'aggregation.fair.kind' is '{fair.kind}', which weighs by the distance from a teacher at the sites"
        plan = self.distillation
        if plan is None or plan.weight == 0:
            found = "no 'fopro' with a teacher" if plan is None else "'fopro.weight: 0'"
            raise ValueError(f"{rule}, and there is {found}. Set fopro: {{}} or its keys, or choose another kind")
        if plan.ramp_from is not None:
            raise ValueError(
                f"{rule}, and 'fopro.ramp_from' is {plan.ramp_from}, after which there is none in the end. Set "
                "fopro.ramp_from: null, or choose another kind"
            )
        if plan.exchange == "main":
            raise ValueError(
                f"{rule}, and with 'fopro.exchange: main' every site measures it through a projector of its own, so "
                "that the sites' numbers cannot be compared. Set fopro.exchange: both, or choose another kind"
            )
        if self.aggregation.weighting != "images":
            raise ValueError(
                f"{rule} and by numbers of images, and 'aggregation.weighting' is '{self.aggregation.weighting}'. Set "
                "aggregation.weighting: images and aggregation.fair.size_power: 0, or choose another kind"
            )

    def _check_frozen_teacher(self) -> None:
        if self.batch_norm == "recalibrate":
            raise ValueError(
                "'batch_norm' is 'recalibrate', but 'model.name' is 'frozen_teacher', whose BatchNorm stays as it is. "
                "Allowed: average"
            )
        if self.fopro is not None:
            raise ValueError("'model.name' is 'frozen_teacher', which learns from no other teacher. Set fopro: off")

    @property
    def chooses_by_group(self) -> bool:
        """Whether ``choose_by`` compares the groups of ``choose_attribute``."""
        return self.choose_by in GROUP_FIGURES

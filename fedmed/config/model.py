"""Settings of the network, and at which score it raises an alert."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fedmed.config.section import Section

LOCAL_MODEL_OPTIONS = ("pretrained_backbone",)
"""Options that name files of the coordinating site; they shape the initial model and never travel."""
DEFAULT_SENSITIVITY = 0.95
"""Where alert classes are named and nothing about the operating point."""


class ModelConfig(BaseModel):
    """The network. Further keys are options of that network, checked by its builder."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str = "adsr_resnet18"
    """A name of ``fedmed.models.list_models()``, or the import path of a builder, ``package.module:function``."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the network's builder."""
        return dict(self.__pydantic_extra__ or {})

    def without(self, names: tuple[str, ...]) -> "ModelConfig":
        """Return a copy that lacks some options."""
        return ModelConfig(name=self.name, **{key: value for key, value in self.options.items() if key not in names})


class OperatingPlan(Section):
    """What an alert is about, and by what its threshold is chosen on validation images."""

    alert_classes: Annotated[list[str], Field(min_length=1)]
    """Classes that need a person."""
    sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the images of these classes that shall have an alert; None where the cost ratio chooses."""
    cost_ratio: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """How many false alarms a missed image of these classes is worth."""
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of these classes where the model will be used; None: not stated."""


class OperatingSettings(Section):
    """The settings of a study about alerts; without classes that need a person there are none."""

    positive_class: str | None = None
    """The class that needs a person, where it is one: binary, or one against the rest."""
    alert_classes: Annotated[list[str], Field(min_length=1)] | None = None
    """Classes that need a person, for example ``[mel, bcc, akiec]``: a model raises an alert where their probability
    together is high."""
    alert_sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the images of these classes that shall have an alert, on validation images; 0.95 if neither this nor
    ``alert_cost_ratio`` is set."""
    alert_cost_ratio: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """In place of it: how many false alarms a missed image of these classes is worth."""
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of these classes among the patients for whom the model is meant, for predictive values; null: as in the
    test images only."""

    def make_operating_plan(self, classes: Sequence[str]) -> OperatingPlan | None:
        """Return what the sites are told; None where no alert is wanted.

        Raises
        ------
        ValueError
            If the settings contradict each other, or name other classes than the study has.
        """
        named = [self.positive_class] if self.positive_class is not None else self.alert_classes
        self._check_operating(named)
        if named is None:
            return None
        unknown = [name for name in named if name not in classes]
        if unknown:
            raise ValueError(
                f"{self._operating_key} names {', '.join(map(repr, unknown))}. Allowed are the study's classes: "
                f"{', '.join(classes)}"
            )
        if len(named) == len(classes):
            raise ValueError(
                f"{self._operating_key} names all classes of the study, so that every image would raise an alert. "
                "Leave out the classes that need nobody"
            )
        sensitivity = self.alert_sensitivity
        if sensitivity is None and self.alert_cost_ratio is None:
            sensitivity = DEFAULT_SENSITIVITY
        return OperatingPlan(
            alert_classes=[name for name in classes if name in named],
            sensitivity=sensitivity,
            cost_ratio=self.alert_cost_ratio,
            prevalence=self.prevalence,
        )

    @property
    def _operating_key(self) -> str:
        return "'positive_class'" if self.positive_class is not None else "'alert_classes'"

    def _check_operating(self, named: Sequence[str] | None) -> None:
        if self.positive_class is not None and self.alert_classes is not None:
            raise ValueError("'positive_class' and 'alert_classes' are both set. Set one of them")
        if self.alert_sensitivity is not None and self.alert_cost_ratio is not None:
            raise ValueError(
                "'alert_sensitivity' and 'alert_cost_ratio' are both set, and either alone chooses the operating "
                "point. Set one of them"
            )
        others = ("alert_sensitivity", "alert_cost_ratio", "prevalence")
        if named is None and any(getattr(self, key) is not None for key in others):
            found = ", ".join(f"'{key}'" for key in others if getattr(self, key) is not None)
            raise ValueError(f"{found} is set, and no class is named. Set 'alert_classes' or 'positive_class' as well")
        if named is not None and len(set(named)) < len(named):
            raise ValueError(f"{self._operating_key} names a class twice. Name each once")

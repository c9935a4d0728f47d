"""Settings of the network."""

from typing import Any

from pydantic import BaseModel, ConfigDict

LOCAL_MODEL_OPTIONS = ("pretrained_backbone",)
"""Options that name files of the coordinating site; they shape the initial model and never travel."""


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

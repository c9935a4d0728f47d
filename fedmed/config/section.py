"""What every part of the settings is made from."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from fedmed.extensions import is_path

BY_PATH = "package.module:function"
"""Stands for every kind of a section that is named by an import path."""


class Section(BaseModel):
    """A closed part of the settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


def name_kind(key: str) -> Callable[[Any], str | None]:
    """Return a discriminator for sections of several kinds, one of which is named by an import path.

    Parameters
    ----------
    key : str
        Names the kind.
    """

    def choose(value: Any) -> str | None:
        kind = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        if kind is None:
            return None
        return BY_PATH if is_path(str(kind)) else str(kind)

    return choose

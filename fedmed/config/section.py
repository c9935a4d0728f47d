"""What every part of the settings is made from."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A closed part of the settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

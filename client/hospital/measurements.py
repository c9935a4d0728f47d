"""Refusal of attributes that are numbers without bands: each site would have to cut them by its own values."""

from fedmed.config import FairnessConfig
from fedmed.data import SiteData
from fedmed.data.sources.bands import MOST_NUMBERS, are_measurements
from fedmed.errors import DataSettingsError


def list_measurements(data: SiteData, fairness: FairnessConfig) -> list[str]:
    """Return the attributes that the federation tells apart and that are numbers without bands here.

    Parameters
    ----------
    data : SiteData
        All images of the site.
    fairness : FairnessConfig
        Which attributes are told apart.
    """
    parts = (data.train, data.validation, data.test)
    return [
        name
        for name in data.train.attributes
        if (fairness.attributes is None or name in fairness.attributes)
        and are_measurements(value for part in parts for value in part.attributes[name])
    ]


def refuse_measurements(data: SiteData, fairness: FairnessConfig) -> None:
    """Refuse a plan before the start that would compare groups of a number without bands.

    Raises
    ------
    DataSettingsError
        With what to write into the settings; no value is named, since it might be a patient's.
    """
    names = list_measurements(data, fairness)
    if names:
        raise DataSettingsError(f"{describe_measurements(names)} {advise_bands(names)}")


def describe_measurements(names: list[str]) -> str:
    """Return what was found and what is allowed, without any value."""
    listed = ", ".join(f"'{name}'" for name in names)
    verb = "is a number" if len(names) == 1 else "are numbers"
    return (
        f"This site's attribute {listed} (data.attribute_columns) {verb} without bands. Allowed: up to {MOST_NUMBERS} "
        "different numbers, such as grades, or bands that all sites agree on, because quartiles of one site's patients "
        "would be other groups than another's."
    )


def advise_bands(names: list[str]) -> str:
    """Return what to write into the settings."""
    bands = ", ".join(f"{name}: [40, 60]" for name in names)
    return (
        f"Ask the coordinating site for the study's edges and write them in client.yaml, under data, for example "
        f"bands: {{{bands}}}; or remove the column from data.attribute_columns."
    )

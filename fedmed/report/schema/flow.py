"""The part of ``report.json`` that says which images and patients went where."""

from typing import NotRequired

from typing_extensions import TypedDict

from fedmed.report.schema.figures import Part


class SiteFlow(TypedDict):
    """Images of a site by part, and what of the test part the figures rest on; None is not known."""

    train: int | None
    validation: int | None
    test: int | None
    scored: int | None
    """Test images in the site's tables; a hospital's thresholds may hold some back."""
    patients: int | None
    """Patients behind these, a patient with images of two classes twice, and without those of classes that a hospital
    tells together."""


class PatientCounts(TypedDict):
    """Patients behind the figures; one with images of two classes counts in both."""

    part: Part
    by_class: dict[str, int]
    groups: dict[str, dict[str, int | None]]
    """By attribute and group, for the groups that are shown."""


class FoundPart(TypedDict):
    """Images that were found, and those of them that were left out before any was trained on."""

    found: int
    left_out: int
    excluded: dict[str, int]
    """By reason, see :data:`fedmed.report.sections.data_flow.REASONS`."""


class FoundEntry(FoundPart):
    """Of all sites together."""

    sites: dict[str, FoundPart]
    """Where it is known whose an unusable row is."""


class DataFlow(TypedDict):
    """Which images and patients went where."""

    sites: dict[str, SiteFlow]
    total: dict[str, int | None]
    """Of all sites; None where a site's number is not known."""
    patients: PatientCounts | None
    """None where the sites' data has no patients' ids."""
    found: NotRequired[FoundEntry | None]
    """Of a simulation, or of one site's own report; None in a federation, whose hospitals do not tell it."""

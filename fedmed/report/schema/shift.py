"""The part of ``report.json`` on how far the images of sites differ."""

from typing_extensions import TypedDict

from fedmed.storage.records import ShiftNumbers, ShiftSource


class ShiftRange(TypedDict):
    """The usual range of a number over the sites."""

    median: float
    low: float | None
    """None where there are too few sites for a range."""
    high: float | None


class ShiftedSite(ShiftNumbers):
    """A site's numbers."""

    outside: list[str]
    """Keys of those that lie outside the usual range."""


class ShiftEntry(TypedDict):
    """All sites."""

    round: int
    source: ShiftSource
    ranges: dict[str, ShiftRange]
    """By key of the number."""
    sites: dict[str, ShiftedSite]
    outside: list[str]
    """Sites with a number outside."""
    by_chance: float | None
    """Chance that so many equal sites show one outside in one of the numbers; None where there is no range."""

"""The part of ``report.json`` with exact areas over all sites' images, which only a simulation knows."""

from typing_extensions import TypedDict


class AreaPair(TypedDict):
    """An exact area beside that of the figures."""

    exact: float | None
    """Every image against every other of all sites."""
    shown: float | None
    """As in ``figures.auc``, where images are mostly compared within their site."""
    difference: float | None
    """``exact`` minus ``shown``."""


class PooledAucEntry(AreaPair):
    """Means over the classes of which both are known."""

    n: int
    """Test images of all sites."""
    over_classes: list[str]
    by_class: dict[str, AreaPair]
    reason: str | None
    """Why there is none."""

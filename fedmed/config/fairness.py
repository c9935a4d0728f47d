"""Settings of what is told about sites and patient groups, and of small numbers."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from fedmed.config.section import Section

SITE_ATTRIBUTE = "site"
"""The attribute that every evaluation has: the site itself."""

ChoiceFigure = Literal[
    "balanced_accuracy",
    "accuracy",
    "macro_f1",
    "auc",
    "es_auc",
    "es_balanced_accuracy",
    "worst_group_accuracy",
    "worst_group_balanced_accuracy",
    "worst_group_macro_f1",
    "worst_group_auc",
]
"""Validation figures by which the best round can be chosen."""

SCORE_FIGURES = frozenset(name for name in get_args(ChoiceFigure) if name.endswith("auc"))
"""Those of them that need histograms of scores."""

GROUP_FIGURES = frozenset(name for name in get_args(ChoiceFigure) if name.startswith(("es_", "worst_group_")))
"""Those of them that compare the groups of an attribute."""


class SuppressionConfig(Section):
    """Below which counts a site sends no tables."""

    k: Annotated[int, Field(ge=1)] = 10
    """Fewest images of a group."""
    k_row: Annotated[int, Field(ge=1)] = 5
    """Fewest images of a class within a group."""
    k_bin: Annotated[int, Field(ge=1)] = 5
    """Fewest images of a bin of confidence; plays no part where ``k`` and ``k_row`` are 1."""


class FairnessConfig(Section):
    """Which patient groups are told apart."""

    attributes: list[str] | None = None
    """Attributes of the images that are told apart, for example ``[sex, age_group]``; null: all that the data has."""
    intersections: Literal["pairs", "none"] | list[list[str]] = "pairs"
    """Crossings of attributes, for example ``[[sex, age_group]]``; ``pairs``: every two of them."""

"""Settings of what is told about sites and patient groups, and of small numbers."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from fedmed.config.aggregation import RuleConfig
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


Choice = Literal["figure", "tables"]
"""What the sites tell of their validation images, so that the best round can be chosen: two figures, or tables."""

PLAIN_FIGURES = ("balanced_accuracy", "accuracy")
"""Validation figures that every site tells where it tells no tables."""

_SET_TABLES = "Set choice: tables, which every site has to allow (policy.validation_tables: true in its client.yaml)"


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


def find_choice_conflict(choose_by: ChoiceFigure, rule: RuleConfig | None, *, compresses: bool) -> str | None:
    """Return which setting needs tables of validation images, as a sentence without its full stop; None if none does.

    Parameters
    ----------
    choose_by : str
        Figure by which the best round is chosen.
    rule : RuleConfig, optional
        Rule for fairness.
    compresses : bool
        Whether the network is compressed into a small one.
    """
    if choose_by not in PLAIN_FIGURES:
        return (
            f"'choose_by' is '{choose_by}', and 'choice' is 'figure', with which a site tells "
            f"{' and '.join(PLAIN_FIGURES)} of its validation images and no tables. {_SET_TABLES}, or choose_by: "
            "balanced_accuracy"
        )
    if rule is not None and rule.needs_tables:
        return (
            f"'aggregation.fair.kind' is '{rule.kind}', which needs tables of validation images by patient group in "
            f"every round, and 'choice' is 'figure', with which there are none. {_SET_TABLES}, or choose another kind"
        )
    if compresses:
        return (
            "'fopro.compression' makes a small network, which is compared with the large one on the same validation "
            "images, and 'choice' is 'figure', with which no tables of them leave a site. "
            f"{_SET_TABLES}, or fopro.compression: {{kind: skip}}"
        )
    return None

"""A round's validation figures as the history keeps them: of all images, by site and by patient group."""

import math
from collections.abc import Collection, Mapping

from fedmed.aggregation.limits import cap_weights, find_share_limit
from fedmed.config import PLAIN_FIGURES, FederationConfig, MaxShare
from fedmed.fairness.chance.compare_groups import compute_gaps
from fedmed.fairness.disclosure.pooled_groups import find_hidden_groups, leave_out
from fedmed.fairness.figures.design_effects import count_effective, find_design_effects
from fedmed.metrics.classification import Figure, compute_figures
from fedmed.metrics.site_tables import SITE_ATTRIBUTE, SiteTables, combine_attribute
from fedmed.metrics.tables import EvaluationTables
from fedmed.protocol.reports import FigureReport
from fedmed.storage.history import Figures, Validation

SAME_FIGURE = 1e-3
"""Rounded figures that differ by no more are equal: the earlier round stays the best one."""
_EXACT = 1e-9


def average_figures(sites: Mapping[str, FigureReport], max_share: MaxShare = None) -> Validation:
    """Return the mean of the sites' figures, weighted by their numbers of images, as far as one site may have weight.

    Parameters
    ----------
    sites : mapping of str to FigureReport
        What sites have told, each of some images.
    max_share : float, "auto" or None
        ``aggregation.max_share``, which holds for updates and for this: else the site that claims most images would
        choose the round.

    Notes
    -----
    With ``choice: figure``, the pooled balanced accuracy is so a mean over sites, of means over the classes that each
    has; with tables it is the mean over classes, of all images together.
    """
    limit = find_share_limit(max_share, len(sites))
    weights, _ = cap_weights({site: told.n for site, told in sites.items()}, limit)
    total = math.fsum(weights.values())
    by_site: dict[str, Figures] = {
        site: {"n": told.n, **{key: getattr(told, key) for key in PLAIN_FIGURES}} for site, told in sites.items()
    }
    pooled: Figures = {
        key: math.fsum(weights[site] * getattr(told, key) for site, told in sites.items()) / total
        for key in PLAIN_FIGURES
        if total
    }
    return Validation(pooled=pooled, sites=by_site, groups={}, hidden={}, gaps={}, counts={})


def is_better(config: FederationConfig, value: float | None, best: float | None) -> bool:
    """Return whether a later round with the figure ``value`` takes the place of the best one so far."""
    if value is None or best is None:
        return value is not None
    return value > best + (SAME_FIGURE + _EXACT if config.choice == "figure" else 0)


def summarise(sites: Mapping[str, SiteTables], agreed: Collection[str] = ()) -> Validation:
    """Return the scalar figures of a round; of hidden groups there is nothing but that they are hidden.

    Parameters
    ----------
    sites : mapping of str to SiteTables
        The sites' validation tables.
    agreed : collection of str
        Sites that agree to show patient groups that are theirs alone.

    """
    by_site = combine_attribute(sites, SITE_ATTRIBUTE)
    if by_site is None:
        return Validation(pooled={}, sites={}, groups={}, hidden={}, gaps={}, counts={})
    hidden = find_hidden_groups(sites, agreed)
    told = {SITE_ATTRIBUTE: by_site}
    for attribute in hidden:
        pooled = combine_attribute(sites, attribute)
        assert pooled is not None, "some site has told this attribute"
        told[attribute] = leave_out(pooled, hidden[attribute])
    return Validation(
        pooled=_to_values(compute_figures(by_site)),
        sites={site: _to_values(compute_figures(sites[site].site)) for site in sites},
        groups={name: _describe_groups(tables) for name, tables in told.items() if name != SITE_ATTRIBUTE},
        hidden={name: sorted(groups) for name, groups in hidden.items()},
        gaps={name: {key: gap.value for key, gap in compute_gaps(tables).items()} for name, tables in told.items()},
        counts={name: _count_right(tables) for name, tables in told.items()},
    )


def choice_value(config: FederationConfig, validation: Validation) -> float | None:
    """Return the figure by which ``choose_by`` compares rounds, None where a round does not have it."""
    if config.chooses_by_group:
        return validation.gaps.get(config.choose_attribute, {}).get(config.choose_by)
    return validation.pooled.get(config.choose_by)


def _describe_groups(tables: EvaluationTables) -> dict[str, Figures]:
    described: dict[str, Figures] = {}
    for group in tables.groups:
        own = tables.select(group)
        described[group] = {"n": own.num_images, **_to_values(compute_figures(own))}
    return described


def _count_right(tables: EvaluationTables) -> dict[str, dict[str, list[int]]]:
    worth = count_effective(tables.row_images, find_design_effects(tables))
    return {
        group: {"n": images.tolist(), "right": counts.diagonal().tolist()}
        | ({} if (effective == images).all() else {"worth": effective.tolist()})
        for group, images, counts, effective in zip(tables.groups, tables.row_images, tables.counts, worth, strict=True)
    }


def _to_values(figures: dict[str, Figure]) -> Figures:
    return {key: figure.value for key, figure in figures.items()}

"""A round's validation figures as the history keeps them: of all images, by site and by patient group."""

from collections.abc import Collection, Mapping
from typing import Any

from fedmed.config import FederationConfig
from fedmed.fairness.chance.compare_groups import compute_gaps
from fedmed.fairness.disclosure.pooled_groups import find_hidden_groups, leave_out
from fedmed.metrics.classification import Figure, compute_figures
from fedmed.metrics.site_tables import SITE_ATTRIBUTE, SiteTables, combine_attribute
from fedmed.metrics.tables import EvaluationTables


def summarise(sites: Mapping[str, SiteTables], agreed: Collection[str] = ()) -> dict[str, Any]:
    """Return the scalar figures of a round.

    Parameters
    ----------
    sites : mapping of str to SiteTables
        The sites' validation tables.
    agreed : collection of str
        Sites that agree to show patient groups that are theirs alone.

    Returns
    -------
    dict
        ``pooled``: figures of all images. ``sites``: site -> figures. ``groups``: attribute -> group -> figures and
        ``n``, as far as they may be shown. ``hidden``: attribute -> groups that may not, of which nothing else is here
        either. ``gaps``: attribute -> figures that compare its groups. ``counts``: attribute -> group -> images (``n``)
        and right answers (``right``) by class, for alarms.
    """
    by_site = combine_attribute(sites, SITE_ATTRIBUTE)
    if by_site is None:
        return {"pooled": {}, "sites": {}, "groups": {}, "hidden": {}, "gaps": {}, "counts": {}}
    hidden = find_hidden_groups(sites, agreed)
    told = {SITE_ATTRIBUTE: by_site}
    for attribute in hidden:
        pooled = combine_attribute(sites, attribute)
        assert pooled is not None, "some site has told this attribute"
        told[attribute] = leave_out(pooled, hidden[attribute])
    return {
        "pooled": _to_values(compute_figures(by_site)),
        "sites": {site: _to_values(compute_figures(sites[site].site)) for site in sites},
        "groups": {name: _describe_groups(tables) for name, tables in told.items() if name != SITE_ATTRIBUTE},
        "hidden": {name: sorted(groups) for name, groups in hidden.items()},
        "gaps": {name: {key: gap.value for key, gap in compute_gaps(tables).items()} for name, tables in told.items()},
        "counts": {name: _count_right(tables) for name, tables in told.items()},
    }


def choice_value(config: FederationConfig, validation: Mapping[str, Any]) -> float | None:
    """Return the figure by which ``choose_by`` compares rounds, None where a round does not have it."""
    if config.chooses_by_group:
        figures = (validation.get("gaps") or {}).get(config.choose_attribute) or {}
    else:
        figures = validation.get("pooled") or {}
    value: float | None = figures.get(config.choose_by)
    return value


def _describe_groups(tables: EvaluationTables) -> dict[str, Any]:
    described = {}
    for group in tables.groups:
        own = tables.select(group)
        described[group] = {"n": own.num_images, **_to_values(compute_figures(own))}
    return described


def _count_right(tables: EvaluationTables) -> dict[str, dict[str, list[int]]]:
    return {
        group: {"n": counts.sum(axis=1).tolist(), "right": counts.diagonal().tolist()}
        for group, counts in zip(tables.groups, tables.counts, strict=True)
    }


def _to_values(figures: dict[str, Figure]) -> dict[str, float | None]:
    return {key: figure.value for key, figure in figures.items()}
